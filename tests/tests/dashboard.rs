//! The dashboard in a real browser: a cluster that talks and loses a worker, a coordinator that goes and comes back, keys,
//! phones, and pages of large clusters.
//!
//! `BRIGADE_PICTURES=1` writes the pictures of the README anew.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brigade_coordinator::status::MOST_ACTIVE;
use brigade_tests::browser::Browser;
use brigade_tests::cluster::STOP;
use brigade_tests::pages::{BARRIERS, PHONE, THERE, Trials, check};
use brigade_tests::serve::Served;
use brigade_tests::setup;
use brigade_tests::stream::Streaming;
use brigade_tests::three::{Cluster, END, requests};
use libtest_mimic::Failed;
use serde_json::{Value, json};

/// Within this the page shows what happens to a worker.
const SHOWN: Duration = Duration::from_secs(5);
/// The most that a page's update may keep its thread busy.
const UPDATE_MS: f64 = 50.0;
/// The largest picture: they lie in the repository.
const PICTURE_BYTES: u64 = 150_000;
/// How large a window the pictures show.
const WINDOW: (u32, u32) = (1280, 960);
/// For how long a cluster has worked on the pictures that are kept, so that there is something on the charts.
const CHARTED: Duration = Duration::from_secs(15);
/// Tokens of what runs beside the chat: more than are computed meanwhile.
const LONG_TOKENS: u32 = 1500;

/// How long the page takes to show the state of 16 workers and 200 requests, some of which change each time, in
/// milliseconds; the layout is included.
const UPDATES: &str = include_str!("../browser/updates.js");

fn main() {
    Trials::of("the dashboard")
        .plain("browsers_get_the_page_and_the_stream_ends_with_the_server", plain)
        .seen("the_page_shows_a_cluster_that_talks_and_loses_a_worker", living)
        .seen("a_page_without_coordinator_says_so_and_comes_back", coming_back)
        .seen("the_page_asks_for_a_key_where_there_are_any", keys)
        .seen("a_page_of_16_workers_and_200_requests_is_updated_at_once", large)
        .run()
}

