//! Any text as a chat template, and a conversation through it: an error, or a prompt that is the
//! same each time. The first byte's low bits choose what the conversation has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_text::{ChatTemplate, TemplateInput};
use serde_json::{Value, json};

const ADD_GENERATION_PROMPT: u8 = 1;
const TOOLS: u8 = 2;
const THINKING: u8 = 4;
const TOOL_CALL: u8 = 8;
const ODD_FIELDS: u8 = 16;

fuzz_target!(|file: &[u8]| {
    let Some((&flags, source)) = file.split_first() else {
        return;
    };
    let Ok(template) = ChatTemplate::from_source(&String::from_utf8_lossy(source)) else {
        return;
    };
    let template =
        template.with_special_tokens([("bos_token", Some("<s>")), ("eos_token", Some("</s>"))]);
    let has = |flag| flags & flag != 0;
    let mut messages = conversation(has(TOOL_CALL), has(ODD_FIELDS));
    template.adapt_arguments(&mut messages);
    let tools = [
        json!({"type": "function", "function": {"name": "add", "description": "a \"sum\"",
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}}),
    ];
    let thinking = json!({"enable_thinking": has(ADD_GENERATION_PROMPT)});
    let input = TemplateInput {
        messages: &messages,
        tools: has(TOOLS).then_some(&tools),
        add_generation_prompt: has(ADD_GENERATION_PROMPT),
        kwargs: thinking.as_object().filter(|_| has(THINKING)),
        now: 1_700_000_000,
    };
    if let Ok(prompt) = template.render(&input) {
        assert_eq!(template.render(&input).ok(), Some(prompt));
    }
});

fn conversation(tool_call: bool, odd_fields: bool) -> Vec<Value> {
    let mut messages = vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": " 2+2?\n é"}),
        json!({"role": "assistant", "content": "<think>\nhm\n</think>\n\n4", "reasoning_content": "hm"}),
        json!({"role": "user", "content": [{"type": "text", "text": "And 3+3?"}]}),
    ];
    if tool_call {
        let function = json!({"name": "add", "arguments": "{\"x\": [3, 3.0, null]}"});
        messages.push(json!({"role": "assistant", "content": null,
            "tool_calls": [{"id": "1", "type": "function", "function": function}]}));
        messages.push(json!({"role": "tool", "tool_call_id": "1", "content": "6"}));
    }
    if odd_fields {
        messages.push(
            json!({"role": 3, "content": {"x": [1e300, -0.0, u64::MAX, i64::MIN]}, "": true}),
        );
    }
    messages
}
