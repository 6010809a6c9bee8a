//! Log probabilities of tokens, as chat and as plain completions word them.

use std::collections::BTreeMap;

use scrimp_engine::TokenInfo;
use scrimp_text::Tokenizer;

use crate::api::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob};

/// JSON has no infinity: what is impossible gets OpenAI's floor.
const FLOOR: f32 = -9999.0;

/// A token's text by itself; half a character is shown as U+FFFD.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

fn bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    tokenizer.token_bytes(id).unwrap_or_default().to_vec()
}

/// Those of `tokens` that have log probabilities.
pub(crate) fn for_chat(tokenizer: &Tokenizer, tokens: &[TokenInfo]) -> ChatLogprobs {
    let content = tokens.iter().filter_map(|token| {
        let logprobs = token.logprobs.as_ref()?;
        let top = logprobs.top.iter().map(|&(id, logprob)| TopLogprob {
            token: token_text(tokenizer, id),
            logprob: logprob.max(FLOOR),
            bytes: bytes(tokenizer, id),
        });
        Some(TokenLogprob {
            token: token_text(tokenizer, token.id),
            logprob: logprobs.logprob.max(FLOOR),
            bytes: bytes(tokenizer, token.id),
            top_logprobs: top.collect(),
        })
    });
    ChatLogprobs {
        content: content.collect(),
        refusal: None,
    }
}

/// Those of `tokens` that have log probabilities. `offset` is the number of characters before
/// them, and is moved past them.
pub(crate) fn for_completion(
    tokenizer: &Tokenizer,
    tokens: &[TokenInfo],
    offset: &mut usize,
) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    for token in tokens {
        let Some(logprobs) = &token.logprobs else {
            continue;
        };
        let text = token_text(tokenizer, token.id);
        let mut top = BTreeMap::new();
        for &(id, logprob) in &logprobs.top {
            // Best first: of two tokens with the same text the better one stays.
            top.entry(token_text(tokenizer, id))
                .or_insert(logprob.max(FLOOR));
        }
        top.entry(text.clone())
            .or_insert(logprobs.logprob.max(FLOOR));
        lists.text_offset.push(*offset);
        lists.token_logprobs.push(logprobs.logprob.max(FLOOR));
        lists.top_logprobs.push(top);
        *offset += text.chars().count();
        lists.tokens.push(text);
    }
    lists
}
