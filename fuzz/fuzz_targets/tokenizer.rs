//! Any bytes as a tokenizer.json: an error, or a tokenizer that encodes any text to ids it knows.
//! What follows a zero byte, which no JSON file holds, is the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_text::{Tokenizer, TokenizerConfig};

fuzz_target!(|input: &[u8]| {
    let (file, text) = scrimp_fuzz::file_and_text(input);
    if let Ok(tokenizer) = Tokenizer::from_json(file, &TokenizerConfig::default()) {
        scrimp_fuzz::use_tokenizer(&tokenizer, &text);
    }
});
