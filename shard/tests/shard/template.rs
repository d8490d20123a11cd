//! Chat templates as Hugging Face's transformers would render them, and hostile ones.

use std::time::{Duration, Instant, UNIX_EPOCH};

use brigade_shard::template::{ChatTemplate, MAX_TEMPLATE_BYTES, Message, TemplateError, TemplateSource};
use brigade_shard::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::gguf_writer::{Gguf, OnDisk};
use crate::tokenizer::byte_pairs;

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn user(content: &str) -> Vec<Message> {
    vec![Message { role: "user".to_owned(), content: content.to_owned() }]
}

fn compile(source: &str) -> Result<ChatTemplate, TemplateError> {
    let (bos, eos) = (Some("<s>".to_owned()), Some("</s>".to_owned()));
    ChatTemplate::compile(&TemplateSource { source: source.to_owned(), bos, eos })
}

fn template(source: &str) -> ChatTemplate {
    compile(source).unwrap()
}

fn render(source: &str) -> Result<String, TemplateError> {
    template(source).render(&user("Hi"), true, &Map::new())
}

#[test]
fn a_conversation_becomes_the_prompt() {
    let chat = template(CHATML);
    let prompt = chat.render(&user("Hi {{ there }}"), true, &Map::new()).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi {{ there }}<|im_end|>\n<|im_start|>assistant\n"
    );
    let messages = [json!({"role": "system", "content": "S"}), json!({"role": "user", "content": "U"})];
    let prompt = chat.render(&messages, false, &Map::new()).unwrap();
    assert_eq!(prompt, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n");
}

#[test]
fn the_files_template_knows_the_files_tokens() {
    let file = byte_pairs(Gguf::default()).key("tokenizer.chat_template", "{{ bos_token }}|{{ eos_token }}");
    let disk = OnDisk::new(&file);
    let header = disk.header();
    let tokenizer = Tokenizer::from_header(&header).unwrap();
    let chat = ChatTemplate::compile(&TemplateSource::from_header(&header, &tokenizer).unwrap()).unwrap();
    assert_eq!(chat.render(&user("x"), false, &Map::new()).unwrap(), "<|begin|>|<|end|>");

    let bare = OnDisk::new(&byte_pairs(Gguf::default()));
    let error = TemplateSource::from_header(&bare.header(), &tokenizer).unwrap_err();
    assert!(matches!(error, TemplateError::Missing), "{error}");
}

