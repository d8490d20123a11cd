//! Servers that behave as others do, and what is measured of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::json;
use tokio::sync::Mutex as Turn;

use super::*;

/// Between two pieces of an answer: streams that begin at the same time run at the same time, also on a busy machine.
const PACE: Duration = Duration::from_millis(15);

/// How a server behaves.
#[derive(Clone)]
struct Behaviour {
    models: Vec<&'static str>,
    /// The least that it wants to be told.
    key: Option<&'static str>,
    has_completions: bool,
    takes_ids: bool,
    /// A parameter that it refuses by name.
    refuses: Option<&'static str>,
    /// Tokens that it sends at once.
    at_once: usize,
    counts: bool,
    /// The most tokens of an answer, where its model ends it.
    ends_after: Option<usize>,
    one_after_another: bool,
    /// What it sends at the end.
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Done,
    /// It closes the stream after the answer's last event.
    Closes,
    /// It fails in the middle.
    Fails,
    /// It is gone in the middle.
    Breaks,
    /// It says nothing more but that it is there.
    Hangs,
}

/// As llama-server and vLLM are.
fn full() -> Behaviour {
    Behaviour {
        models: vec!["m"],
        key: None,
        has_completions: true,
        takes_ids: true,
        refuses: None,
        at_once: 1,
        counts: true,
        ends_after: None,
        one_after_another: false,
        end: End::Done,
    }
}

#[derive(Clone)]
struct Server {
    behaviour: Behaviour,
    asked: Arc<Mutex<Vec<Value>>>,
    turn: Arc<Turn<()>>,
}

