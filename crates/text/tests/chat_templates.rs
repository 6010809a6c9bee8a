//! Chat templates against transformers' `apply_chat_template` (tools/goldens/chat_templates.py),
//! and what a hostile template or a bad conversation leads to.

#![allow(clippy::unwrap_used)] // a helper of a test fails the test

use std::collections::BTreeMap;
use std::path::Path;

use scrimp_text::{ChatTemplate, TemplateError, TemplateInput, TokenizerConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Goldens {
    now: i64,
    tool: Value,
    special_tokens: BTreeMap<String, BTreeMap<String, String>>,
    snippets: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<Value>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    with_tools: bool,
    kwargs: Map<String, Value>,
    add_generation_prompt: bool,
    rendered: Option<String>,
}

fn folder() -> &'static Path {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/templates"
    ))
}

fn goldens() -> Goldens {
    let json = std::fs::read(folder().join("goldens.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// The template of a case, with its special tokens.
fn template(goldens: &Goldens, name: &str) -> ChatTemplate {
    if let Some(source) = goldens.snippets.get(name) {
        let tokens = [("bos_token", Some("<s>")), ("eos_token", Some("</s>"))];
        return ChatTemplate::from_source(source)
            .unwrap()
            .with_special_tokens(tokens);
    }
    let source = std::fs::read_to_string(folder().join(name)).unwrap();
    let tokens = &goldens.special_tokens[name.strip_suffix(".jinja").unwrap()];
    let text = |name: &str| tokens.get(name).map(String::as_str);
    ChatTemplate::from_source(&source)
        .unwrap()
        .with_special_tokens([
            ("bos_token", text("bos_token")),
            ("eos_token", text("eos_token")),
        ])
}

#[test]
fn renders_as_transformers_does() {
    let goldens = goldens();
    let tools = [goldens.tool.clone()];
    let mut differences = Vec::new();
    for case in &goldens.cases {
        let rendered = template(&goldens, &case.template).render(&TemplateInput {
            messages: &goldens.conversations[&case.conversation],
            tools: case.with_tools.then_some(&tools[..]),
            add_generation_prompt: case.add_generation_prompt,
            kwargs: Some(&case.kwargs),
            now: goldens.now,
        });
        let is_same = match (&case.rendered, &rendered) {
            (Some(golden), Ok(text)) => golden == text,
            (None, Err(_)) => true,
            _ => false,
        };
        if !is_same {
            differences.push(format!(
                "{} {} {:?}\n  golden {:?}\n  ours   {rendered:?}",
                case.template, case.conversation, case.kwargs, case.rendered
            ));
        }
    }
    let count = (differences.len(), goldens.cases.len());
    assert!(
        differences.is_empty(),
        "{count:?}\n{}",
        differences.join("\n")
    );
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [json!({"role": "user", "content": "hi"})];
    let input = TemplateInput {
        messages: &messages,
        ..Default::default()
    };
    ChatTemplate::from_source(source)?.render(&input)
}

#[test]
fn templates_that_do_not_end_are_stopped() {
    let loops = "{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        render(loops),
        Err(TemplateError::OutOfFuel { .. })
    ));
    let output = "{% for a in range(50000) %}{{ 'x' * 10000 }}{% endfor %}";
    assert!(matches!(
        render(output),
        Err(TemplateError::TooMuchOutput { .. })
    ));
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(
        render(recursion),
        Err(TemplateError::Render { .. })
    ));
    // Text that grows is paid for by the byte.
    for doubled in [
        "ns.s * 1000000000000",
        "ns.s ~ ns.s",
        "ns.s + ns.s",
        "ns.s.replace('x', 'xx')",
        "[ns.s, ns.s] | join",
        "'%s%s' | format(ns.s, ns.s)",
    ] {
        let source = format!(
            "{{% set ns = namespace(s='xxxxxxxx') %}}{{% for i in range(60) %}}\
             {{% set ns.s = {doubled} %}}{{% endfor %}}"
        );
        let rendered = render(&source);
        assert!(
            matches!(rendered, Err(TemplateError::OutOfFuel { .. })),
            "{doubled}"
        );
    }
}

/// Lists share what they hold: 60 of them nested, two places each, are 2^60 items to write.
#[test]
fn values_that_are_huge_when_written_are_stopped() {
    for used in [
        "{{ ns.x }}",
        "{{ {'a': [ns.x]} }}",
        "{{ ns.x | string | length }}",
        "{{ ns.x | tojson | length }}",
        "{{ ns.x | tojson(sort_keys=true, indent=4) }}",
        "{{ raise_exception(ns.x) }}",
        "{% set text %}{{ ns.x }}{% endset %}",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}\
             {{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{used}"
        );
        assert!(
            matches!(render(&source), Err(TemplateError::TooMuchOutput { .. })),
            "{used}"
        );
    }
}

