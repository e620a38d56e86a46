//! For tests: a disk in memory that remembers what was synced, fails on demand, and can tell what a power loss at any
//! moment might have left behind.
//!
//! Every operation is recorded. A cut after the first `n` operations leaves what was synced by then for certain; each
//! write, length change and name that was not may have reached the disk or not, and a write also in part. That is
//! harsher than any real file system, which keeps at least some order.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{DirLock, Disk, DiskFile, Entry, OpenMode};

type FileId = usize;

#[derive(Clone, Debug)]
enum Op {
    Write { file: FileId, position: u64, bytes: Vec<u8> },
    SetLen { file: FileId, len: u64 },
    Sync { file: FileId },
    Name(NameOp),
    SyncDir { dir: PathBuf },
}

#[derive(Clone, Debug)]
enum NameOp {
    CreateFile { path: PathBuf, file: FileId },
    CreateDir { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl NameOp {
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            NameOp::CreateFile { path, .. } | NameOp::CreateDir { path } | NameOp::Remove { path } => {
                path.parent() == Some(dir)
            }
            NameOp::Rename { from, to } => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(FileId),
}

/// Names and contents at one moment.
#[derive(Clone, Debug, Default)]
struct Tree {
    names: BTreeMap<PathBuf, Node>,
    files: Vec<Vec<u8>>,
}

impl Tree {
    fn file_mut(&mut self, file: FileId) -> &mut Vec<u8> {
        if self.files.len() <= file {
            self.files.resize(file + 1, Vec::new());
        }
        // Just made long enough.
        self.files.get_mut(file).unwrap_or_else(|| unreachable!())
    }

    fn write(&mut self, file: FileId, position: u64, bytes: &[u8]) {
        let data = self.file_mut(file);
        let start = usize::try_from(position).unwrap_or(usize::MAX);
        if data.len() < start + bytes.len() {
            data.resize(start + bytes.len(), 0);
        }
        if let Some(target) = data.get_mut(start..start + bytes.len()) {
            target.copy_from_slice(bytes);
        }
    }

    fn set_len(&mut self, file: FileId, len: u64) {
        self.file_mut(file).resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    }

    fn apply_name(&mut self, op: &NameOp) {
        match op {
            NameOp::CreateFile { path, file } => {
                // Also a file that is never written to has its number.
                self.file_mut(*file);
                self.names.insert(path.clone(), Node::File(*file));
            }
            NameOp::CreateDir { path } => {
                self.names.entry(path.clone()).or_insert(Node::Dir);
            }
            NameOp::Remove { path } => self.names.retain(|name, _| !name.starts_with(path)),
            NameOp::Rename { from, to } => {
                self.names.retain(|name, _| !name.starts_with(to) || name.starts_with(from));
                let moved: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(from)).cloned().collect();
                for name in moved {
                    if let (Some(node), Ok(rest)) = (self.names.remove(&name), name.strip_prefix(from)) {
                        let target = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                        self.names.insert(target, node);
                    }
                }
            }
        }
    }
}

/// What became of an operation that was not synced when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Kept,
    Dropped,
    /// Of a write, this many bytes from its beginning; other operations count as kept.
    Torn(usize),
}

#[derive(Debug, Default)]
struct State {
    now: Tree,
    /// What a cut at the very beginning leaves.
    initial: Tree,
    ops: Vec<Op>,
    space_left: Option<u64>,
    sync_fails: bool,
    /// Where directories cannot be synced.
    dir_sync_fails: Option<PathBuf>,
    /// The error number for those who open a file whose name ends so.
    open_fails: Option<(String, i32)>,
}

/// The disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
}

impl CrashDisk {
    pub fn new() -> CrashDisk {
        CrashDisk::default()
    }

    /// The number of operations so far: a cut may come after any of them.
    pub fn operations(&self) -> usize {
        self.state.lock().ops.len()
    }

