//! Keys, hosts and origins; the pages besides generating.

use brigade_coordinator::api::{ApiSettings, Engine};
use brigade_coordinator::planning::LiveDevices;
use brigade_coordinator::status::{ClusterStatus, Health, HealthState, Phase};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::Server;
use crate::engine::{CONTEXT, ScriptedEngine};
use crate::model::{MODEL, bytes};

#[tokio::test]
async fn keys_open_what_they_guard() {
    let settings = ApiSettings { api_keys: vec!["alpha".into(), "beta".into()], ..ApiSettings::default() };
    let server = Server::with(ScriptedEngine::saying(bytes("ok")), settings).await;
    for path in ["/v1/models", "/api/status", "/metrics", "/v1/no-such"] {
        let (status, answer) = server.get(path).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer["error"]["code"], "invalid_api_key", "{path}");
        let wrong = server.request(Method::GET, path).bearer_auth("gamma").send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(wrong.headers()["www-authenticate"], "Bearer", "{path}");
    }
    let post = server.send("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!(post.status(), StatusCode::UNAUTHORIZED);
    let right = server.request(Method::GET, "/v1/models").bearer_auth("beta").send().await.unwrap();
    assert_eq!(right.status(), StatusCode::OK);
    for path in ["/", "/health", "/readyz", "/livez"] {
        let open = server.request(Method::GET, path).header("host", "any.example").send().await.unwrap();
        assert_eq!(open.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn requests_with_different_keys_share_nothing() {
    let settings = ApiSettings { api_keys: vec!["alpha".into(), "beta".into()], ..ApiSettings::default() };
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::with(engine.clone(), settings).await;
    for key in ["alpha", "beta", "alpha"] {
        for (path, body) in [
            ("/v1/completions", json!({"prompt": "a"})),
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}]})),
        ] {
            let request = server.request(Method::POST, path).bearer_auth(key).body(body.to_string());
            assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
        }
    }
    let scopes: Vec<_> = engine.requests.lock().unwrap().iter().map(|request| request.scope).collect();
    assert!(scopes[0] == scopes[1] && scopes[2] == scopes[3] && scopes[0] != scopes[2], "{scopes:?}");
    assert_eq!(scopes[..2], scopes[4..]);
}

#[tokio::test]
async fn without_keys_web_pages_of_other_hosts_are_refused() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    for (name, value, status) in [
        ("host", "rebound.example", 403),
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("host", "localhost:1", 200),
        ("origin", "http://localhost:3000", 200),
    ] {
        let response = server.request(Method::GET, "/v1/models").header(name, value).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}: {value}");
    }
}

#[tokio::test]
async fn the_model_is_listed() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let entry = json!({
        "id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "brigade", "max_model_len": CONTEXT,
    });
    assert_eq!(server.get("/v1/models").await.1, json!({"object": "list", "data": [entry]}));
    assert_eq!(server.get(&format!("/v1/models/{MODEL}")).await, (StatusCode::OK, entry));
}

