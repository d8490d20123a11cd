//! Clients that leave, and a server that ends.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use brigade_coordinator::client::{Client, ClientError};
use brigade_coordinator::compare::choices::ChoiceLoads;
use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Server, events_of, eventually};
use crate::engine::{Act, ScriptedEngine, draw};
use crate::model::bytes;

/// Says "ab" and then nothing more.
fn hanging() -> ScriptedEngine {
    ScriptedEngine::new(|_| [draw(&bytes("ab")), vec![Act::Hang]].concat())
}

fn cancelled(engine: &ScriptedEngine) -> usize {
    engine.cancelled.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_its_generation() {
    let engine = hanging();
    let server = Server::start(engine.clone()).await;
    let response = server.send("/v1/completions", json!({"prompt": ["a", "b"], "stream": true})).await;
    let mut body = response.bytes_stream();
    body.next().await.unwrap().unwrap();
    assert_eq!((engine.running.load(Ordering::SeqCst), cancelled(&engine)), (2, 0));
    drop(body);
    eventually("both generations are cancelled", || cancelled(&engine) == 2).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_cancels_its_generation() {
    let engine = hanging();
    let server = Server::start(engine.clone()).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let body = json!({"prompt": "a"}).to_string();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    eventually("the generation runs", || engine.running.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    eventually("the generation is cancelled", || cancelled(&engine) == 1).await;
}

#[tokio::test]
async fn shutdown_ends_streams_with_an_error_and_all_connections_within_a_second() {
    let engine = hanging();
    let server = Server::start(engine.clone()).await;
    let mut idle = TcpStream::connect(server.addr).await.unwrap();
    let mut half = TcpStream::connect(server.addr).await.unwrap();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: loc").await.unwrap();
    let stream = server.send("/v1/completions", json!({"prompt": "a", "stream": true})).await;
    let whole = tokio::spawn({
        let request = server.request(reqwest::Method::POST, "/v1/completions").body(r#"{"prompt": "a"}"#);
        request.send()
    });
    eventually("both generations run", || engine.running.load(Ordering::SeqCst) == 2).await;

    let start = Instant::now();
    server.shutdown.cancel();
    let events = events_of(&stream.text().await.unwrap());
    assert_eq!(events.last().unwrap()["error"]["code"], "shutting_down", "{events:?}");
    let answer = whole.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "shutting_down");
    let addr = server.addr;
    server.task.await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "shutdown took {:?}", start.elapsed());

    eventually("the generations are cancelled", || cancelled(&engine) == 2).await;
    for connection in [&mut idle, &mut half] {
        let closed = connection.read(&mut [0; 64]).await;
        assert!(matches!(&closed, Ok(0)) || closed.is_err(), "{closed:?}");
    }
    let refused = TcpStream::connect(addr).await.map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn a_slow_client_does_not_hold_up_the_others() {
    let engine = ScriptedEngine::new(|request| {
        let wait = if request.prompt == bytes("slow") { 300 } else { 0 };
        [vec![Act::Wait(Duration::from_millis(wait))], draw(&bytes("ok"))].concat()
    });
    let server = Server::start(engine).await;
    let slow = server.complete(json!({"prompt": "slow"}));
    let fast = async {
        let start = Instant::now();
        for _ in 0..5 {
            server.complete(json!({"prompt": "fast"})).await;
        }
        start.elapsed()
    };
    let (_, took) = tokio::join!(slow, fast);
    assert!(took < Duration::from_millis(250), "five short requests took {took:?}");
}

#[tokio::test]
async fn the_plan_is_pinned_and_the_pin_is_taken_back() {
    let server = Server::start(ScriptedEngine::saying(vec![])).await;
    let client = Client::new(&format!("http://{}", server.addr), None).unwrap();
    client.pin(&["w1".to_owned()], &[], None).await.unwrap();
    assert_eq!(client.status().await.unwrap().pinned, ["w1"]);
    assert_eq!(client.status().await.unwrap().pinned_by, None);
    client.unpin().await.unwrap();
    client.clone().named("anna").pin(&["w1".to_owned()], &[], None).await.unwrap();
    assert_eq!(client.status().await.unwrap().pinned_by.as_deref(), Some("anna"));
    client.unpin().await.unwrap();
    assert!(client.status().await.unwrap().pinned.is_empty());
    for (worker, status, code) in [("w2", 409, "no_room"), ("w3", 404, "worker_not_found")] {
        let refused = client.pin(&[worker.to_owned()], &[], None).await.unwrap_err();
        let said = refused.to_string();
        let ClientError::Refused { status: found, code: told, .. } = refused else { panic!("{said}") };
        assert_eq!((found, told.as_deref()), (status, Some(code)), "{said}");
    }
    let loads = ChoiceLoads { streams: vec![1, 8], prompts: vec![64, 512], context: 10 };
    assert_eq!(client.choices(&loads).await.unwrap().left_out, ["asked of 4 loads"]);
}
