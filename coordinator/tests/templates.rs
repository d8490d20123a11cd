//! Chat templates in processes of their own: what hostile ones come to, and that the next chat works.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use brigade_coordinator::template::{ChatRenderer, RenderError, Rendering};
use brigade_shard::template::TemplateSource;
use serde_json::{Map, Value, json};

/// How long a hostile template may take by the clock: 2 s of processor time on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(15);

fn renderer(source: &str) -> ChatRenderer {
    let source = TemplateSource { source: source.to_owned(), bos: Some("<s>".to_owned()), eos: None };
    ChatRenderer::new(env!("CARGO_BIN_EXE_brigade").into(), source).unwrap()
}

fn saying(content: &str) -> Rendering {
    Rendering { messages: vec![json!({"role": "user", "content": content})], ..Rendering::default() }
}

fn told_to(do_it: bool) -> Rendering {
    let variables: Map<String, Value> = [("hostile".to_owned(), do_it.into())].into_iter().collect();
    Rendering { variables, ..saying("hi") }
}

/// A template that is hostile where it is told to be, and else writes the message.
fn hostile(body: &str) -> ChatRenderer {
    renderer(&format!("{{% if hostile %}}{body}{{% endif %}}{{{{ messages[0].content }}}}"))
}

#[tokio::test]
async fn a_conversation_is_rendered_and_its_process_kept() {
    let chat =
        renderer("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{{ x }}");
    chat.check().await.unwrap();
    assert_eq!(chat.render(saying("hi\u{0} ü")).await, Ok("<s>[user] hi\u{0} ü".to_owned()));
    let variables = [("x".to_owned(), json!("!"))].into_iter().collect();
    assert_eq!(chat.render(Rendering { variables, ..saying("a") }).await, Ok("<s>[user] a!".to_owned()));
    let started = Instant::now();
    for _ in 0..100 {
        chat.render(saying("hi")).await.unwrap();
    }
    println!("a chat takes {:?}", started.elapsed() / 100);
    let long = "x".repeat(8 << 20);
    assert_eq!(chat.render(saying(&long)).await.unwrap().len(), long.len() + "<s>[user] ".len());
}

#[tokio::test]
async fn what_a_template_holds_has_a_limit_and_the_next_chat_works() {
    let looping = |body: &str| {
        format!(
            "{{% set ns = namespace(a='xy', b=[1], n=0) %}}{{% for i in range(64) %}}{body}{{% endfor %}}"
        )
    };
    for body in [
        looping("{% set ns.a = ns.a ~ ns.a %}") + "{{ ns.a[:1] }}",
        looping("{% set ns.a = ns.a + ns.a %}") + "{{ ns.a | length }}",
        looping("{% set ns.b = ns.b + ns.b %}") + "{{ ns.b | length }}",
        looping("{% set ns.a = ns.a.replace('x', 'xx').replace('y', 'yy') %}") + "{{ ns.a[:1] }}",
        looping("{% set ns.a = [ns.a, ns.a] | join(ns.a) %}") + "{{ ns.a[:1] }}",
        looping("{% set ns.b = [ns.b, ns.b] %}") + "{{ (ns.b | string)[:1] }}",
        looping("{% set ns.b = {'a': ns.b, 'b': ns.b} %}") + "{{ ns.b | tojson }}",
        "{{ ('x' * 2000000000)[:1] }}".to_owned(),
        "{{ ('x' * 900000000) | upper | length }}{{ ('x' * 900000000) | length }}".to_owned(),
        "{% for i in range(1000000000) %}{% endfor %}".to_owned(),
        "{{ range(1000000000) | list | length }}".to_owned(),
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{{ '%s%s' | format('x' * 9999999, 'x' * 9999999) * 200 }}".to_owned(),
        "{% set b = range(99999) | list %}{% for i in range(99999) %}{% set c = b | sort(reverse=true) | groupby(0) %}{% endfor %}"
            .to_owned(),
        "{% set b = range(99999) | list %}{% for i in range(9999) %}{{ (b | sort(reverse=true))[:0] }}{% endfor %}".to_owned(),
        "{% set b = 'ab' * 9999999 %}{% for i in range(9999) %}{{ b.count('c') }}{% endfor %}".to_owned(),
        "{% set b = range(99999) | list %}{% for i in range(99999) %}{{ -1 in b }}{% endfor %}".to_owned(),
    ] {
        let chat = hostile(&body);
        assert_eq!(chat.render(told_to(false)).await, Ok("hi".to_owned()), "{body}");
        let started = Instant::now();
        let error = chat.render(told_to(true)).await.map(|text| text.len());
        println!("{:5} ms {error:?}: {body}", started.elapsed().as_millis());
        match error {
            Err(RenderError::Template(message)) => {
                assert!(message.contains("chat template"), "{body}: {message}");
            }
            other => panic!("{body}: {other:?}"),
        }
        assert!(started.elapsed() < PATIENCE, "{body}: {:?}", started.elapsed());
        assert_eq!(chat.render(told_to(false)).await, Ok("hi".to_owned()), "the chat after {body}");
    }
}

