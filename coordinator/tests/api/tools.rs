//! Tools: what the template gets of them, and calls in the answer.

use serde_json::{Value, json};

use crate::client::Server;
use crate::engine::ScriptedEngine;
use crate::model::{IM_END, IM_START, TOOL_CALLS, bytes, model_with};

const CHAT: &str = "/v1/chat/completions";

/// A template that writes its tools, calls and their answers.
const TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ '<|im_start|>' }}{{ m.role }}\
    {{ ' ' + m.tool_call_id if m.tool_call_id }}\n{{ m.content if m.content is not none }}{% for c in m.tool_calls or [] %}\
    ({{ c.id }} {{ c.function.name }} {{ c.function.arguments.city }}){% endfor %}{{ '<|im_end|>' }}\n{% endfor %}";

fn saying(ids: Vec<u32>) -> ScriptedEngine {
    ScriptedEngine::of(model_with(Some(TEMPLATE)), move |_| {
        ids.iter().copied().map(crate::engine::Act::Draw).collect()
    })
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "forecast", "parameters": {"type": "object", "properties": {}}}})
}

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "tools": [tool()]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A choice's calls without their ids, which must be of the form that Mistral's templates want.
fn calls_of(calls: &Value) -> Vec<Value> {
    let calls = calls.as_array().unwrap_or_else(|| panic!("no calls: {calls}"));
    let without_id = |call: &Value| {
        let id = call["id"].as_str().unwrap();
        assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        let mut call = call.clone();
        call.as_object_mut().unwrap().remove("id");
        call
    };
    calls.iter().map(without_id).collect()
}

fn call(arguments: &str) -> Value {
    json!({"type": "function", "function": {"name": "forecast", "arguments": arguments}})
}

#[tokio::test]
async fn the_template_sees_tools_calls_and_answers() {
    let engine = saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let asked = json!({"id": "abc123def", "type": "function", "function": {"name": "forecast", "arguments": "{\"city\": \"Rome\"}"}});
    let messages = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "abc123def", "content": "sunny"},
    ]);
    server.chat(body(json!({"messages": messages}))).await;
    let mut wanted = bytes(
        "{\"type\": \"function\", \"function\": {\"name\": \"forecast\", \"parameters\": {\"type\": \"object\", \"properties\": {}}}}\n",
    );
    for message in ["user\nhi", "assistant\n(abc123def forecast Rome)", "tool abc123def\nsunny"] {
        wanted.push(IM_START);
        wanted.extend(bytes(message));
        wanted.push(IM_END);
        wanted.extend(bytes("\n"));
    }
    let text = |ids: &[u32]| ids.iter().map(|id| char::from_u32(*id).unwrap()).collect::<String>();
    assert_eq!(text(&engine.requests.lock().unwrap()[0].prompt), text(&wanted));

    // With no choice of them the model is told of none.
    server.chat(body(json!({"tool_choice": "none"}))).await;
    assert!(engine.requests.lock().unwrap()[1].prompt.starts_with(&[IM_START]));
}

/// A template that has `before` for the content of a message, and calls' arguments one by one.
fn template_with(before: &str) -> String {
    format!(
        "{{% for t in tools or [] %}}{{{{ t.function.name }}}}\n{{% endfor %}}{{% for m in messages %}}\
         {{{{ '<|im_start|>' + m.role + '\n' }}}}{before}\
         {{% for c in m.tool_calls or [] %}}({{{{ c.function.name }}}}\
         {{% for name, value in c.function.arguments.items() %}} {{{{ name }}}}={{{{ value }}}}{{% endfor %}}){{% endfor %}}\
         {{{{ '<|im_end|>\n' }}}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
    )
}

#[tokio::test]
async fn a_loop_of_calls_ends_in_an_answer_whatever_the_template_takes() {
    let searches = "{% if '</think>' in m.content %}?{% endif %}{{ m.content }}";
    let wants = "{% if m.content is not string %}{{ raise_exception('content must be text') }}{% endif %}{{ m.content }}";
    let joins = "{{ m.content + '' }}";
    let leaves_out = "{% if m.content %}{{ m.content }}{% endif %}";
    for before in [searches, wants, joins, leaves_out] {
        let engine = ScriptedEngine::of(model_with(Some(&template_with(before))), |request| {
            let starts = request.prompt.iter().filter(|id| **id == IM_START).count();
            let text = match starts {
                2 => {
                    "<tool_call>{\"name\": \"forecast\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}</tool_call>"
                }
                _ => "It is sunny.",
            };
            bytes(text).into_iter().map(crate::engine::Act::Draw).collect()
        });
        let server = Server::start(engine.clone()).await;
        let said = server.chat(body(json!({}))).await["choices"][0]["message"].clone();
        assert_eq!(said["content"], Value::Null, "{before}: {said}");
        let id = said["tool_calls"][0]["id"].clone();
        let mut without_content = said.clone();
        without_content.as_object_mut().unwrap().remove("content");
        for (turn, said) in [said, without_content].into_iter().enumerate() {
            let answered = json!({"role": "tool", "tool_call_id": id, "content": "sunny"});
            let messages = json!([{"role": "user", "content": "hi"}, said, answered]);
            let answer = server.chat(body(json!({"messages": messages}))).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["message"]["content"], "It is sunny.", "{before}: {answer}");
            assert_eq!(choice["finish_reason"], "stop", "{before}: {answer}");
            let mut wanted = bytes("forecast\n");
            for message in ["user\nhi", "assistant\n(forecast city=Rome days=2)", "tool\nsunny"] {
                wanted.push(IM_START);
                wanted.extend(bytes(message));
                wanted.push(IM_END);
                wanted.extend(bytes("\n"));
            }
            wanted.push(IM_START);
            wanted.extend(bytes("assistant\n"));
            assert_eq!(engine.requests.lock().unwrap()[turn + 1].prompt, wanted, "{before}");
        }
    }
}