    /// From now on writes take from this many bytes and fail with "no space left" beyond; `None` ends that.
    pub fn set_space_left(&self, bytes: Option<u64>) {
        self.state.lock().space_left = bytes;
    }

    /// From now on fsync fails, or works again.
    pub fn set_sync_fails(&self, fails: bool) {
        self.state.lock().sync_fails = fails;
    }

    /// From now on syncs of directories under `dir` fail.
    pub fn set_dir_sync_fails(&self, dir: Option<&Path>) {
        self.state.lock().dir_sync_fails = dir.map(Path::to_owned);
    }

    /// From now on opening a file whose name ends with `ending` fails with the error of this number, as of errno(3); `None` ends
    /// that.
    pub fn set_open_fails(&self, ending: Option<(&str, i32)>) {
        self.state.lock().open_fails = ending.map(|(ending, errno)| (ending.to_owned(), errno));
    }

    /// Changes a byte of a file behind everybody's back, as a failing medium does.
    pub fn flip(&self, path: &Path, position: u64, mask: u8) {
        let mut state = self.state.lock();
        if let Some(Node::File(file)) = state.now.names.get(path).copied() {
            let at = usize::try_from(position).unwrap_or(usize::MAX);
            if let Some(byte) = state.now.file_mut(file).get_mut(at) {
                *byte ^= mask;
                let changed = vec![*byte];
                state.ops.push(Op::Write { file, position, bytes: changed });
                state.ops.push(Op::Sync { file });
            }
        }
    }

    /// How many of the first `cut` operations a power loss at that moment could undo.
    pub fn unsynced(&self, cut: usize) -> usize {
        self.pending(cut).1.len()
    }

