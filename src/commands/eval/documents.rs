//! Texts of which each is a context of its own, a line of JSON each: `{"text": …}`, scored whole, or
//! a prompt and what was answered, of which the answer is scored.

use anyhow::{Context, Result, bail};
use scrimp_eval::Document;
use serde_json::{Map, Value};

use crate::opened::Opened;
use crate::prompting;

/// The tokens of all documents, and where each lies.
pub struct Texts {
    /// One after the other.
    pub tokens: Vec<u32>,
    /// What is what; none: one text.
    pub documents: Vec<Document>,
}

impl Texts {
    /// Tokens of the longest document.
    pub fn longest(&self) -> usize {
        let lengths = self.documents.iter().map(|d| d.tokens.len());
        lengths.max().unwrap_or(self.tokens.len())
    }
}

/// Reads documents until `most` tokens are there to be scored; the last one is cut.
pub fn read(opened: &Opened, lines: &str, most: usize) -> Result<Texts> {
    let mut texts = Texts {
        tokens: Vec::new(),
        documents: Vec::new(),
    };
    let mut left = most;
    for (i, line) in lines.lines().enumerate() {
        if line.trim().is_empty() || left == 0 {
            continue;
        }
        let place = || format!("line {} of the documents", i + 1);
        let json: Value = serde_json::from_str(line).with_context(place)?;
        let (mut prompt, mut scored) = document(opened, &json).with_context(place)?;
        scored.truncate(left);
        left -= scored.len();
        let start = texts.tokens.len();
        let scored_from = start + prompt.len();
        texts.tokens.append(&mut prompt);
        texts.tokens.append(&mut scored);
        texts.documents.push(Document {
            tokens: start..texts.tokens.len(),
            scored_from,
        });
    }
    Ok(texts)
}

/// Tokens of what comes before, and of what is scored.
fn document(opened: &Opened, json: &Value) -> Result<(Vec<u32>, Vec<u32>)> {
    let tokenizer = &opened.text.tokenizer;
    if let Some(text) = json["text"].as_str() {
        return Ok((Vec::new(), tokenizer.encode(text, true)?));
    }
    let (messages, answer) = match (json["prompt"].as_str(), json["messages"].as_array()) {
        (Some(prompt), _) => {
            let answer = json["response"].as_str().or(json["completion"].as_str());
            (vec![prompting::message("user", prompt)], answer)
        }
        (None, Some(messages)) => match messages.split_last() {
            Some((last, before)) => (before.to_vec(), last["content"].as_str()),
            None => (Vec::new(), None),
        },
        (None, None) => bail!("there is no \"text\", no \"prompt\" and no \"messages\" in it"),
    };
    let Some(answer) = answer else {
        bail!("there is a prompt and no response to score");
    };
    let prompt = prompting::chat(opened, &messages, &Map::new())?.prompt;
    Ok((prompt, tokenizer.encode(answer, false)?))
}
