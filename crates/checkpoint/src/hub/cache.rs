//! The cache folder of one repository, in the layout of Hugging Face's tools:
//! `blobs/ETAG`, `snapshots/COMMIT/FILE` (links to blobs), `refs/REVISION` (a commit's name).

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::HubError;

/// One repository's part of the cache.
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

/// Whether `path` stays inside the folder it is joined to.
pub(super) fn is_relative(path: &str) -> bool {
    let normal = |c: Component| matches!(c, Component::Normal(_));
    !path.is_empty()
        && !path.contains(['\\', '\0', ':', '?', '#', '%'])
        && !path.ends_with('/')
        && Path::new(path).components().all(normal)
}

/// Whether `name` can be a blob's file name.
pub(super) fn is_blob_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.chars().all(legal)
}

impl RepoCache {
    pub fn new(cache: &Path, repo: &str) -> RepoCache {
        let name = format!("models--{}", repo.replace('/', "--"));
        RepoCache {
            root: cache.join(&name),
            locks: cache.join(".locks").join(&name),
        }
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// A download that is not whole yet.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last asked about.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_blob_name(commit))
    }

    /// Notes what a revision stands for.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        make_parent(&path)?;
        fs::write(&path, commit).map_err(|source| io_error(&path, source))
    }

    /// Keeps other processes, those of other tools too, from downloading the same blob. Released
    /// on drop.
    pub fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::create(&path).map_err(|source| io_error(&path, source))?;
        file.lock().map_err(|source| io_error(&path, source))?;
        Ok(file)
    }

    /// Makes a blob appear under its name in a snapshot.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, HubError> {
        let pointer = self.snapshot(commit).join(file);
        make_parent(&pointer)?;
        if pointer.exists() {
            return Ok(pointer);
        }
        let _ = fs::remove_file(&pointer); // a link whose blob is gone
        let up = "../".repeat(2 + Path::new(file).components().count() - 1);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        match symlink(&target, &pointer) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                // No symbolic links here: the file itself, as other tools do.
                let copied = fs::hard_link(self.blob(etag), &pointer)
                    .or_else(|_| fs::copy(self.blob(etag), &pointer).map(|_| ()));
                copied.map_err(|source| io_error(&pointer, source))?;
            }
            _ => {}
        }
        Ok(pointer)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the folder that `path` is to be in.
pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|source| io_error(parent, source)),
        None => Ok(()),
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> HubError {
    HubError::Io {
        path: path.to_owned(),
        source,
    }
}
