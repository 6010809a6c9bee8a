//! What can go wrong between a name and a local copy of a model.

use std::path::PathBuf;

/// A model that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Text that is neither.
    #[error(
        "{given:?} is no file or folder here, and no model on a hub either (these are named org/name, org/name@revision or org/name:file.gguf)"
    )]
    NeitherPathNorId {
        /// What was given.
        given: String,
    },
    /// The hub could not be reached, or the connection broke too often.
    #[error("{url} could not be reached: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The hub wants to know who asks, or did not like the answer.
    #[error(
        "{url} refuses access (HTTP {status}{}). If the model exists, it is private or gated: accept its terms on its page, and give a token that may read it in HF_TOKEN",
        said(message)
    )]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What the hub says.
        message: String,
    },
    /// The hub has no such thing.
    #[error(
        "{url} does not exist (HTTP 404{}): check the model's name, revision and file",
        said(message)
    )]
    NotFound {
        /// The address.
        url: String,
        /// What the hub says.
        message: String,
    },
    /// Any other answer than the one asked for.
    #[error("{url} answered HTTP {status}{}", said(message))]
    Status {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What the hub says.
        message: String,
    },
    /// An answer that makes no sense.
    #[error("{url} answered with something that is not what a hub answers: {why}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of another length than announced.
    #[error(
        "{file} came with {found} bytes, but the hub announced {wanted}; what came was deleted"
    )]
    Length {
        /// The file.
        file: String,
        /// Bytes that came.
        found: u64,
        /// Bytes announced.
        wanted: u64,
    },
    /// A file whose contents are not those announced.
    #[error("{file} has SHA-256 {found}, but the hub announced {wanted}; what came was deleted")]
    Hash {
        /// The file.
        file: String,
        /// Hash of what came.
        found: String,
        /// Hash announced.
        wanted: String,
    },
    /// A repository without anything to run, or with too much.
    #[error("{repo} at {revision}: {why}")]
    Selection {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// What is missing or ambiguous.
        why: String,
    },
    /// Nothing in the cache, and no way to the hub.
    #[error("{id} at {revision} is not in the cache, and the hub was not asked: {reason}")]
    NotCached {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
        /// Why the hub was not asked.
        reason: String,
    },
    /// The cache cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether the hub was never heard, so that a copy in the cache may do.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, HubError::Unreachable { .. })
            || matches!(self, HubError::Status { status: 500.., .. })
    }
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(", {message:?}")
    }
}
