//! What can be wrong with a question.

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A config that cannot be read as a model's shape.
    #[error("{model}: {what}")]
    Config {
        /// Which model.
        model: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A name that is in no catalogue.
    #[error("no {kind} called {name:?}; nearest: {nearest}")]
    Unknown {
        /// `model`, `device`, `engine`, `weight scheme`, ….
        kind: &'static str,
        /// As given.
        name: String,
        /// Names that are near, or a hint at how to list them.
        nearest: String,
    },
    /// A setting that makes no sense.
    #[error("{setting}: {what}")]
    Setting {
        /// The flag.
        setting: &'static str,
        /// What is wrong, with numbers, and what to do.
        what: String,
    },
}
