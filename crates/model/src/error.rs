//! What can be wrong with a model's description.

/// A `config.json` or GGUF header that does not describe a model scrimp can run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The top of the file is no JSON object.
    #[error("the model's configuration is {found}, but it has to be a JSON object")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A family that scrimp does not run.
    #[error("architecture {found:?} is not supported; supported are {known}")]
    UnknownArchitecture {
        /// The name in the file.
        found: String,
        /// The names that would do.
        known: String,
    },
    /// A key that has no default is absent.
    #[error("{key} is missing; it has to be {allowed}")]
    Missing {
        /// The key.
        key: String,
        /// What it may be.
        allowed: String,
    },
    /// A value out of range or of the wrong kind.
    #[error("{key} is {value}, but it has to be {allowed}")]
    Value {
        /// The key.
        key: String,
        /// What the file says.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A valid setting that scrimp does not implement.
    #[error("{key} is {value}: {why}")]
    Unsupported {
        /// The key.
        key: String,
        /// What the file says.
        value: String,
        /// What scrimp does instead, or what to use.
        why: String,
    },
    /// Values that are fine alone and not together.
    #[error("{first} = {first_value} and {second} = {second_value} do not go together: {rule}")]
    Contradiction {
        /// One key.
        first: &'static str,
        /// Its value.
        first_value: usize,
        /// The other key.
        second: &'static str,
        /// Its value.
        second_value: usize,
        /// What has to hold.
        rule: &'static str,
    },
}