async fn plain() -> Result<(), Failed> {
    let mut served = Served::start(&[]);
    let client = served.early_client();
    let text = client.begin_get("/", &[]).await.text().await?;
    check(text.starts_with("Brigade ") && text.contains("/api/stream"), text)?;
    let page = client.begin_get("/", &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")]).await;
    let policy = page.headers()["content-security-policy"].to_str()?.to_owned();
    check(policy.contains("default-src 'none'") && !policy.contains("unsafe"), policy)?;
    check(page.headers()["x-content-type-options"] == "nosniff", "browsers may guess what files are")?;
    check(page.text().await?.starts_with("<!doctype html>"), "no page")?;
    let script = client.begin_get("/assets/app.js", &[]).await;
    check(script.headers()["content-type"] == "text/javascript; charset=utf-8", "scripts have their type")?;
    let tag = script.headers()["etag"].to_str()?.to_owned();
    let again = client.begin_get("/assets/app.js", &[("if-none-match", &tag)]).await;
    check(again.status() == 304, "a file that the browser has is sent again")?;
    check(client.get("/assets/nothing.js").await.status == 404, "what there is not is 404")?;

    let mut stream = client.begin_get("/api/stream", &[]).await;
    let mut told = String::new();
    let start = Instant::now();
    while told.matches("event: status\n").count() < 3 {
        let chunk = tokio::time::timeout(THERE, stream.chunk()).await??.ok_or("the stream has ended")?;
        told.push_str(&String::from_utf8_lossy(&chunk));
    }
    // The first at once, and then one each two seconds while nothing happens.
    check(start.elapsed() < Duration::from_secs(6), format!("three states took {:?}", start.elapsed()))?;
    let state = told.lines().find_map(|line| line.strip_prefix("data: ")).ok_or("no data")?;
    let state: Value = serde_json::from_str(state)?;
    check(state["phase"] == "waiting", format!("{state:#}"))?;
    served.process.signal(libc::SIGINT);
    while let Ok(Some(_)) = tokio::time::timeout(STOP, stream.chunk()).await? {}
    served.process.wait(STOP);
    Ok(())
}

async fn living() -> Result<(), Failed> {
    let mut cluster = Cluster::start("256MiB", &["--ctx", "2048", "--parallel", "4"]).await;
    let browser = Browser::start().await;
    browser.show_as(WINDOW.0, WINDOW.1, "light").await;
    browser.open(cluster.client.url()).await;
    let all_ok = "return document.querySelectorAll('#shards .card[data-state=ok]').length === 3";
    browser.wait_for("three shards that are ok", THERE, all_ok).await;
    let pill = browser.text("#health").await.unwrap_or_default();
    check(pill.ends_with("ok"), pill)?;

    let mut streams = Vec::new();
    for mut request in requests(None).into_iter().skip(1).take(2) {
        request["max_tokens"] = json!(LONG_TOKENS);
        streams.push(Streaming::start(&cluster.client, &cluster.model, request).await);
    }
    browser.type_into("#chat-input", "What is the capital of France? Answer in one sentence.\n").await;
    let figures = "return document.getElementById('chat-stop').hidden && document.querySelector('.assistant .figures-line')?.innerText";
    let figures = browser.wait_for("a whole answer", END, figures).await;
    println!("  {figures}");
    check(figures.as_str().is_some_and(|text| text.starts_with("first token after")), figures.to_string())?;
    let drawn = "return document.querySelectorAll('#topology .moving .link:not(.broken) .flow').length === 4 \
                 && document.querySelectorAll('#timeline path.decode').length > 30";
    browser.wait_for("steps that move", THERE, drawn).await;
    pictures(&browser).await?;

    let answer = "return (document.querySelector('.message.assistant .said')?.textContent.length ?? 0)";
    let long_story = async || {
        browser.click("#chat-new").await;
        browser.type_into("#chat-input", "Write a very long story about a bucket brigade.\n").await;
        browser.wait_for("an answer that streams", THERE, &format!("{answer} > 40")).await;
    };
    long_story().await;
    let length = browser.eval(answer).await.as_u64().unwrap_or_default();
    let victim = cluster.holder(1).await;
    let name = victim.name().to_owned();
    let killed = Instant::now();
    victim.kill();
    let gone = format!(
        "return document.querySelector('.card[data-worker={name}][data-state=unreachable]') !== null"
    );
    browser.wait_for("the worker as unreachable", SHOWN, &gone).await;
    println!("  a killed worker is shown as unreachable after {:.2?}", killed.elapsed());
    // A short story ends; that it was not broken off is seen by what the chat shows.
    let goes_on = format!("{answer} > {} || document.getElementById('chat-stop').hidden", length + 40);
    browser.wait_for("the answer's next words", THERE, &goes_on).await;
    let alert = browser.text("#chat-log .error").await;
    check(alert.is_none(), format!("the chat shows an error: {alert:?}"))?;
    // They compute what three did, and may be called slow.
    let whole = "return document.querySelectorAll('#shards .card:is([data-state=ok], [data-state=slow])').length === 2 \
                 && document.querySelectorAll('.link.broken').length === 0";
    browser.wait_for("two shards that serve", THERE, whole).await;
    // The story may have come to its end meanwhile: then there is nothing to stop but another one.
    if browser.eval("return document.getElementById('chat-stop').hidden").await == json!(true) {
        long_story().await;
    }
    browser.click("#chat-stop").await;
    let figures = "const line = document.querySelector('.assistant .figures-line').innerText; \
                   return line.includes('stopped') && line";
    let figures = browser.wait_for("the answer's figures", SHOWN, figures).await;
    println!("  {figures}");
    check(
        figures.as_str().is_some_and(|text| text.contains("first token after") && text.contains("tokens/s")),
        figures.to_string(),
    )?;
    let alert = browser.text("#chat-log .error").await;
    check(alert.is_none(), format!("the chat shows an error: {alert:?}"))?;
    for stream in streams {
        let error = stream.so_far().error;
        check(error.is_none(), format!("a stream beside the page broke off: {error:?}"))?;
    }

    for scheme in ["light", "dark"] {
        browser.show_as(PHONE.0, PHONE.1, scheme).await;
        let width = "return [document.documentElement.scrollWidth, innerWidth]";
        let width = browser.eval(width).await;
        check(width == json!([PHONE.0, PHONE.0]), format!("the page is as wide as {width}"))?;
        let barriers = browser.eval(BARRIERS).await;
        check(barriers == json!([]), format!("{scheme}: {barriers:#}"))?;
    }
    browser.picture(&picture_file("phone")).await;
    let errors = browser.errors().await;
    check(errors.is_empty(), format!("the page complains: {errors:#?}"))?;
    browser.quit().await;
    Ok(())
}

/// Pictures of a cluster at work, light and dark.
async fn pictures(browser: &Browser) -> Result<(), Failed> {
    let keep = std::env::var("BRIGADE_PICTURES").is_ok_and(|value| value == "1");
    if keep {
        tokio::time::sleep(CHARTED).await;
    }
    for scheme in ["light", "dark"] {
        let file = picture_file(scheme);
        browser.show_as(WINDOW.0, WINDOW.1, scheme).await;
        browser
            .eval("return new Promise((done) => requestAnimationFrame(() => setTimeout(done, 400)))")
            .await;
        browser.picture(&file).await;
        let bytes = std::fs::metadata(&file)?.len();
        check(bytes < PICTURE_BYTES, format!("{} has {bytes} bytes", file.display()))?;
        if keep {
            let folder = setup::repository().join("docs/pictures");
            std::fs::create_dir_all(&folder)?;
            std::fs::copy(&file, folder.join(Path::new(file.file_name().ok_or("no name")?)))?;
        }
    }
    Ok(())
}

fn picture_file(name: &str) -> PathBuf {
    setup::target_folder().join(format!("dashboard-{name}.png"))
}

async fn coming_back() -> Result<(), Failed> {
    let mut served = Served::start(&[]);
    let client = served.early_client();
    let browser = Browser::start().await;
    browser.open(client.url()).await;
    let live = "return document.getElementById('live').innerText === 'live' && document.getElementById('lost').hidden";
    browser.wait_for("a connection", THERE, live).await;
    // The first state follows the connection, and is drawn with the next picture.
    let titled = "return document.title.startsWith('waiting for workers')";
    browser.wait_for("a title that says what is awaited", THERE, titled).await;
    served.kill();
    let lost =
        "return !document.getElementById('lost').hidden && document.getElementById('announcer').innerText";
    let said = browser.wait_for("that there is no connection", SHOWN, lost).await;
    check(said.as_str().is_some_and(|said| said.starts_with("No connection")), said.to_string())?;
    let _served = served.restart(&client);
    browser.wait_for("a connection again", THERE, live).await;
    browser.quit().await;
    Ok(())
}

async fn keys() -> Result<(), Failed> {
    let mut served = Served::start_in(&[], &[("BRIGADE_API_KEY", "open-sesame")]);
    let client = served.early_client();
    let browser = Browser::start().await;
    browser.open(client.url()).await;
    browser
        .wait_for("a question for the key", THERE, "return document.getElementById('key-dialog').open")
        .await;
    browser.type_into("#key-input", "wrong\n").await;
    let refused = "return document.getElementById('key-dialog').open && document.getElementById('key-reason').innerText.includes('not one of')";
    browser.wait_for("a refusal", THERE, refused).await;
    browser.type_into("#key-input", "open-sesame\n").await;
    let model = "return document.getElementById('model').innerText.includes('SmolLM2') && !document.getElementById('key-dialog').open";
    browser.wait_for("the model's name", THERE, model).await;
    browser.open(client.url()).await;
    browser.wait_for("the model's name, and no question", THERE, model).await;
    browser.quit().await;
    Ok(())
}

async fn large() -> Result<(), Failed> {
    let mut served = Served::start(&[]);
    let client = served.early_client();
    let browser = Browser::start().await;
    browser.show_as(1440, 900, "light").await;
    browser.open(client.url()).await;
    browser
        .wait_for(
            "the model's name",
            THERE,
            "return document.getElementById('model').innerText.includes('SmolLM2')",
        )
        .await;
    let body = UPDATES.replace("arguments[0]", &large_cluster(client.status().await).to_string());
    let before = browser.thread_seconds().await;
    let seen = browser.eval(&body).await;
    let update_ms =
        (browser.thread_seconds().await - before) * 1e3 / seen["updates"].as_f64().ok_or("no count")?;
    println!("  an update keeps the page's thread busy for {update_ms:.1} ms");
    check(seen["cards"] == 16 && seen["requests"] == MOST_ACTIVE && seen["steps"] == 40, seen.to_string())?;
    check(seen["pin"] == "Pinned to worker-3, worker-5 for 3 min by anna", seen.to_string())?;
    check(update_ms > 0.0 && update_ms < UPDATE_MS, format!("an update takes {update_ms:.1} ms"))?;
    browser.quit().await;
    Ok(())
}

/// A state as a cluster of 16 workers would have it, with 200 requests of which the status lists 64.
fn large_cluster(mut status: Value) -> Value {
    const WORKERS: u32 = 16;
    use brigade_coordinator::status::{
        ActiveRequest, Health, LinkStatus, StageStatus, StageTrace, StepTrace, WorkerStatus,
    };
    let workers = (0..WORKERS).map(|place| {
        let peer = if place + 1 == WORKERS { "coordinator".to_owned() } else { format!("w{}", place + 1) };
        let link = LinkStatus {
            peer_name: peer.clone(),
            peer,
            rtt_us: 200,
            sent_bytes_per_s: 1e6,
            ..LinkStatus::default()
        };
        let (id, name) = (format!("w{place}"), format!("worker-{place}"));
        let (state, device) = ("attached".into(), "cpu".into());
        WorkerStatus {
            id,
            name,
            state,
            device,
            budget_bytes: 64 << 20,
            links: vec![link],
            ..WorkerStatus::default()
        }
    });
    let stages = (0..WORKERS).map(|stage| StageStatus {
        stage,
        worker: format!("w{stage}"),
        name: format!("worker-{stage}"),
        layer_start: stage * 5,
        layer_end: stage * 5 + 5,
        loaded: 1.0,
        weight_bytes: 40 << 20,
        decode_us_p50: 900,
        health: Health::default(),
        ..StageStatus::default()
    });
    let active = (0..MOST_ACTIVE as u64).map(|id| ActiveRequest {
        id,
        state: if id % 3 == 0 { "waiting".into() } else { "decode".into() },
        prompt_tokens: 100,
        max_tokens: 512,
        ..ActiveRequest::default()
    });
    let steps = (0..40_u32).map(|step| StepTrace {
        step: u64::from(step) + 1,
        kind: "decode".into(),
        rows: 16,
        sent_ms: f64::from(step) * 10.0,
        took_us: 20_000,
        stages: (0..WORKERS)
            .map(|stage| StageTrace { came_us: stage * 1200, queued_us: 100, computed_us: 900 })
            .collect(),
    });
    status["phase"] = json!("serving");
    status["workers"] = json!(workers.collect::<Vec<_>>());
    status["stages"] = json!(stages.collect::<Vec<_>>());
    status["active"] = json!(active.collect::<Vec<_>>());
    status["pinned"] = json!(["worker-3", "worker-5"]);
    status["pinned_s"] = json!(190.0);
    status["pinned_by"] = json!("anna");
    status["requests"]["running"] = json!(150);
    status["requests"]["waiting"] = json!(50);
    json!({ "status": status, "steps": steps.collect::<Vec<_>>() })
}