#[tokio::test]
async fn a_template_that_is_hostile_when_it_is_compiled_is_refused() {
    // Constants are computed while a template is compiled.
    let folding = vec!["'x' * 9999999"; 200].join(" ~ ");
    for (source, reason) in [
        (format!("{{% if false %}}{{{{ {folding} }}}}{{% endif %}}"), "of memory"),
        ("{% if %}".to_owned(), "cannot be read"),
    ] {
        let started = Instant::now();
        let error = renderer(&source).check().await.unwrap_err();
        assert!(matches!(&error, RenderError::Template(why) if why.contains(reason)), "{reason}: {error}");
        assert!(error.to_string().contains("chat template"), "{error}");
        assert!(started.elapsed() < PATIENCE, "{reason}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn several_chats_at_a_time_wait_for_their_turn() {
    let chat = renderer("{{ messages[0].content }}");
    let many = (0..20).map(|i| {
        let chat = chat.clone();
        tokio::spawn(async move { (i, chat.render(saying(&format!("chat {i}"))).await) })
    });
    for one in many.collect::<Vec<_>>() {
        let (i, text) = one.await.unwrap();
        assert_eq!(text, Ok(format!("chat {i}")));
    }
}

#[test]
fn a_process_ends_with_its_coordinator() {
    let mut process = std::process::Command::new(env!("CARGO_BIN_EXE_brigade"))
        .arg(brigade_coordinator::template::SUBCOMMAND)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(process.try_wait().unwrap(), None, "it waits for requests");
    // What the system does with the pipes of a coordinator that was killed.
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let source = TemplateSource { source: "x".to_owned(), bos: None, eos: None };
    let error = ChatRenderer::new("/no/such/program".into(), source).unwrap().check().await.unwrap_err();
    assert!(matches!(&error, RenderError::Process(why) if why.contains("/no/such/program")), "{error}");
}

#[tokio::test]
async fn tools_reach_the_template_or_are_missed() {
    let tools = vec![json!({"type": "function", "function": {"name": "look"}})];
    let asked = |tools: &[Value]| Rendering { tools: tools.to_vec(), ..saying("hi") };
    let chat = renderer(
        "{% if tools %}{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}{{ messages[0].content }}",
    );
    assert_eq!(chat.render(asked(&tools)).await, Ok("look hi".to_owned()));
    assert_eq!(chat.render(asked(&[])).await, Ok("hi".to_owned()));
    let without = renderer("{{ messages[0].content }}");
    assert_eq!(without.render(asked(&tools)).await, Err(RenderError::NoTools));
    assert_eq!(without.render(asked(&[])).await, Ok("hi".to_owned()));
}

/// A call and its answer, as an assistant's second turn has them.
fn called() -> Rendering {
    let function = json!({"name": "look", "arguments": {"at": "sky", "n": 2}});
    let call = json!({"id": "abc123def", "type": "function", "function": function});
    let messages = vec![
        json!({"role": "user", "content": "hi"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "abc123def", "content": "blue"}),
    ];
    Rendering { messages, ..Rendering::default() }
}

#[tokio::test]
async fn calls_are_written_as_the_template_takes_them() {
    let tools = vec![json!({"type": "function", "function": {"name": "look"}})];
    let calls = |before: &str, arguments: &str| {
        format!(
            "{{% for t in tools or [] %}}[{{{{ t.function.name }}}}]{{% endfor %}}{{% for m in messages %}}{before}\
             {{% for c in m.tool_calls or [] %}}({{{{ c.function.name + ' ' + {arguments} }}}}){{% endfor %}}{{% endfor %}}"
        )
    };
    let asks = "{% if m.content is not none %}<{{ m.content }}>{% endif %}";
    let searches = "{% if '</think>' in m.content %}?{% endif %}<{{ m.content }}>";
    let wants =
        "{% if m.content is not string %}{{ raise_exception('no content') }}{% endif %}<{{ m.content }}>";
    let (json, joined) = ("c.function.arguments | tojson", "c.function.arguments");
    let spaced = r#"{"at": "sky", "n": 2}"#;
    let dense = r#"{"at":"sky","n":2}"#;
    for (before, arguments, wanted) in [
        (asks, json, format!("<hi>(look {spaced})<blue>")),
        // As Qwen 3 and gpt-oss do it.
        (searches, json, format!("<hi><>(look {spaced})<blue>")),
        // As templates do it that have a word of their own for what they do not take.
        (wants, json, format!("<hi><>(look {spaced})<blue>")),
        // As DeepSeek's distilled models do it.
        (asks, joined, format!("<hi>(look {dense})<blue>")),
        (searches, joined, format!("<hi><>(look {dense})<blue>")),
    ] {
        let chat = renderer(&calls(before, arguments));
        assert_eq!(chat.render(called()).await, Ok(wanted.clone()), "{before} {arguments}");
        let with = Rendering { tools: tools.clone(), ..called() };
        assert_eq!(chat.render(with).await, Ok(format!("[look]{wanted}")), "{before} {arguments}");
    }

    // What fails in every way fails for the reason that came first, and so does what a template refuses in every way.
    let hopeless = renderer(&calls(searches, "c.function.arguments.at + 1"));
    let error = hopeless.render(called()).await.unwrap_err().to_string();
    assert!(error.contains("containment"), "{error}");
    let refusing = "{% if m.role == 'tool' %}{{ raise_exception('no answers here') }}{% endif %}";
    let error = renderer(&calls(refusing, json)).render(called()).await.unwrap_err().to_string();
    assert!(error.contains("no answers here"), "{error}");
}