#[test]
fn values_nested_too_deeply_are_errors() {
    for used in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x | string }}"] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(20000) %}}\
             {{% set ns.x = [ns.x] %}}{{% endfor %}}{used}"
        );
        let error = render(&source).unwrap_err().to_string();
        assert!(error.contains("nested too deeply"), "{used}: {error}");
    }
}

#[test]
fn broken_templates_are_errors() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000));
    for source in [
        "{% if %}",
        "{{ x",
        "{% for x in y %}",
        "{% nonsense %}",
        "{% include 'secret' %}",
        deep.as_str(),
    ] {
        assert!(matches!(render(source), Err(TemplateError::Syntax { .. })));
    }
    let long = "x".repeat(2 << 20);
    assert!(matches!(render(&long), Err(TemplateError::Config { .. })));
    for source in ["{{ messages[0].content + 1 }}", "{{ open('x') }}"] {
        assert!(
            matches!(render(source), Err(TemplateError::Render { .. })),
            "{source}"
        );
    }
}

#[test]
fn a_refusal_carries_the_words_of_the_template() {
    let error = render("{{ raise_exception('No ' ~ messages[0].role ~ ' here') }}").unwrap_err();
    assert!(matches!(&error, TemplateError::Refused { message } if message == "No user here"));
    let macro_refusal = "{% macro m() %}{{ raise_exception('inner') }}{% endmacro %}{{ m() }}";
    let error = render(macro_refusal).unwrap_err();
    assert!(
        matches!(&error, TemplateError::Refused { message } if message == "inner"),
        "{error}"
    );
}

fn from_config(config: Value) -> Result<ChatTemplate, TemplateError> {
    ChatTemplate::from_config(&TokenizerConfig::parse(config.to_string().as_bytes()).unwrap())
}

#[test]
fn templates_from_configs() {
    let input = TemplateInput::default();
    let named = from_config(json!({"bos_token": "<s>", "chat_template": [
        {"name": "default", "template": "{{ bos_token }}plain"},
        {"name": "tool_use", "template": "tools"},
        {"name": "rag", "template": "{% broken"}]}))
    .unwrap();
    assert_eq!(named.render(&input).unwrap(), "<s>plain");
    let tools = TemplateInput {
        tools: Some(&[]),
        ..input
    };
    assert_eq!(named.render(&tools).unwrap(), "tools");
    assert_eq!(
        from_config(json!({"chat_template": "x"})).unwrap().source(),
        "x"
    );

    assert!(matches!(
        from_config(json!({})),
        Err(TemplateError::Missing)
    ));
    for bad in [
        json!(3),
        json!([{"name": "default"}]),
        json!([]),
        json!({"a": 1}),
    ] {
        let config = json!({"chat_template": bad});
        assert!(matches!(
            from_config(config),
            Err(TemplateError::Config { .. })
        ));
    }
    let missing = TemplateError::Missing.to_string();
    assert!(missing.contains("base model") && missing.contains("/v1/completions"));
}

#[test]
fn templates_from_folders() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let rendered = || {
        ChatTemplate::from_folder(folder.path())
            .unwrap()
            .render(&TemplateInput::default())
            .unwrap()
    };
    assert!(matches!(
        ChatTemplate::from_folder(folder.path()),
        Err(TemplateError::Missing)
    ));
    write(
        "tokenizer_config.json",
        r#"{"eos_token": "</s>", "chat_template": "config{{ eos_token }}"}"#,
    );
    assert_eq!(rendered(), "config</s>");
    write(
        "chat_template.json",
        r#"{"chat_template": "json{{ eos_token }}"}"#,
    );
    assert_eq!(rendered(), "json</s>");
    write("chat_template.jinja", "jinja{{ eos_token }}\n");
    assert_eq!(rendered(), "jinja</s>");
    write("tokenizer_config.json", "{");
    assert!(matches!(
        ChatTemplate::from_folder(folder.path()),
        Err(TemplateError::Config { .. })
    ));
}

#[test]
fn kwargs_do_not_replace_the_conversation() {
    let kwargs = json!({"messages": [], "add_generation_prompt": true, "tools": "mine"});
    let messages = [json!({"role": "user", "content": "hi"})];
    let template = "{{ messages | length }}{{ add_generation_prompt }}{{ tools }}";
    let input = TemplateInput {
        messages: &messages,
        kwargs: kwargs.as_object(),
        ..Default::default()
    };
    let text = ChatTemplate::from_source(template)
        .unwrap()
        .render(&input)
        .unwrap();
    assert_eq!(text, "1Falsemine");
}

#[test]
fn tool_arguments_take_the_form_that_the_template_wants() {
    let goldens = goldens();
    for (name, wants_objects) in [("llama-3.2", true), ("qwen3", true), ("deepseek-r1", false)] {
        let mut messages = goldens.conversations["tool_said_something"].clone();
        template(&goldens, &format!("{name}.jinja")).adapt_arguments(&mut messages);
        let arguments = &messages[1]["tool_calls"][0]["function"]["arguments"];
        assert_eq!(arguments.is_object(), wants_objects, "{name}");
    }
}
