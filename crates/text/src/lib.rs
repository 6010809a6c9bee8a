//! Text in, token ids out, and back: tokenizers, chat templates, and what watches the stream of
//! generated tokens.
//!
//! The life of a response, as far as text goes:
//!
//! 1. [`ChatTemplate::render`] turns the messages into a prompt; [`Tokenizer::encode_within`] turns
//!    that into ids (without adding special tokens: the template has written them).
//! 2. Each generated id goes through [`IncrementalDetokenizer::push`], which gives out whole
//!    characters only.
//! 3. That text goes through [`ReasoningParser::push`], which tells thinking from answer, and the
//!    answer through [`StopMatcher::push`], which ends it at a stop string.
//! 4. When generation ends, each of them is asked to `finish`, in that order.
//!
//! ```
//! use scrimp_text::{Delta, ReasoningParser, StopMatcher};
//! # fn main() {
//! let mut parser = ReasoningParser::new(None, false);
//! let mut stop = StopMatcher::new(&["END"]);
//! let mut answer = String::new();
//! 'stream: for text in ["It is", " 4.", " EN", "D and"] {
//!     for delta in parser.push(text) {
//!         if let Delta::Answer(text) = delta {
//!             let out = stop.push(&text);
//!             answer.push_str(&out.text);
//!             if out.stop.is_some() {
//!                 break 'stream;
//!             }
//!         }
//!     }
//! }
//! assert_eq!(answer, "It is 4. ");
//! # }
//! ```
//!
//! This crate must not know models, requests or HTTP, and reads no clock: the moment that a
//! template may print is an argument.

mod detokenize;
mod error;
mod reasoning;
mod stop;
mod template;
mod tokenizer;

pub use detokenize::IncrementalDetokenizer;
pub use error::{TemplateError, TokenizerError};
pub use reasoning::{Delta, ReasoningFormat, ReasoningParser};
pub use stop::{StopMatcher, Stopped};
pub use template::{ChatTemplate, TemplateInput};
pub use tokenizer::{GgufTokenizer, MAX_PIECE_BYTES, Tokenizer, TokenizerConfig};