#[tokio::test]
async fn health_tells_whether_a_request_would_be_served() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let (status, answer) = server.get("/health").await;
    assert_eq!((status, &answer["status"]), (StatusCode::OK, &json!("ok")));
    assert_eq!(answer["health"]["state"], "ok");
    let ready = async || {
        let response = server.request(Method::GET, "/readyz").send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    assert_eq!(ready().await, (StatusCode::OK, "ok\n".to_owned()));
    // What is slow still serves.
    let reason = Some("stage 1 on w1: steps take 5 times as long".to_owned());
    engine.status.lock().unwrap().health = Health { state: HealthState::Slow, reason, advice: None };
    let (status, answer) = server.get("/health").await;
    assert_eq!((status, &answer["status"]), (StatusCode::OK, &json!("ok")));
    assert_eq!(answer["health"]["state"], "slow");
    let said = "ok\nslow: stage 1 on w1: steps take 5 times as long\n".to_owned();
    assert_eq!(ready().await, (StatusCode::OK, said));

    *engine.status.lock().unwrap() = ClusterStatus {
        phase: Phase::Waiting,
        reason: Some("needs 40.0 MiB more".to_owned()),
        ..ClusterStatus::default()
    };
    let response = server.request(Method::GET, "/health").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    let answer: serde_json::Value = response.json().await.unwrap();
    assert_eq!(answer["status"], "waiting");
    assert_eq!(answer["reason"], "needs 40.0 MiB more");
    let said = "not ready: needs 40.0 MiB more\n".to_owned();
    assert_eq!(ready().await, (StatusCode::SERVICE_UNAVAILABLE, said));
    for (path, name, prompt) in [
        ("/v1/completions", "prompt", json!("a")),
        ("/v1/chat/completions", "messages", json!([{"role": "user", "content": "a"}])),
    ] {
        let response = server.send(path, json!({name: prompt, "stream": true})).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(response.headers().contains_key("retry-after"), "{path}");
        let answer: serde_json::Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "not_ready", "{path}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("needs 40.0 MiB more"), "{answer}");
    }
    let livez = server.request(Method::GET, "/livez").send().await.unwrap();
    assert_eq!(livez.status(), StatusCode::OK);
}

#[tokio::test]
async fn status_metrics_and_index_answer() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let (_, answer) = server.get("/api/status").await;
    let status: ClusterStatus = serde_json::from_value(answer).unwrap();
    assert_eq!(status, *engine.status.lock().unwrap());
    let (_, answer) = server.get("/api/devices").await;
    let devices: LiveDevices = serde_json::from_value(answer).unwrap();
    assert_eq!(devices, engine.devices().await.unwrap());
    let metrics = server.request(Method::GET, "/metrics").send().await.unwrap();
    assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert_eq!(metrics.text().await.unwrap(), "# EOF\n");
    let index = server.request(Method::GET, "/").send().await.unwrap().text().await.unwrap();
    assert!(index.contains("Brigade") && index.contains("/v1/chat/completions"), "{index}");
}

#[tokio::test]
async fn workers_are_drained_by_name_and_taken_back() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let ask = async |method: Method, worker: &str| {
        let answer = server.request(method, &format!("/api/workers/{worker}/drain")).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap())
    };
    let done = |drain: bool| (200, json!({"id": "w1", "name": "w1", "drain": drain}));
    assert_eq!(ask(Method::POST, "w1").await, done(true));
    assert_eq!(ask(Method::DELETE, "w1").await, done(false));
    for (worker, status, code, says) in [
        ("w2", 409, "no_room", "2.0 GiB more are needed"),
        ("w9", 404, "worker_not_found", "there is w1, w2"),
    ] {
        let (seen, answer) = ask(Method::POST, worker).await;
        assert_eq!((seen, &answer["error"]["code"]), (status, &json!(code)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{answer}");
    }
    assert_eq!(ask(Method::GET, "w1").await.0, 405);
    let settings = ApiSettings { api_keys: vec!["k".into()], ..ApiSettings::default() };
    let guarded = Server::with(ScriptedEngine::saying(bytes("ok")), settings).await;
    let refused = guarded.request(Method::POST, "/api/workers/w1/drain").send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 401);
}

#[tokio::test]
async fn what_to_expect_is_told_for_a_load_while_a_plan_serves() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let (status, answer) = server.get("/api/forecast?streams=8&prompt=20&context=5").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer, json!({"decode_tokens_per_s": 8.0, "prompt_tokens_per_s": 20.0, "ttft_ms": 5.0}));
    let wrong = ["streams=0", "prompt=0", "prompt=4000000000", "context=4000000000", "streams=1,2"];
    for wrong in wrong {
        let (status, answer) = server.get(&format!("/api/forecast?{wrong}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}: {answer}");
    }
    engine.status.lock().unwrap().phase = Phase::Loading;
    let (status, answer) = server.get("/api/forecast?prompt=1").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
}
