//! The few file operations that the log needs, so that tests can decide what a power loss leaves behind.
//!
//! What a caller may rely on after a power loss, and nothing else: file contents and length as of the last
//! [`DiskFile::sync`], and names as of the last [`Disk::sync_dir`] of the directory that holds them.

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// How [`Disk::open`] treats a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist; reading only.
    Read,
    /// Read and write; created empty when missing.
    Create,
    /// Read and write; emptied when it exists.
    Truncate,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub is_dir: bool,
}

/// A directory tree. Paths are those of the caller; nothing here interprets them.
pub trait Disk: Send + Sync + Debug {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// The entries of a directory, in no particular order; links as what they lead to. Names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Replaces what `to` names, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in `dir` survive a power loss.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock of a file until the guard is dropped; `WouldBlock` when another process or another
    /// guard of this process holds it. The lock is the one that Apache Kafka takes (`fcntl`), so the two exclude
    /// each other.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>>;
}

/// Releases the lock of a directory when dropped.
pub trait DirLock: Send + Sync + Debug {
    /// Whether the directory is still the one that was locked: it may have been removed, or something mounted over it.
    fn is_in_place(&self) -> bool {
        true
    }
}

/// An open file. Positions are absolute; there is no cursor, so readers and the writer do not disturb each other.
pub trait DiskFile: Send + Sync + Debug {
    /// Writes all of `buffers`, one after the other. On an error any prefix may have been written.
    fn write_all_at(&self, buffers: &mut [IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    fn size(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Sets space aside for the first `len` bytes; the file stays as long as it is, and `set_len` gives back what lies behind it.
    fn reserve(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// Makes contents and length survive a power loss (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// The descriptor for `sendfile`; `None` when there is no file behind it.
    fn as_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Reads a whole file.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.size()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut buffer = vec![0; len];
    let read = file.read_at(&mut buffer, 0)?;
    buffer.truncate(read);
    Ok(buffer)
}

/// Replaces a small file so that a crash leaves either the old or the new contents: a synced temporary file beside
/// it, renamed over it, the directory synced.
pub fn replace_file(disk: &dyn Disk, path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let file = disk.open(&temporary, OpenMode::Truncate)?;
    file.write_all_at(&mut [IoSlice::new(contents)], 0)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => disk.sync_dir(dir),
        None => Ok(()),
    }
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn write_all_at(&self, mut buffers: &mut [IoSlice<'_>], mut position: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            // The kernel takes at most IOV_MAX (1024) buffers a call.
            let batch = buffers.get(..1024).unwrap_or(buffers);
            let written = match rustix::io::pwritev(&self.0, batch, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            position += written as u64;
            IoSlice::advance_slices(&mut buffers, written);
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(&self.0, rest, position + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::KEEP_SIZE, 0, len) {
            // Not every file system can.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Create => {
                options.write(true).create(true);
            }
            OpenMode::Truncate => {
                options.write(true).create(true).truncate(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                let kind = entry.file_type()?;
                let is_dir = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
                entries.push(Entry { name, is_dir });
            }
        }
        Ok(entries)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let name = match (path.parent(), path.file_name()) {
            (Some(dir), Some(file)) => fs::canonicalize(dir)?.join(file),
            _ => path.to_owned(),
        };
        // fcntl locks belong to the process: a second one of the same process would succeed, and closing its file
        // would release the first. So the own process is asked before the file is touched.
        if !LOCKED.lock().get_or_insert_default().insert(name.clone()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let dir = fs::File::open(name.parent().unwrap_or(&name))?;
        let release = Release { name };
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |error| match error {
                rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS => io::ErrorKind::WouldBlock.into(),
                other => io::Error::from(other),
            },
        )?;
        Ok(Box::new(RealLock { _file: file, dir, release }))
    }
}

static LOCKED: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

#[derive(Debug)]
struct RealLock {
    // Dropped in this order: the lock goes with the file, then the process forgets it.
    _file: fs::File,
    /// While it is open, no other directory gets its inode.
    dir: fs::File,
    release: Release,
}

impl DirLock for RealLock {
    fn is_in_place(&self) -> bool {
        let Some(path) = self.release.name.parent() else { return true };
        match (self.dir.metadata(), fs::metadata(path)) {
            (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
            (_, Err(error)) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            (Err(_), Ok(_)) => true,
        }
    }
}

#[derive(Debug)]
struct Release {
    name: PathBuf,
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(locked) = LOCKED.lock().as_mut() {
            locked.remove(&self.name);
        }
    }
}
