//! What several targets do with what they parsed.

use std::borrow::Cow;

use scrimp_model::{KvLayout, ModelConfig};
use scrimp_tensor::DType;
use scrimp_text::{IncrementalDetokenizer, Tokenizer};

/// Sizes everything from a configuration that was accepted: nothing may overflow or be NaN.
pub fn use_config(config: &ModelConfig) {
    assert!(config.parameter_counts().total() > 0);
    assert!(config.attention_scale() > 0.0);
    let layout = KvLayout::of(config, DType::F32, 16);
    assert!(layout.bytes_per_block() > 0);
    assert_eq!(config.layers().count(), config.num_layers);
    let inv_freq = config.rope.inv_freq();
    assert_eq!(inv_freq.len() * 2, config.rope.dim);
    let mut out = vec![f32::NAN; 2 * config.rope.dim];
    config.rope.cos_sin(&inv_freq, &[0, u32::MAX], &mut out);
    assert!(out.iter().all(|v| v.is_finite()), "{:?}", config.rope);
}

/// A file, and the text to try it on: what follows the first zero byte, else a text of its own.
pub fn file_and_text(input: &[u8]) -> (&[u8], Cow<'_, str>) {
    match input.iter().position(|&byte| byte == 0) {
        Some(at) => (&input[..at], String::from_utf8_lossy(&input[at + 1..])),
        None => (input, "Hi <think>the é😀 \n\n  x</think> 123's ▁".into()),
    }
}

/// Encodes and decodes: every id must be known, and a stream must give what decoding gives.
pub fn use_tokenizer(tokenizer: &Tokenizer, text: &str) {
    let Ok(ids) = tokenizer.encode(text, true) else {
        return;
    };
    for &id in &ids {
        assert!((id as usize) < tokenizer.vocab_size(), "id {id} is unknown");
    }
    for skips_special in [true, false] {
        let mut stream = IncrementalDetokenizer::new(tokenizer, skips_special);
        let mut streamed = String::new();
        for &id in &ids {
            streamed.push_str(stream.push(id));
        }
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, tokenizer.decode(&ids, skips_special));
    }
    if !ids.is_empty() {
        let limit = ids.len() - 1;
        assert!(tokenizer.encode_within(text, true, limit).is_err());
    }
}