    /// The disk after a power loss behind the first `cut` operations; `fate` decides about each unsynced one by its
    /// place among them, oldest first.
    pub fn image(&self, cut: usize, fate: impl Fn(usize) -> Fate) -> CrashDisk {
        let (mut tree, pending) = self.pending(cut);
        for (n, op) in pending.iter().enumerate() {
            match (op, fate(n)) {
                (_, Fate::Dropped) => {}
                (Op::Write { file, position, bytes }, Fate::Torn(kept)) => {
                    tree.write(*file, *position, bytes.get(..kept).unwrap_or(bytes));
                }
                (Op::Write { file, position, bytes }, Fate::Kept) => tree.write(*file, *position, bytes),
                (Op::SetLen { file, len }, _) => tree.set_len(*file, *len),
                (Op::Name(op), _) => tree.apply_name(op),
                (Op::Sync { .. } | Op::SyncDir { .. }, _) => {}
            }
        }
        // Names below a directory that is gone are gone too.
        let lost = |tree: &Tree| {
            tree.names
                .keys()
                .find(|name| {
                    name.parent().is_some_and(|dir| {
                        !dir.as_os_str().is_empty() && dir != Path::new("/") && tree.names.get(dir) != Some(&Node::Dir)
                    })
                })
                .cloned()
        };
        while let Some(name) = lost(&tree) {
            tree.names.remove(&name);
        }
        let state = State { now: tree.clone(), initial: tree, ..State::default() };
        CrashDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// What is certain after a cut, and what is not.
    fn pending(&self, cut: usize) -> (Tree, Vec<Op>) {
        let state = self.state.lock();
        let mut certain = state.initial.clone();
        let mut pending: Vec<Op> = Vec::new();
        for op in state.ops.iter().take(cut) {
            match op {
                Op::Sync { file: synced } => pending.retain(|op| match op {
                    Op::Write { file, position, bytes } if file == synced => {
                        certain.write(*file, *position, bytes);
                        false
                    }
                    Op::SetLen { file, len } if file == synced => {
                        certain.set_len(*file, *len);
                        false
                    }
                    _ => true,
                }),
                Op::SyncDir { dir } => pending.retain(|op| match op {
                    Op::Name(name) if name.is_in(dir) => {
                        certain.apply_name(name);
                        false
                    }
                    _ => true,
                }),
                other => pending.push(other.clone()),
            }
        }
        (certain, pending)
    }
}

#[derive(Debug)]
struct CrashFile {
    file: FileId,
    state: Arc<Mutex<State>>,
}

impl DiskFile for CrashFile {
    fn write_all_at(&self, buffers: &mut [IoSlice<'_>], position: u64) -> io::Result<()> {
        let mut bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        let mut state = self.state.lock();
        let mut result = Ok(());
        if let Some(left) = state.space_left.as_mut() {
            let fits = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            if fits < bytes.len() {
                result = Err(io::ErrorKind::StorageFull.into());
            }
            bytes.truncate(fits);
            *left -= fits as u64;
        }
        state.now.write(self.file, position, &bytes);
        state.ops.push(Op::Write { file: self.file, position, bytes });
        result
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut state = self.state.lock();
        let data = state.now.file_mut(self.file);
        let rest = usize::try_from(position).ok().and_then(|at| data.get(at..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..len), rest.get(..len)) {
            target.copy_from_slice(source);
        }
        Ok(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.state.lock().now.file_mut(self.file).len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.now.set_len(self.file, len);
        state.ops.push(Op::SetLen { file: self.file, len });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.sync_fails {
            return Err(io::Error::other("injected fsync failure"));
        }
        state.ops.push(Op::Sync { file: self.file });
        Ok(())
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[derive(Debug)]
struct NoLock;

impl DirLock for NoLock {}

impl CrashDisk {
    fn name(&self, op: NameOp) {
        let mut state = self.state.lock();
        state.now.apply_name(&op);
        state.ops.push(Op::Name(op));
    }

    fn node(&self, path: &Path) -> Option<Node> {
        self.state.lock().now.names.get(path).copied()
    }
}

impl Disk for CrashDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if let Some((ending, errno)) = &self.state.lock().open_fails
            && path.to_string_lossy().ends_with(ending.as_str())
        {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        let file = match (self.node(path), mode) {
            (Some(Node::Dir), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(file)), _) => file,
            (None, OpenMode::Read) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                if path.parent().is_some_and(|dir| self.node(dir) != Some(Node::Dir)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let file = {
                    let mut state = self.state.lock();
                    state.now.files.push(Vec::new());
                    state.now.files.len() - 1
                };
                self.name(NameOp::CreateFile { path: path.to_owned(), file });
                file
            }
        };
        let opened = CrashFile { file, state: Arc::clone(&self.state) };
        if mode == OpenMode::Truncate && opened.size()? > 0 {
            opened.set_len(0)?;
        }
        Ok(Arc::new(opened))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state.lock();
        let entry = |(path, node): (&PathBuf, &Node)| {
            let name = path.strip_prefix(dir).ok().filter(|_| path.parent() == Some(dir))?.to_str()?;
            Some(Entry { name: name.to_owned(), is_dir: *node == Node::Dir })
        };
        Ok(state.now.names.iter().filter_map(entry).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(path == Path::new("/") || self.node(path).is_some())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        for ancestor in dir.ancestors() {
            let is_root = ancestor.as_os_str().is_empty() || ancestor == Path::new("/");
            if !is_root && self.node(ancestor).is_none() {
                missing.push(ancestor.to_owned());
            }
        }
        for path in missing.into_iter().rev() {
            self.name(NameOp::CreateDir { path });
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.node(from).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.name(NameOp::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        if self.node(path).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.name(NameOp::Remove { path: path.to_owned() });
        Ok(())
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.remove_file(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.sync_fails || state.dir_sync_fails.as_ref().is_some_and(|failing| dir.starts_with(failing)) {
            return Err(io::Error::other("injected fsync failure"));
        }
        state.ops.push(Op::SyncDir { dir: dir.to_owned() });
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn DirLock>> {
        Ok(Box::new(NoLock))
    }
}
