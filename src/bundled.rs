//! Ponder, the small reasoning model that is compiled in: what `--model` means when it is left out.
//!
//! `models/ponder/README.md` is its card. Its weights are read from the program itself, in place.

use anyhow::Result;
use scrimp_checkpoint::Checkpoint;

/// The name under which it can be asked for.
pub const NAME: &str = "ponder";

/// Its folder, file by file.
const FILES: &[(&str, &[u8])] = &[
    (
        "config.json",
        include_bytes!("../models/ponder/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../models/ponder/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../models/ponder/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../models/ponder/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../models/ponder/tokenizer_config.json"),
    ),
    (
        "chat_template.jinja",
        include_bytes!("../models/ponder/chat_template.jinja"),
    ),
];

/// Opens it.
pub fn open() -> Result<Checkpoint> {
    Ok(Checkpoint::from_static(FILES)?)
}
