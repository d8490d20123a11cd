//! Joining, coming back and leaving, with real processes: what users see of it, and the codes they exit with.

use std::process::{Command, Output};
use std::time::Duration;

use super::rig::{Coordinator, Process};
use brigade_proto::control::{ToCoordinator, ToWorker};

/// Ends within a second or two, on a machine that does other things as well.
const PROMPT_END: Duration = Duration::from_secs(2);

fn brigade_worker(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade-worker"));
    command.env_clear().env("HOME", "/nonexistent").envs(environment.iter().copied()).args(args);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_use_exits_with_2_and_says_what_to_do() {
    let fine = format!("bg1-{}-{}", "0".repeat(64), "0".repeat(32));
    let both = ["join", "localhost", "--token", &fine, "--token-file", "/nonexistent/token"];
    for (args, environment, part) in [
        (&[][..], &[][..], "Usage"),
        (&["join"], &[], "<ADDR>"),
        (&["join", "http://x"], &[], "HOST:PORT"),
        (&["join", "localhost", "--token", "secret"], &[], "starts with `bg1-`"),
        (&["join", "localhost"], &[("BRIGADE_TOKEN", "bg1-zz")], "three parts"),
        (&["join", "localhost", "--token-file", "/nonexistent/token"], &[], "/nonexistent/token"),
        (&both, &[], "leave one out"),
        (&["join", "localhost"], &[("BRIGADE_MEMORY", "lots")], "`lots` is not a memory size"),
        (&["join", "localhost", "--memory", "0"], &[], "--memory"),
        (&["join", "localhost", "--device", "gpu"], &[], "cuda:N"),
        (&["join", "localhost", "--device", "best"], &[], "auto"),
        (&["join", "localhost", "--threads", "0"], &[], "--threads"),
        (&["join", "localhost", "--log", "brigade=loud"], &[], "--log"),
        (&["join", "localhost", "--name", "a/b"], &[], "not a worker's name"),
    ] {
        let output = brigade_worker(args, environment);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(part), "{args:?}: `{part}` is not in `{text}`");
    }
}

#[test]
fn a_flag_wins_over_the_environment() {
    // Each environment alone would be an error of another kind than the flag's.
    let environment = [("BRIGADE_MEMORY", "lots"), ("BRIGADE_TOKEN_FILE", "/nonexistent/token")];
    let output =
        brigade_worker(&["join", "localhost", "--memory", "64MiB", "--token", "secret"], &environment);
    assert!(said(&output).contains("starts with `bg1-`"), "{}", said(&output));
    let environment = [("BRIGADE_TOKEN", "secret")];
    let output = brigade_worker(&["join", "localhost", "--token-file", "/nonexistent/token"], &environment);
    assert!(said(&output).contains("/nonexistent/token"), "{}", said(&output));
}

#[test]
fn a_worker_without_token_and_certificate_says_where_to_get_one() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("w").display().to_string();
    let output = brigade_worker(&["join", "localhost", "--state", &state, "--models", "/tmp"], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("brigade token create"), "{}", said(&output));
}

#[test]
fn the_version_is_printed() {
    let output = brigade_worker(&["version"], &[]);
    assert!(output.status.success());
    let expected = format!("brigade-worker {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[tokio::test]
async fn a_worker_says_what_it_is_and_comes_back_without_a_token() {
    let mut coordinator = Coordinator::start().await;
    let token_file = coordinator.directory.path().join("token");
    std::fs::write(&token_file, format!("{}\n", coordinator.token)).unwrap();
    let mut command = coordinator.command("w1");
    command.arg("--token-file").arg(&token_file);
    let process = Process::start(command);
    let session = coordinator.attached().await;
    let hello = session.hello();
    assert_eq!((hello.name.as_str(), hello.threads, hello.budget.as_mib()), ("w1", 1, 16.0));
    assert!(hello.bandwidth_bytes_per_s > 1e8 && hello.flops_per_s > 1e8, "{hello:?}");
    assert_eq!(hello.data_addresses.len(), 1, "it was bound to one address");
    let id = session.id();
    drop(process);
    let process = Process::start(coordinator.command("w1"));
    assert_eq!(coordinator.attached().await.id(), id);
    drop(process);
}

#[tokio::test]
async fn a_signal_or_the_end_of_standard_input_ends_a_worker_promptly() {
    let mut coordinator = Coordinator::start().await;
    for (name, end) in [("a", "INT"), ("b", "TERM"), ("c", "stdin")] {
        let mut command = coordinator.command(name);
        command.env("BRIGADE_TOKEN", coordinator.token.to_string()).arg("--exit-with-stdin");
        let mut process = Process::start(command);
        let mut session = coordinator.attached().await;
        session.telemetry().await;
        if end == "stdin" {
            process.close_stdin()
        } else {
            process.signal(end)
        }
        let leaving = |message| matches!(message, ToCoordinator::Leaving).then_some(());
        session.until("the farewell", leaving).await;
        let (status, took) = process.ended().await;
        assert!(status.success(), "{end}: {status:?}: {}", process.log());
        assert!(took < PROMPT_END, "{end}: it took {took:?}");
        assert_eq!(process.log(), "", "a supervised worker is quiet");
    }
}

#[tokio::test]
async fn a_coordinator_that_hangs_does_not_keep_a_worker_from_ending() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = coordinator.worker("w").await;
    worker.session.telemetry().await;
    worker.process.signal("TERM");
    let (status, took) = worker.process.ended_alone();
    assert!(status.success(), "{status:?}: {}", worker.process.log());
    assert!(took < PROMPT_END, "it took {took:?}");
}

#[tokio::test]
async fn a_second_signal_ends_a_worker_at_once() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = coordinator.worker("w").await;
    worker.session.telemetry().await;
    worker.process.signal("INT");
    worker.process.signal("TERM");
    let (status, _) = worker.process.ended_alone();
    assert_eq!(status.code(), Some(130));
}

