//! `brigade models` as a user types it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use brigade_coordinator::render::ModelCard;
use serde_json::Value;

use crate::models::gguf;
use crate::program::{Outcome, brigade, outcome};
use crate::pulling::flip;
use crate::server::{PATIENCE, Server};

const HUB: &str = "hf:org/repo";
const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The program with `server` as its hub.
fn command(home: &Path, server: &Server, args: &[&str]) -> Command {
    let mut command = brigade(home, args);
    for name in PROXIES {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", server.url()).env_remove("HF_TOKEN");
    command
}

async fn run(home: &Path, server: &Server, args: &[&str]) -> Outcome {
    let mut command = command(home, server, args);
    tokio::task::spawn_blocking(move || outcome(&mut command)).await.unwrap()
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[tokio::test]
async fn a_model_is_pulled_listed_shown_checked_and_removed() {
    let server = Server::start().await;
    let model = gguf(4, 1);
    server.put("org/repo/Some-Model-Q4_K_M.gguf", model.clone());
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let run = async |args: &[&str]| run(home, &server, args).await;

    let empty = run(&["models", "ls"]).await;
    assert!(empty.code == Some(0) && empty.out.contains("`brigade models pull` brings one"), "{empty:?}");
    let pulled = run(&["models", "pull", HUB]).await;
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(
        pulled.out.contains("Some-Model-Q4_K_M: ") && pulled.out.contains("all fetched now"),
        "{pulled:?}"
    );
    assert!(pulled.err.contains("fetching ") && pulled.err.contains("checking "), "{pulled:?}");
    // Where workers look for it.
    let file = home.join(".local/share/brigade/models/Some-Model-Q4_K_M.gguf");
    assert!(std::fs::read(&file).unwrap() == model);

    let again = json(&run(&["models", "pull", HUB, "--json"]).await);
    assert_eq!(
        (again["fetched_bytes"].as_u64(), again["name"].as_str()),
        (Some(0), Some("Some-Model-Q4_K_M"))
    );
    assert_eq!(again["files"][0]["sha256"].as_str().unwrap().len(), 64);

    std::fs::write(home.join(".local/share/brigade/models/by-hand.gguf"), gguf(1, 2)).unwrap();
    let listed = run(&["models", "ls"]).await;
    for words in ["Some-Model-Q4_K_M", "F32", HUB, "by-hand", "put there by hand", "s ago"] {
        assert!(listed.out.contains(words), "{words}: {}", listed.out);
    }
    let listed = json(&run(&["models", "ls", "--json"]).await);
    assert_eq!(listed["models"].as_array().unwrap().len(), 2, "{listed:#}");
    assert_eq!(listed["models"][0]["source"], HUB);

    // Names do where paths do.
    for name in ["Some-Model-Q4_K_M", "Some-Model-Q4_K_M.gguf"] {
        let shown = run(&["models", "show", name, "--json"]).await;
        let card: ModelCard = serde_json::from_str(&shown.out).unwrap();
        assert_eq!((card.model.as_str(), card.architecture.as_str()), ("Some-Model-Q4_K_M", "llama"));
    }
    let plan =
        run(&["plan", "Some-Model-Q4_K_M", "--workers", "2", "--memory", "64MiB", "--ctx", "128"]).await;
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let wrong = run(&["up", "Some-Model-Q4_K_S"]).await;
    assert!(wrong.err.contains("did you mean `Some-Model-Q4_K_M`?"), "{wrong:?}");
    assert_eq!((wrong.code, wrong.err.lines().count()), (Some(1), 1), "{wrong:?}");

    let sound = run(&["models", "verify"]).await;
    assert_eq!(sound.code, Some(0), "{sound:?}");
    assert!(
        sound.out.contains("Some-Model-Q4_K_M: sound") && sound.out.contains("by-hand: not checked"),
        "{sound:?}"
    );
    flip(&file, 1_000_000);
    let damaged = run(&["models", "verify", "Some-Model-Q4_K_M"]).await;
    assert_eq!(damaged.code, Some(1), "{damaged:?}");
    for words in
        ["Some-Model-Q4_K_M.gguf is damaged: its SHA-256 should be", "`brigade models pull hf:org/repo`"]
    {
        assert!(damaged.out.contains(words), "{words}: {}", damaged.out);
    }
    let damaged = json(&run(&["models", "verify", "--json"]).await);
    assert_eq!(damaged["models"][0]["files"][0]["state"], "contents", "{damaged:#}");
    let mended = run(&["models", "pull", HUB]).await;
    assert!(mended.code == Some(0) && mended.err.contains("is damaged or out of date"), "{mended:?}");
    assert_eq!(run(&["models", "verify"]).await.code, Some(0));

    for (name, words) in [
        ("../Some-Model-Q4_K_M", "begins with a dot"),
        ("a/b", "separator of paths"),
        ("by-hand", "remove it yourself"),
        ("Some-Model-Q4_K", "did you mean `Some-Model-Q4_K_M`?"),
    ] {
        let refused = run(&["models", "rm", name]).await;
        assert!(refused.code == Some(1) && refused.err.contains(words), "{refused:?}");
    }
    let removed = run(&["models", "rm", "Some-Model-Q4_K_M"]).await;
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert!(
        removed.out.contains("Some-Model-Q4_K_M.gguf\n") && removed.out.contains("MiB freed"),
        "{removed:?}"
    );
    assert!(!file.exists());
    assert_eq!(json(&run(&["models", "ls", "--json"]).await)["models"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn wrong_use_is_told_from_failure() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let run = async |args: &[&str]| run(home.path(), &server, args).await;
    for (args, words) in [
        (&["models", "pull", "hf:repo"][..], "OWNER/NAME"),
        (&["models", "pull", "ftp://host/m.gguf"], "only https and http"),
        (&["models", "pull", "org/repo"], "is written hf:org/repo"),
        (&["models", "pull", "hf:org/repo", "--sha256", "12"], "64 hexadecimal digits"),
        (&["models", "pull"], "SOURCE"),
        (&["models", "rm"], "NAME"),
    ] {
        let outcome = run(args).await;
        assert!(outcome.code == Some(2) && outcome.err.contains(words), "{args:?}: {outcome:?}");
    }
    let mut wrong = command(home.path(), &server, &["models", "pull", HUB]);
    wrong.env("HF_ENDPOINT", "hub.example");
    let outcome = tokio::task::spawn_blocking(move || outcome(&mut wrong)).await.unwrap();
    assert!(outcome.code == Some(2) && outcome.err.contains("HF_ENDPOINT"), "{outcome:?}");
    for (args, words) in [
        (&["models", "pull", "hf:org/missing"][..], "check the spelling"),
        (&["models", "pull", "missing.gguf"], "failed to open missing.gguf"),
        (&["models", "verify", "missing"], "there is no model missing in the store"),
    ] {
        let outcome = run(args).await;
        assert!(outcome.code == Some(1) && outcome.err.contains(words), "{args:?}: {outcome:?}");
        assert_eq!(outcome.err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{outcome:?}");
    }
    for command in ["pull", "ls", "show", "verify", "rm"] {
        let help = run(&["models", command, "--help"]).await;
        assert!(help.out.contains(&format!("Example: brigade models {command}")), "{}", help.out);
    }
}

/// A pull that takes its time, of which `bytes` have come.
async fn slow_pull(home: &Path, server: &Server, bytes: u64) -> Child {
    server.fail(|faults| faults.trickles = Some((16 << 10, Duration::from_millis(4))));
    let mut pull = command(home, server, &["models", "pull", HUB, "--store", "models"]);
    let child = pull.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    server.serving(bytes).await;
    child
}

async fn ended(child: Child) -> (Option<i32>, String) {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_a_pull_and_the_same_command_goes_on() {
    let server = Server::start().await;
    let model = gguf(8, 1);
    server.put("org/repo/m.gguf", model.clone());
    let home = tempfile::tempdir().unwrap();
    let child = slow_pull(home.path(), &server, 4 << 20).await;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (code, err) = ended(child).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("failed to pull hf:org/repo: ended before everything was there"), "{err}");

    let listed = run(home.path(), &server, &["models", "ls", "--store", "models"]).await;
    assert!(listed.out.contains("`brigade models pull hf:org/repo` goes on"), "{listed:?}");
    server.settle().await;
    server.heal();
    let pulled = run(home.path(), &server, &["models", "pull", HUB, "--store", "models"]).await;
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(server.served() <= model.len() as u64 - (3 << 20), "{}", server.served());
    assert!(std::fs::read(home.path().join("models/m.gguf")).unwrap() == model);
}

#[cfg(unix)]
#[tokio::test]
async fn a_pull_that_is_killed_leaves_nothing_under_its_name_and_goes_on() {
    let server = Server::start().await;
    let model = gguf(16, 1);
    server.put("org/repo/m.gguf", model.clone());
    let home = tempfile::tempdir().unwrap();
    let mut child = slow_pull(home.path(), &server, 0).await;
    // Long enough for the journal to be written once.
    let journal = home.path().join("models/.brigade/partial/m/journal.json");
    let began = std::time::Instant::now();
    while !journal.exists() {
        assert!(began.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "no journal is written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!home.path().join("models/m.gguf").exists());
    server.settle().await;
    server.heal();
    let pulled = run(home.path(), &server, &["models", "pull", HUB, "--store", "models"]).await;
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(server.served() < model.len() as u64, "{}", server.served());
    assert!(std::fs::read(home.path().join("models/m.gguf")).unwrap() == model);
    let given_up = run(home.path(), &server, &["models", "ls", "--store", "models", "--json"]).await;
    assert_eq!(json(&given_up)["unfinished"], serde_json::json!([]));
}

#[tokio::test]
async fn an_unfinished_pull_can_be_given_up() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(8, 1));
    let home = tempfile::tempdir().unwrap();
    let mut child = slow_pull(home.path(), &server, 2 << 20).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let removed = run(home.path(), &server, &["models", "rm", "m", "--store", "models"]).await;
    assert!(removed.code == Some(0) && removed.out.contains("freed"), "{removed:?}");
    assert!(!home.path().join("models/.brigade/partial/m").exists());
}

#[tokio::test]
async fn the_token_is_told_to_the_hub_alone_and_a_proxy_may_stand_between() {
    let hub = Server::start().await;
    let proxy = Server::start().await;
    for server in [&hub, &proxy] {
        server.put("org/repo/m.gguf", gguf(1, 1));
    }
    hub.fail(|faults| {
        faults.token = Some("hf_secret".to_owned());
        faults.redirect = Some("http://cdn.example".to_owned());
    });
    let home = tempfile::tempdir().unwrap();
    let mut pull = command(home.path(), &hub, &["models", "pull", HUB]);
    pull.env("HF_TOKEN", "hf_secret").env("HTTP_PROXY", proxy.url()).env("NO_PROXY", "127.0.0.1");
    let pulled = tokio::task::spawn_blocking(move || outcome(&mut pull)).await.unwrap();
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(hub.asked().iter().all(|asked| asked.ends_with(" with a token")), "{:?}", hub.asked());
    assert_eq!(proxy.asked(), ["GET /files/org/repo/m.gguf"], "as the proxy is asked");
    let everything = walk(home.path());
    assert!(!everything.iter().any(|text| text.contains("hf_secret")) && !pulled.err.contains("hf_secret"));
}

/// The texts of all small files below a directory.
fn walk(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(walk(&path));
        } else if path.metadata().unwrap().len() < 1 << 20 {
            texts.push(String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned());
        }
    }
    texts
}