#[tokio::test]
async fn calls_come_back_as_calls() {
    let hermes = "<tool_call>\n{\"name\": \"forecast\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    let mut mistral = vec![TOOL_CALLS];
    mistral.extend(bytes("[{\"name\": \"forecast\", \"arguments\": {\"city\": \"Rome\"}}]"));
    let llama = "{\"name\": \"forecast\", \"parameters\": {\"city\": \"Rome\"}}";
    for ids in [bytes(hermes), mistral, bytes(llama)] {
        let server = Server::start(saying(ids.clone())).await;
        let answer = server.chat(body(json!({}))).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(choice["message"]["content"], Value::Null, "{answer}");
        assert_eq!(calls_of(&choice["message"]["tool_calls"]), [call("{\"city\":\"Rome\"}")]);

        // What nobody asked for stays as it was written.
        let plain = server.chat(json!({"messages": [{"role": "user", "content": "hi"}]})).await;
        assert_eq!(plain["choices"][0]["finish_reason"], "stop");
        assert_eq!(plain["choices"][0]["message"].get("tool_calls"), None, "{plain}");

        let mut events = server.events(CHAT, body(json!({"stream": true}))).await;
        assert_eq!(events.pop().unwrap(), "[DONE]");
        let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
        let told: Vec<Value> =
            deltas.iter().filter_map(|delta| delta.get("tool_calls")).flat_map(calls_of).collect();
        let mut wanted = call("{\"city\":\"Rome\"}");
        wanted["index"] = json!(0);
        assert_eq!(told, [wanted]);
        let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(text, "", "no text besides");
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn text_before_a_call_is_text_and_an_answer_that_is_cut_off_says_so() {
    let said = "I look.<tool_call>{\"name\": \"forecast\"}</tool_call>";
    let server = Server::start(saying(bytes(said))).await;
    let choice = server.chat(body(json!({}))).await["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "I look.");
    assert_eq!(calls_of(&choice["message"]["tool_calls"]), [call("{}")]);
    let choice = server.chat(body(json!({"max_tokens": 20}))).await["choices"][0].clone();
    assert_eq!(choice["message"]["content"], &said[..20]);
    assert_eq!(choice["finish_reason"], "length");
    let server = Server::start(saying(bytes("no call"))).await;
    let choice = server.chat(body(json!({}))).await["choices"][0].clone();
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("no call"), &json!("stop"))
    );
}

#[tokio::test]
async fn choices_call_tools_each_for_itself() {
    let call_of = "<tool_call>{\"name\": \"forecast\"}</tool_call>";
    let engine = ScriptedEngine::of(model_with(Some(TEMPLATE)), move |request| {
        let text = if request.sampling.seed == 5 { "no call" } else { call_of };
        bytes(text).into_iter().map(crate::engine::Act::Draw).collect()
    });
    let server = Server::start(engine).await;
    let answer = server.chat(body(json!({"n": 2, "seed": 5}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "no call");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][1]["index"], 1);
    assert_eq!(calls_of(&answer["choices"][1]["message"]["tool_calls"]), [call("{}")]);
    assert_eq!(answer["choices"][1]["finish_reason"], "tool_calls");
    let events = server.events(CHAT, body(json!({"n": 2, "seed": 5, "stream": true}))).await;
    for (index, finish) in [(0, "stop"), (1, "tool_calls")] {
        let choices =
            events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        let choices: Vec<&Value> = choices.collect();
        assert_eq!(choices[0]["delta"]["role"], "assistant", "{choices:?}");
        assert_eq!(choices.last().unwrap()["finish_reason"], finish, "{choices:?}");
    }
}

#[tokio::test]
async fn a_template_without_tools_refuses_them() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let (status, answer) = server.post(CHAT, body(json!({}))).await;
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("tools")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("template has no tools"), "{answer}");
    let (status, _) = server.post(CHAT, body(json!({"tool_choice": "none"}))).await;
    assert_eq!(status.as_u16(), 200);
    let (status, answer) = server.post(CHAT, body(json!({"tool_choice": "required"}))).await;
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("tool_choice")), "{answer}");
}
