//! Requests are traced: a collector gets a span for each part of a sampled request, and one that is away disturbs nobody.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use brigade_tests::http::Client;
use brigade_tests::serve::Served;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Within this a trace has been posted.
const POSTED: Duration = Duration::from_secs(20);
/// What a caller sends with its request.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
/// Stands in the prompt.
const MARK: &str = "zanzibarquokka7719";

/// A collector of OTLP over HTTP: its address, and what is posted to it.
async fn collector() -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("it has an address"));
    let (sender, posted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, sender.clone()));
        }
    });
    (address, posted)
}

async fn answer(mut stream: TcpStream, posted: mpsc::UnboundedSender<Value>) {
    let mut read = Vec::new();
    loop {
        let head = read.windows(4).position(|four| four == b"\r\n\r\n");
        let length = head.map(|head| {
            let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
            assert!(text.starts_with("post /v1/traces "), "{text}");
            assert!(text.contains("content-type: application/json"), "{text}");
            let length: Option<usize> =
                text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            head + 4 + length.unwrap_or_else(|| panic!("no length: {text}"))
        });
        if let (Some(head), Some(end)) = (head, length.filter(|end| read.len() >= *end)) {
            let _ = posted.send(serde_json::from_slice(&read[head + 4..end]).expect("a body in JSON"));
            read.drain(..end);
            let reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(reply).await.expect("the client reads");
            continue;
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(count) => read.extend_from_slice(&piece[..count]),
        }
    }
}

async fn ask(client: &Client, parent: Option<&str>) -> Value {
    let request = json!({
        "model": client.model().await,
        "messages": [{ "role": "user", "content": format!("Tell me of the {MARK}.") }],
        "temperature": 0,
        "max_tokens": 12,
        "ignore_eos": true,
    });
    let headers: Vec<(&str, String)> =
        parent.map(|parent| ("traceparent", parent.to_owned())).into_iter().collect();
    let response =
        client.begin_with("/v1/chat/completions", request.to_string().into_bytes(), &headers).await;
    assert_eq!(response.status().as_u16(), 200);
    response.json().await.expect("an answer in JSON")
}

fn number(value: &Value) -> u128 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no number: {value}"))
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().expect("attributes");
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    &found.unwrap_or_else(|| panic!("no {key} in {span:#}"))["value"]
}

#[tokio::test]
async fn a_request_is_one_trace_with_its_callers_ids() {
    let (address, mut posted) = collector().await;
    let mut served =
        Served::start(&["--ctx", "256", "--min-workers", "2", "--otlp", &address, "--otlp-sample", "0"]);
    let [_anna, _ben] = ["anna", "ben"].map(|name| served.join(name, "128MiB"));
    let client = served.client();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a set clock").as_nanos();
    // By its share nothing is traced, and what its caller does not trace isn't, either.
    ask(&client, None).await;
    ask(&client, Some(&format!("00-{TRACE}-{SPAN}-00"))).await;
    let before = now();
    let answer = ask(&client, Some(&format!("00-{TRACE}-{SPAN}-01"))).await;
    let after = now();
    let posted =
        tokio::time::timeout(POSTED, posted.recv()).await.expect("a trace in time").expect("a trace");

    assert!(!posted.to_string().contains(MARK), "the prompt was sent: {posted:#}");
    let resource = &posted["resourceSpans"][0];
    assert_eq!(attribute(&resource["resource"], "service.name")["stringValue"], "brigade");
    let spans = resource["scopeSpans"][0]["spans"].as_array().expect("spans");
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().expect("a name")).collect();
    let model = client.model().await;
    let root_name = format!("chat {model}");
    assert_eq!(names, [root_name.as_str(), "queue", "prefill", "decode", "stage 0", "stage 1"]);
    let root = &spans[0];
    assert_eq!((&root["parentSpanId"], &root["kind"]), (&SPAN.into(), &2.into()));
    assert_eq!(attribute(root, "gen_ai.request.model")["stringValue"], model.as_str());
    assert_eq!(attribute(root, "gen_ai.usage.output_tokens")["intValue"], "12");
    let prompt = answer["usage"]["prompt_tokens"].as_u64().expect("a count").to_string();
    assert_eq!(attribute(root, "gen_ai.usage.input_tokens")["intValue"], prompt.as_str());
    let reasons = attribute(root, "gen_ai.response.finish_reasons");
    assert_eq!(reasons["arrayValue"]["values"][0]["stringValue"], "length");
    let (from, to) = (number(&root["startTimeUnixNano"]), number(&root["endTimeUnixNano"]));
    assert!(before <= from && to <= after, "{from} to {to} is not within {before} to {after}");
    let mut ids: Vec<&str> = spans.iter().map(|span| span["spanId"].as_str().expect("an id")).collect();
    for span in &spans[1..] {
        assert_eq!(span["parentSpanId"], root["spanId"], "{span:#}");
        let (start, end) = (number(&span["startTimeUnixNano"]), number(&span["endTimeUnixNano"]));
        assert!(from <= start && start <= end && end <= to, "{span:#} is not within {from} to {to}");
    }
    for (span, worker) in spans[4..].iter().zip(["anna", "ben"]) {
        let named = attribute(span, "brigade.worker")["stringValue"].as_str().expect("a name");
        assert!(["anna", "ben"].contains(&named), "{worker}: {span:#}");
        assert!(attribute(span, "brigade.steps")["intValue"].as_str().is_some_and(|n| n != "0"), "{span:#}");
    }
    assert!(spans.iter().all(|span| span["traceId"] == TRACE), "{spans:#?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), spans.len(), "each span has an id of its own");
    assert!(ids.iter().all(|id| id.len() == 16), "{ids:?}");
}

#[tokio::test]
async fn a_collector_that_is_away_disturbs_no_request() {
    // A port that nobody listens on.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("it has an address"));
    drop(listener);
    let mut served = Served::start(&["--ctx", "256", "--otlp", &address, "--otlp-sample", "1"]);
    let _worker = served.join("anna", "160MiB");
    let client = served.client();
    for _ in 0..3 {
        ask(&client, None).await;
    }
    let deadline = std::time::Instant::now() + POSTED;
    while client.metric("brigade_traces_dropped_total").await < 3 {
        assert!(std::time::Instant::now() < deadline, "dropped traces are not counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.process.signal(libc::SIGINT);
    let (status, output) = served.process.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{output}");
    assert_eq!(output.matches("traces are dropped").count(), 1, "{output}");
}
