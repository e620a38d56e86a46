//! `caudal install-tools DIR`: links by which the binary is called as one of Kafka's tools.

use std::io;
use std::path::{Path, PathBuf};

use crate::tools::TOOLS;

/// Why the links could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("failed to find the path of this program: {0}")]
    Program(io::Error),
    #[error("failed to create the directory {}: {source}; choose one that you may write to", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("failed to link {}: {source}", path.display())]
    Link { path: PathBuf, source: io::Error },
    #[error("failed to link {}: a file that is no link stands there; move it away or choose another directory", path.display())]
    Occupied { path: PathBuf },
}

/// Links every tool, with and without `.sh`, and `caudal` itself into `dir`; replaces links that are there. With
/// `is_relative` the links hold the way from `dir` to the program, so that both may move together. Returns the names.
pub fn install(dir: &Path, is_relative: bool) -> Result<Vec<String>, InstallError> {
    let program = std::env::current_exe().and_then(|p| p.canonicalize()).map_err(InstallError::Program)?;
    let error = |source| InstallError::Directory { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(error)?;
    let dir = dir.canonicalize().map_err(error)?;
    let target = if is_relative { way(&dir, &program) } else { program.clone() };
    let tools = TOOLS.iter().flat_map(|t| [t.name.to_owned(), format!("{}.sh", t.name)]);
    let mut names: Vec<String> = tools.collect();
    names.push("caudal".to_owned());
    for name in &names {
        link(&target, &dir.join(name), &program)?;
    }
    Ok(names)
}

fn link(target: &Path, path: &Path, program: &Path) -> Result<(), InstallError> {
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => {
            std::fs::remove_file(path).map_err(|source| InstallError::Link { path: path.to_owned(), source })?;
        }
        // Installing into the directory of the program itself.
        Ok(_) if path == program => return Ok(()),
        Ok(_) => return Err(InstallError::Occupied { path: path.to_owned() }),
        Err(_) => {}
    }
    std::os::unix::fs::symlink(target, path).map_err(|source| InstallError::Link { path: path.to_owned(), source })
}

/// The relative path from a directory to a file; both absolute.
fn way(from: &Path, to: &Path) -> PathBuf {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| std::path::Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways() {
        assert_eq!(way(Path::new("/a/b"), Path::new("/a/c/d")), Path::new("../c/d"));
        assert_eq!(way(Path::new("/a/b"), Path::new("/a/b/d")), Path::new("d"));
        assert_eq!(way(Path::new("/x"), Path::new("/a/d")), Path::new("../a/d"));
    }

    #[test]
    fn links_are_made_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for is_relative in [false, true] {
            let names = install(dir.path(), is_relative).unwrap();
            assert!(names.contains(&"kafka-topics.sh".to_owned()) && names.contains(&"kafka-topics".to_owned()));
            let program = std::env::current_exe().unwrap().canonicalize().unwrap();
            assert_eq!(dir.path().join("kafka-topics.sh").canonicalize().unwrap(), program);
        }
        std::fs::remove_file(dir.path().join("kafka-topics.sh")).unwrap();
        std::fs::write(dir.path().join("kafka-topics.sh"), "mine").unwrap();
        assert!(matches!(install(dir.path(), false), Err(InstallError::Occupied { .. })));
    }
}