#[test]
fn python_idioms_work() {
    for (source, expected) in [
        ("{{ messages[0].content.strip().upper() }}", "HI"),
        ("{{ messages[0]['content'].split('i')[0] }}", "H"),
        ("{{ {'a': 1}.get('b', 'none') }}", "none"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{{ messages | length }} {{ messages[-1].role }}", "1 user"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("{{ 'a' if messages[0]['role'] in ['user', 'tool'] else 'b' }}", "a"),
        ("{% if tools is none and documents is none %}none{% endif %}", "none"),
        ("{% if not missing is defined %}undefined{% endif %}{{ missing }}", "undefined"),
        ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{{ messages[0] | tojson }}", "{\"role\": \"user\", \"content\": \"Hi\"}"),
        (
            "{{ {'a': [1, 2.5, none], 'ü': {'<b>': '\"x\"'}} | tojson }}",
            "{\"a\": [1, 2.5, null], \"ü\": {\"<b>\": \"\\\"x\\\"\"}}",
        ),
        ("{{ {'b': [1], 'a': {}} | tojson(indent=1) }}", "{\n \"b\": [\n  1\n ],\n \"a\": {}\n}"),
        (
            "{{ {'b': 'é😀', 'a': [[]]} | tojson(ensure_ascii=true, sort_keys=true) }}",
            "{\"a\": [[]], \"b\": \"\\u00e9\\ud83d\\ude00\"}",
        ),
        ("{{ {'b': [1, 2]} | tojson(separators=(',', ':')) }}", "{\"b\":[1,2]}"),
        (
            "{{ none is iterable }} {{ 'a' is iterable }} {{ [] is iterable }} {{ 1 is iterable }}",
            "False True True False",
        ),
        (
            "{{ none is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ {} is mapping }}",
            "False True True True",
        ),
        (
            "{{ true }} {{ none }} {{ [1, 'a', true, none, 1.0] }} {{ 'a' ~ false }}",
            "True None [1, 'a', True, None, 1.0] aFalse",
        ),
        ("{{ 'a.b.c'.rsplit('.', 1) }} {{ 'abc'.removeprefix('a').removesuffix('c') }}", "['a.b', 'c'] b"),
        (
            "{{ 'a b  c'.split() | join('|') }} {{ '  x '.strip() }} {{ 'ab'.startswith('a') }}",
            "a|b|c x True",
        ),
        ("[ {%- generation %} {{ 'x' }} {%- endgeneration -%} ]", "[ x]"),
        (
            "{% for m in messages %}{%- if m.role == 'tool' %}{%- continue %}{% endif %}{{ loop.index }}{% endfor %}",
            "1",
        ),
        ("{{ {'a': ['<ü>']} | tojson(indent=2) }}", "{\n  \"a\": [\n    \"<ü>\"\n  ]\n}"),
        ("{{ messages[0].content[::-1] }}", "iH"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('y') }}", "[y]"),
        ("{{ '<b>' }}{{ '&' | e if false else '&' }}", "<b>&"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn blocks_swallow_the_white_space_around_them() {
    let source = "{% if true %}\n  a\n  {% if true %}\nb\n  {% endif %}\n{% endif %}\n{{ 'c' }}\nd\n";
    assert_eq!(render(source).unwrap(), "  a\nb\nc\nd");
}

#[test]
fn further_variables_reach_the_template_and_replace_nothing() {
    let chat = template("{{ enable_thinking }} {{ messages | length }} {{ bos_token }}");
    let mut extra = Map::new();
    extra.insert("enable_thinking".to_owned(), Value::String("yes".to_owned()));
    extra.insert("messages".to_owned(), Value::Null);
    extra.insert("bos_token".to_owned(), Value::Null);
    assert_eq!(chat.render(&user("x"), false, &extra).unwrap(), "yes 1 <s>");
}

#[test]
fn a_refusal_of_the_template_keeps_its_words() {
    let error = render("{{ raise_exception('Roles must alternate!') }}").unwrap_err();
    assert!(
        matches!(&error, TemplateError::Refused { message } if message == "Roles must alternate!"),
        "{error}"
    );
    let error = render("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}").unwrap_err();
    assert!(matches!(&error, TemplateError::Refused { message } if message == "deep"), "{error}");
    let error = render("{{ messages[0].nothing.more }}").unwrap_err();
    assert!(matches!(error, TemplateError::Failed { .. }), "{error}");
}

#[test]
fn the_date_is_known_only_with_a_clock() {
    let source =
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}no clock{% endif %}";
    assert_eq!(render(source).unwrap(), "no clock");
    let chat = template(source).with_clock(|| UNIX_EPOCH + Duration::from_secs(1_721_952_000));
    assert_eq!(chat.render(&user("x"), false, &Map::new()).unwrap(), "26 Jul 2024");
}

#[test]
fn a_template_that_is_no_jinja_is_refused_with_its_place() {
    for source in ["{% if %}", "{{ 1", "{% endfor %}", "{{ x | nosuchfilter }}{% nosuchtag %}"] {
        let error = compile(source).map(|_| ()).unwrap_err();
        assert!(matches!(error, TemplateError::Syntax { .. }), "{source}: {error}");
    }
    let error = compile(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).map(|_| ()).unwrap_err();
    assert!(matches!(error, TemplateError::TooLong { .. }), "{error}");
}

#[test]
fn templates_without_an_end_are_stopped() {
    let started = Instant::now();
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops), Err(TemplateError::TooManySteps)), "{:?}", render(loops));
    let recursive = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    assert!(matches!(render(recursive), Err(TemplateError::Failed { .. })), "{:?}", render(recursive));
    let doubling =
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}";
    let json = render(&format!("{doubling}{{{{ ns.a | tojson }}}}"));
    assert!(matches!(json, Err(TemplateError::Failed { .. })), "{json:?}");
    assert!(matches!(render(&format!("{doubling}{{{{ ns.a }}}}")), Err(TemplateError::TooMuchOutput)));
    let chatty = "{% set x = 'y' * 1000000 %}{% for a in range(1000) %}{{ x }}{% endfor %}";
    assert!(matches!(render(chatty), Err(TemplateError::TooMuchOutput)), "{:?}", render(chatty));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn templates_that_nest_deep_give_an_error_or_an_answer_and_never_end_the_process() {
    let filling = |piece: &str| piece.repeat((MAX_TEMPLATE_BYTES - 100) / piece.len());
    let nested = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let sources = [
        nested("{% if true %}", "{% endif %}", 5000),
        nested("{% for x in [1] %}", "{% endfor %}", 3000),
        format!("{{{{ {} }}}}", nested("(", ")", 5000)),
        format!("{{{{ {} }}}}", nested("[", "]", 60_000)),
        format!("{{{{ {} }}}}", nested("{'a':", "}", 20_000)),
        format!("{{{{ {}1 }}}}", filling("-")),
        format!("{{{{ {}1 }}}}", filling("not ")),
        format!("{{{{ {}1 }}}}", filling("1+")),
        format!("{{{{ {}1 }}}}", filling("1 and ")),
        format!("{{{{ {}1 }}}}", filling("1**")),
        format!("{{{{ {}1 }}}}", filling("1 if 0 else ")),
        format!("{{{{ a{} }}}}", filling(".b")),
        format!("{{{{ a{} }}}}", filling("|list")),
        format!("{{{{ a{} }}}}", filling("()")),
        format!("{{{{ a{} }}}}", filling("[0]")),
        format!("{{% if false %}}{}{{% endif %}}", filling("{% elif false %}")),
    ];
    for source in sources {
        // Tests run on threads with small stacks, as servers do.
        let result = compile(&source).and_then(|t| t.render(&user("x"), true, &Map::new()));
        if let Err(error) = result {
            let expected = matches!(error, TemplateError::Syntax { .. } | TemplateError::Failed { .. });
            assert!(expected, "{}: {error}", &source[..40]);
        }
    }
    let build = "{% set ns = namespace(a=1) %}{% for i in range(100) %}{% for j in range(1000) %}\
                 {% set ns.a = [ns.a] %}{% endfor %}{% endfor %}";
    for end in
        ["", "{{ ns.a }}", "{{ ns.a == [ns.a] }}", "{{ ns.a | tojson }}", "{{ ns.a | string | length }}"]
    {
        let _ = render(&format!("{build}{end}"));
    }
}

#[test]
fn a_long_conversation_is_rendered_within_the_limits() {
    let chat = template(CHATML);
    let messages: Vec<Message> = (0..4000).flat_map(|i| user(&format!("message {i}"))).collect();
    let prompt = chat.render(&messages, true, &Map::new()).unwrap();
    assert_eq!(prompt.matches("<|im_start|>user").count(), 4000);
}