impl Server {
    async fn start(behaviour: Behaviour) -> (Server, String) {
        let server = Server { behaviour, asked: Arc::default(), turn: Arc::default() };
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/completions", post(answer))
            .route("/v1/chat/completions", post(answer))
            .with_state(server.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (server, url)
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

async fn models(State(server): State<Server>, headers: HeaderMap) -> Response {
    if let Some(refused) = refuse_stranger(&server, &headers) {
        return refused;
    }
    let models: Vec<Value> =
        server.behaviour.models.iter().map(|id| json!({"id": id, "object": "model"})).collect();
    axum::Json(json!({"object": "list", "data": models})).into_response()
}

fn refuse_stranger(server: &Server, headers: &HeaderMap) -> Option<Response> {
    let key = server.behaviour.key?;
    let told = headers.get(header::AUTHORIZATION).and_then(|told| told.to_str().ok());
    let refused = (StatusCode::UNAUTHORIZED, axum::Json(json!({"error": "Unauthorized"}))).into_response();
    (told != Some(&format!("Bearer {key}"))).then_some(refused)
}

async fn answer(
    State(server): State<Server>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    axum::Json(body): axum::Json<Value>,
) -> Response {
    let behaviour = server.behaviour.clone();
    server.asked.lock().unwrap().push(body.clone());
    let refused = |status: StatusCode, body: Value| (status, axum::Json(body)).into_response();
    if let Some(refused) = refuse_stranger(&server, &headers) {
        return refused;
    }
    let is_chat = uri.path().contains("chat");
    if !is_chat && !behaviour.has_completions {
        return (StatusCode::NOT_FOUND, "404: Not Found").into_response();
    }
    if body["prompt"].is_array() && !behaviour.takes_ids {
        // As Ollama says it.
        let message =
            "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string";
        return refused(
            StatusCode::BAD_REQUEST,
            json!({"error": {"message": message, "type": "invalid_request_error"}}),
        );
    }
    if let Some(name) = behaviour.refuses.filter(|name| body.get(*name).is_some()) {
        // As FastAPI says it.
        let detail = json!([{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]);
        return refused(StatusCode::UNPROCESSABLE_ENTITY, json!({"detail": detail}));
    }
    let turn = match behaviour.one_after_another {
        true => Some(Arc::clone(&server.turn).lock_owned().await),
        false => None,
    };
    let events = events(&behaviour, is_chat, &body);
    let body = stream::unfold((events, turn, behaviour.end), |(mut events, turn, end)| async move {
        tokio::time::sleep(PACE).await;
        match (events.pop_front(), end) {
            (Some(event), _) => Some((Ok::<_, std::io::Error>(event), (events, turn, end))),
            (None, End::Hangs) => Some((Ok(Bytes::from_static(b": still here\n\n")), (events, turn, end))),
            // A body that fails ends its connection in the middle.
            (None, End::Breaks) => Some((Err(std::io::Error::other("gone")), (events, turn, End::Done))),
            (None, _) => None,
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}

/// All that an answer sends.
fn events(behaviour: &Behaviour, is_chat: bool, body: &Value) -> VecDeque<Bytes> {
    let wanted = body["max_tokens"].as_u64().unwrap() as usize;
    let tokens = behaviour.ends_after.map_or(wanted, |most| wanted.min(most));
    let prompt = match (&body["prompt"], &body["messages"][0]["content"]) {
        (Value::Array(ids), _) => ids.len(),
        (Value::String(text), _) => text.split_whitespace().count(),
        // A template takes tokens, too.
        (_, content) => 10 + content.as_str().unwrap().split_whitespace().count(),
    };
    let event = |event: Value| Bytes::from(format!("data: {event}\n\n"));
    let piece = |text: &str, reason: Option<&str>| {
        let mut choice = json!({"index": 0, "finish_reason": reason});
        if is_chat {
            choice["delta"] = json!({"content": text});
        } else {
            choice["text"] = json!(text);
        }
        event(json!({"object": "chunk", "choices": [choice], "usage": null}))
    };
    let broken = matches!(behaviour.end, End::Fails | End::Breaks | End::Hangs);
    let sent = if broken { tokens / 2 } else { tokens };
    let mut events = VecDeque::new();
    if is_chat {
        events.push_back(event(
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}),
        ));
    }
    events.extend((0..sent.div_ceil(behaviour.at_once)).map(|_| piece(" word", None)));
    match behaviour.end {
        End::Fails => events.push_back(event(json!({"error": {"message": "CUDA out of memory"}}))),
        End::Breaks | End::Hangs => {}
        End::Done | End::Closes => {
            events.push_back(piece("", Some(if tokens < wanted { "stop" } else { "length" })));
            if behaviour.counts && body["stream_options"]["include_usage"] == true {
                let usage = json!({"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens});
                events.push_back(event(json!({"choices": [], "usage": usage})));
            }
            if behaviour.end == End::Done {
                events.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            }
        }
    }
    events
}

fn settings(vocabulary: u32) -> OtherSettings {
    OtherSettings { vocabulary, silence: Duration::from_secs(20), ..OtherSettings::default() }
}

fn load() -> [Test; 3] {
    let decode = |streams| Test { kind: TestKind::Decode { tokens: 24, depth: 1 }, streams };
    [decode(1), decode(4), Test { kind: TestKind::Prompt { tokens: 96 }, streams: 1 }]
}

const QUANTITIES: [Quantity; 4] = [
    Quantity::Decode { streams: 1 },
    Quantity::Decode { streams: 4 },
    Quantity::Prompt { tokens: 96 },
    Quantity::Ttft { tokens: 96 },
];

fn check(measured: &Measured, quantities: &[Quantity]) {
    let found: Vec<Quantity> = measured.figures.iter().map(|(quantity, _)| *quantity).collect();
    assert_eq!(found, quantities, "{measured:?}");
    assert!(measured.figures.iter().all(|(_, value)| value.is_finite() && *value > 0.0), "{measured:?}");
}

async fn refused(behaviour: Behaviour, settings: OtherSettings) -> (OtherError, String) {
    let (_, url) = Server::start(behaviour).await;
    (Other::find(&url, settings).await.unwrap_err(), url)
}

#[tokio::test]
async fn a_server_that_takes_everything_is_asked_with_token_ids() {
    let (server, url) = Server::start(Behaviour { at_once: 2, ..full() }).await;
    let mut other = Other::find(&format!("{url}/v1/"), settings(1000)).await.unwrap();
    assert_eq!((other.url(), other.model(), other.notes()), (url.as_str(), "m", Vec::new()));
    other.warm_up(&load()).await.unwrap();
    let before = server.asked().len();
    let measured = other.measure(&load()).await.unwrap();
    check(&measured, &QUANTITIES);
    assert_eq!(measured.notes, Vec::<String>::new());
    let asked = &server.asked()[before..];
    assert_eq!(asked.len(), 6);
    assert_eq!((&asked[0]["ignore_eos"], &asked[0]["min_tokens"]), (&true.into(), &24.into()));
    let lengths: Vec<usize> = asked.iter().map(|body| body["prompt"].as_array().unwrap().len()).collect();
    assert_eq!(lengths, [1, 1, 1, 1, 1, 96]);
    let seeds: std::collections::BTreeSet<u64> =
        asked.iter().map(|body| body["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds.len(), 6, "streams do not say the same");
}

#[test]
fn rounds_come_to_samples_by_the_quantity() {
    let round = |value| Measured {
        figures: vec![(QUANTITIES[0], value), (QUANTITIES[3], value * 2.0)],
        notes: Vec::new(),
    };
    let samples = samples(&[round(1.0), round(3.0), Measured::default()]);
    assert_eq!(
        samples.into_iter().collect::<Vec<_>>(),
        [(QUANTITIES[0], vec![1.0, 3.0]), (QUANTITIES[3], vec![2.0, 6.0])]
    );
}

#[tokio::test]
async fn one_that_takes_text_alone_and_ends_answers_is_measured_by_what_comes() {
    let ollama = Behaviour { takes_ids: false, ends_after: Some(12), one_after_another: true, ..full() };
    let (server, url) = Server::start(ollama).await;
    let mut other = Other::find(&url, settings(1000)).await.unwrap();
    assert!(other.notes()[0].contains("takes no token ids"), "{:?}", other.notes());
    let measured = other.measure(&load()).await.unwrap();
    check(&measured, &QUANTITIES);
    assert_eq!(measured.notes.len(), 1, "{measured:?}");
    assert!(
        measured.notes[0].contains("with 4 streams") && measured.notes[0].contains("one after another"),
        "{measured:?}"
    );
    let last = server.asked().pop().unwrap();
    assert_eq!(last["prompt"].as_str().unwrap().split(' ').count(), 96, "a word is a token to it");
}

#[tokio::test]
async fn one_without_completions_is_asked_in_chats() {
    let exo = Behaviour {
        has_completions: false,
        models: vec!["a", "b", "c"],
        counts: false,
        end: End::Closes,
        refuses: Some("min_tokens"),
        ..full()
    };
    let (error, url) = refused(exo.clone(), settings(0)).await;
    assert_eq!(
        error.to_string(),
        format!("{url}/v1/models lists 3 models (a, b, c): give the model's name there with --against-model")
    );
    let (server, url) = Server::start(exo).await;
    let named = OtherSettings { model: Some("b".to_owned()), ..settings(1000) };
    let mut other = Other::find(&url, named).await.unwrap();
    let notes = other.notes().join("\n");
    assert!(notes.contains("asked in chats") && notes.contains("does not count tokens"), "{notes}");
    check(&other.measure(&load()).await.unwrap(), &QUANTITIES);
    let last = server.asked().pop().unwrap();
    assert_eq!(
        (&last["model"], &last["min_tokens"], &last["ignore_eos"]),
        (&"b".into(), &Value::Null, &true.into())
    );
}

#[tokio::test]
async fn a_template_s_tokens_are_taken_off_the_prompt() {
    let (server, url) = Server::start(Behaviour { has_completions: false, ..full() }).await;
    let mut other = Other::find(&url, settings(1000)).await.unwrap();
    check(&other.measure(&load()).await.unwrap(), &QUANTITIES);
    let last = server.asked().pop().unwrap();
    let words = last["messages"][0]["content"].as_str().unwrap().split_whitespace().count();
    assert_eq!(10 + words, 96, "{last:#}");
}

#[tokio::test]
async fn answers_that_are_too_short_are_left_out_with_the_reason() {
    let (_, url) = Server::start(Behaviour { ends_after: Some(3), ..full() }).await;
    let mut other = Other::find(&url, settings(1000)).await.unwrap();
    let measured = other.measure(&load()).await.unwrap();
    check(&measured, &QUANTITIES[2..]);
    assert_eq!(measured.notes.len(), 2, "{measured:?}");
    assert!(measured.notes[0].contains("ended after 3 of 24 tokens (stop)"), "{measured:?}");
}

#[tokio::test]
async fn a_key_is_asked_for_and_given() {
    let locked = Behaviour { key: Some("secret"), ..full() };
    let (error, url) = refused(locked.clone(), settings(1000)).await;
    let text = error.to_string();
    assert_eq!(text, format!("{url}/v1/models answered 401: Unauthorized; give its key with --against-key"));
    let (_, url) = Server::start(locked).await;
    let with_key = OtherSettings { api_key: Some("secret".to_owned()), ..settings(1000) };
    let mut other = Other::find(&url, with_key).await.unwrap();
    check(&other.measure(&load()).await.unwrap(), &QUANTITIES);
}

#[tokio::test]
async fn failures_name_the_url_and_what_had_come() {
    for (end, part) in [
        (End::Fails, "broke off after 12 tokens: CUDA out of memory"),
        (End::Breaks, "broke off after 12 tokens: "),
        (End::Hangs, "sent nothing for 1 s after 12 tokens"),
    ] {
        let (mut server, url) = Server::start(full()).await;
        let settings = OtherSettings { silence: Duration::from_millis(1500), ..settings(1000) };
        let mut other = Other::find(&url, settings).await.unwrap();
        server.behaviour.end = end;
        let (_, ill) = Server::start(server.behaviour).await;
        other.url.clone_from(&ill);
        let error = other.measure(&load()[..1]).await.unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(&format!("{ill}/v1/completions")), "{error}");
    }
    let (error, url) = refused(Behaviour { models: Vec::new(), ..full() }, settings(1000)).await;
    assert_eq!(
        error.to_string(),
        format!("{url}/v1/models lists no model: give the model's name there with --against-model")
    );
}

#[tokio::test]
async fn what_is_no_server_is_said() {
    for url in ["", "host:1", "https://host", "ftp://host", "http://host/?a=b"] {
        let error = Other::find(url, settings(0)).await.unwrap_err();
        assert!(matches!(error, OtherError::BadUrl { .. }), "{url}: {error}");
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Other::find(&url, settings(0)).await.unwrap_err();
    assert!(matches!(error, OtherError::Unreachable { .. }) && error.to_string().contains(&url), "{error}");

    // A web server that is something else.
    let page = Router::new().fallback(|| async { "<html>hello</html>" });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, page).await });
    let error = Other::find(&url, settings(0)).await.unwrap_err();
    assert!(matches!(error, OtherError::Malformed { .. }), "{error}");
    let named = OtherSettings { model: Some("m".to_owned()), ..settings(0) };
    let error = Other::find(&url, named).await.unwrap_err().to_string();
    assert!(error.contains("does it stream"), "{error}");
}
