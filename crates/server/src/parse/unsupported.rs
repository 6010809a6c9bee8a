//! Fields that clients of other servers send and that scrimp cannot honour: refused, because an
//! answer that silently ignores them would be wrong.

use serde_json::Value;

use crate::error::ApiError;

/// A field, whether a value of it asks for nothing special, and what to say otherwise.
type Rule = (&'static str, fn(&Value) -> bool, &'static str);

const NO_GRAMMARS: &str =
    "structured output is not supported yet: ask for the form in the prompt instead";
const NO_MEDIA: &str = "only text goes in and comes out";

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1)
}

fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn is_text_only(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

fn never(_: &Value) -> bool {
    false
}

const BOTH: &[Rule] = &[
    ("guided_json", never, NO_GRAMMARS),
    ("guided_regex", never, NO_GRAMMARS),
    ("guided_choice", never, NO_GRAMMARS),
    ("guided_grammar", never, NO_GRAMMARS),
    ("structured_outputs", never, NO_GRAMMARS),
    ("use_beam_search", is_false, "beam search is not supported"),
    (
        "prompt_logprobs",
        never,
        "log probabilities of the prompt are not supported",
    ),
];

const CHAT: &[Rule] = &[
    (
        "functions",
        is_empty_list,
        "use tools instead of the older functions",
    ),
    (
        "function_call",
        |value| value == "none",
        "use tools instead of the older functions",
    ),
    ("audio", never, NO_MEDIA),
    ("modalities", is_text_only, NO_MEDIA),
];

const COMPLETION: &[Rule] = &[
    (
        "suffix",
        |value| value == "",
        "text cannot be inserted before a suffix",
    ),
    ("best_of", is_one, "use n, and choose among the answers"),
];

/// Refuses what a chat request asks for in vain.
pub(super) fn refuse_in_chat(object: &Value) -> Result<(), ApiError> {
    refuse(object, BOTH)?;
    refuse(object, CHAT)
}

/// Refuses what a plain completion asks for in vain.
pub(super) fn refuse_in_completion(object: &Value) -> Result<(), ApiError> {
    refuse(object, BOTH)?;
    refuse(object, COMPLETION)
}

fn refuse(object: &Value, rules: &[Rule]) -> Result<(), ApiError> {
    for (field, harmless, why) in rules {
        if let Some(value) = object.get(field)
            && !value.is_null()
            && !harmless(value)
        {
            return Err(ApiError::unsupported(field, format!("{field}: {why}")));
        }
    }
    Ok(())
}
