//! The arguments of tool calls: JSON text in OpenAI's API, an object or text in templates.

use serde_json::Value;

/// Whether a template turns `arguments` into JSON itself, and so wants the object.
pub(super) fn are_objects(source: &str) -> bool {
    source.match_indices("arguments").any(|(at, name)| {
        let after = source[at + name.len()..].trim_start_matches(['\'', '"', ']', ' ']);
        after
            .strip_prefix('|')
            .is_some_and(|filter| filter.trim_start().starts_with("tojson"))
    })
}

/// Parses the arguments of every tool call; text that is not JSON stays text.
pub(super) fn parse(messages: &mut [Value]) {
    let calls = messages
        .iter_mut()
        .filter_map(|message| message.get_mut("tool_calls")?.as_array_mut())
        .flatten();
    for call in calls {
        let Some(arguments) = call
            .get_mut("function")
            .and_then(|f| f.get_mut("arguments"))
        else {
            continue;
        };
        if let Some(parsed) = arguments
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = parsed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_that_want_objects() {
        assert!(are_objects("{{ tool_call.arguments | tojson }}"));
        assert!(are_objects("{{ call['arguments'] |tojson(indent=2) }}"));
        assert!(!are_objects(
            "{{ '```json' + tool['function']['arguments'] + '```' }}"
        ));
        assert!(!are_objects("{{ arguments }} | tojson"));
    }

    #[test]
    fn only_json_text_is_parsed() {
        let call =
            |arguments: Value| json!({"tool_calls": [{"function": {"arguments": arguments}}]});
        let mut messages = [
            call("{\"a\": [1]}".into()),
            call("oops".into()),
            call(json!({})),
            json!({"tool_calls": 1}),
        ];
        parse(&mut messages);
        assert_eq!(
            messages,
            [
                call(json!({"a": [1]})),
                call("oops".into()),
                call(json!({})),
                json!({"tool_calls": 1})
            ]
        );
    }
}