#[tokio::test]
async fn a_worker_ends_when_the_coordinator_says_so() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = coordinator.worker("w").await;
    worker.session.tell(ToWorker::Shutdown { reason: "drained".to_owned() }).await;
    let (status, _) = worker.process.ended().await;
    let log = worker.process.log();
    assert!(status.success() && log.contains("drained"), "{log}");
}

#[tokio::test]
async fn tokens_that_are_not_this_coordinators_are_refused() {
    let coordinator = Coordinator::start().await;
    let mut wrong = coordinator.token.clone();
    wrong.secret = "0".repeat(32);
    let mut stranger = coordinator.token.clone();
    stranger.ca_spki_sha256 = [7; 32];
    for (token, part) in [(wrong, "no such token"), (stranger, "is not the one this token was made for")] {
        let mut command = coordinator.command("w");
        command.env("BRIGADE_TOKEN", token.to_string());
        let mut process = Process::start(command);
        let (status, _) = process.ended().await;
        let log = process.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(part), "`{part}` is not in `{log}`");
        assert!(!log.contains(&token.secret), "the secret is in `{log}`");
    }
}

#[tokio::test]
async fn a_certificate_of_another_coordinator_is_refused_with_the_remedy() {
    let mut old = Coordinator::start().await;
    let worker = old.worker("w").await;
    drop(worker);
    let new = Coordinator::start().await;
    let (kept, taken) =
        (old.directory.path().join("w/worker.pem"), new.directory.path().join("w/worker.pem"));
    std::fs::create_dir(new.directory.path().join("w")).unwrap();
    std::fs::copy(kept, taken).unwrap();
    let mut command = new.command("w");
    command.env("BRIGADE_TOKEN", new.token.to_string());
    let mut process = Process::start(command);
    let (status, _) = process.ended().await;
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("w/worker.pem") && log.contains("join with a new token"), "{log}");
    assert!(log.contains("the certificate wins"), "{log}");
}

#[tokio::test]
async fn two_workers_do_not_share_a_state_directory() {
    let mut coordinator = Coordinator::start().await;
    let _first = coordinator.worker("w").await;
    let mut second = Process::start(coordinator.command("w"));
    let (status, _) = second.ended().await;
    let log = second.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("in use by another worker") && log.contains("--name"), "{log}");
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_yet_is_waited_for() {
    let coordinator = Coordinator::start().await;
    let at = coordinator.control;
    let mut command = coordinator.command("w");
    command.env("BRIGADE_TOKEN", coordinator.token.to_string());
    coordinator.stop.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut process = Process::start(command);
    tokio::time::sleep(Duration::from_millis(300)).await;
    // The token's secret is the first coordinator's own, so that the second one refuses it once it is reached.
    let _again = Coordinator::start_in(coordinator.directory, at).await;
    let (status, _) = process.ended().await;
    let log = process.log();
    assert!(log.contains("cannot reach a coordinator") && log.contains("trying again"), "{log}");
    assert!(log.contains("no such token"), "{log}");
    assert_eq!(status.code(), Some(1), "{log}");
}
