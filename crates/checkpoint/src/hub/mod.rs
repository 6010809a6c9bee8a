//! Models by name: `org/name`, downloaded from a Hugging Face hub into the cache that its other
//! tools share.
//!
//! Downloads resume where they stopped, are checked against the size and hash the hub names, and
//! appear under their name only when whole. The `hf-hub` crate (1.0) brings an async runtime and a
//! storage client of its own; what is needed here is three requests over `ureq`, blocking.

mod cache;
mod client;
mod download;
mod error;
mod select;
mod settings;

pub use error::HubError;
pub use settings::HubSettings;

use std::path::{Path, PathBuf};

use cache::RepoCache;
use client::Client;

/// What a download is doing, for whoever shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A file begins or goes on.
    Bytes {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes on disk, those of earlier attempts included.
        done: u64,
        /// Bytes it has.
        total: u64,
    },
    /// The connection broke; another attempt follows.
    Retry {
        /// The file's name in the repository.
        file: &'a str,
        /// What happened.
        reason: &'a str,
    },
    /// The hub cannot be reached, and the copy in the cache is used as it is.
    Offline {
        /// What happened.
        reason: &'a str,
    },
}

/// A model on a hub: `org/name`, then `@revision` and `:file.gguf` where given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit; `main` by default.
    pub revision: String,
    /// One file of it, where not the usual set is wanted.
    pub file: Option<String>,
}

impl HubId {
    /// Reads `org/name[@revision][:file]`; `None` when it is no such thing.
    pub fn parse(text: &str) -> Option<HubId> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (org, name) = repo.split_once('/')?;
        let plain = |part: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with('.')
                && part.chars().all(legal)
        };
        let fits = plain(org)
            && plain(name)
            && cache::is_relative(revision)
            && file.is_none_or(cache::is_relative);
        fits.then(|| HubId {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

/// The local path of a model: `id_or_path` itself where that exists, else what it names on the
/// hub, downloaded as far as it is not in the cache. The result is a folder, or a `.gguf` file.
///
/// # Errors
/// When it is neither a path nor a model's name, the hub refuses or cannot be reached, or a
/// download does not come out as the hub described it.
pub fn resolve(
    id_or_path: &str,
    settings: &HubSettings,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    let path = Path::new(id_or_path);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let id = HubId::parse(id_or_path).ok_or_else(|| HubError::NeitherPathNorId {
        given: id_or_path.to_owned(),
    })?;
    let cache = RepoCache::new(&settings.cache, &id.repo);
    if settings.offline {
        return cached(&cache, &id, "HF_HUB_OFFLINE is set", progress);
    }
    let client = Client::new(settings);
    match client.list(&id) {
        Ok(listing) => download::download(&client, &cache, &id, &listing, progress),
        Err(error) if error.is_unreachable() => {
            let reason = error.to_string();
            cached(&cache, &id, &reason, progress).map_err(|_| error)
        }
        Err(error) => Err(error),
    }
}

/// What the cache has of a model.
fn cached(
    cache: &RepoCache,
    id: &HubId,
    reason: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    let snapshot = cache
        .commit(&id.revision)
        .map(|commit| cache.snapshot(&commit));
    let found = snapshot.map(|folder| match &id.file {
        Some(file) => folder.join(file),
        None => folder,
    });
    match found.filter(|path| path.exists()) {
        Some(path) => {
            progress(Progress::Offline { reason });
            Ok(path)
        }
        None => Err(HubError::NotCached {
            id: id.repo.clone(),
            revision: id.revision.clone(),
            reason: reason.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = HubId::parse("Qwen/Qwen3-0.6B").unwrap();
        assert_eq!(
            (id.repo.as_str(), id.revision.as_str()),
            ("Qwen/Qwen3-0.6B", "main")
        );
        let id = HubId::parse("a/b@refs/pr/3:Q4/x.gguf").unwrap();
        assert_eq!(id.revision, "refs/pr/3");
        assert_eq!(id.file.as_deref(), Some("Q4/x.gguf"));
        for none in [
            "",
            "name",
            "a/b/c",
            "/a/b",
            "./a",
            "../a",
            "a/..",
            "a/",
            "a/b@",
            "a/b@../x",
            "a/b:",
            "a/b:/etc/passwd",
            "a/b:x/../../y",
            "a b/c",
            "a/b?x",
            "C:\\models\\x",
        ] {
            assert_eq!(HubId::parse(none), None, "{none:?}");
        }
    }
}
