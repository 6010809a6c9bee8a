//! Ponder, the small reasoning model that is compiled in: what `--model` means when it is left out.
//!
//! `models/ponder/README.md` is its card. Its weights are read from the program itself, in place.

use std::hint::black_box;

use anyhow::Result;
use scrimp_checkpoint::Checkpoint;

/// The name under which it can be asked for.
pub const NAME: &str = "ponder";

/// No system's pages are smaller.
const PAGE: usize = 4096;

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
///
/// All of its pages are brought in: loading would do so one by one, and they stay for as long as
/// the program runs. So whoever plans afterwards finds them there, and need not guess.
pub fn open() -> Result<Checkpoint> {
    for (_, bytes) in FILES {
        for page in bytes.chunks(PAGE) {
            black_box(page[0]);
        }
    }
    Ok(Checkpoint::from_static(FILES)?)
}
