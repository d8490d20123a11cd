//! `--device all` with real processes: a worker for each card, and on a machine without any one on the processor.

use std::process::Command;
use std::time::{Duration, Instant};

use super::rig::{Coordinator, Process};
use brigade_proto::control::{ToCoordinator, ToWorker};

/// Longest time until a process that ends is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// `join --device all` under a name, on a machine where no card is visible, with this coordinator's token in a file.
fn all(coordinator: &Coordinator, name: &str) -> Command {
    let token_file = coordinator.directory.path().join("token");
    std::fs::write(&token_file, format!("{}\n", coordinator.token)).unwrap();
    let mut command = coordinator.command(name);
    command.arg("--token-file").arg(&token_file).args(["--device", "all"]).env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// A process's state and its parent; `None` where there is no such process.
fn state_and_parent(process: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // They come after the name, which may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// The processes whose parent this is.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| state_and_parent(*id).is_some_and(|(_, of)| of == parent)).collect()
}

fn kill(process: u32) {
    assert!(Command::new("kill").args(["-s", "KILL", &process.to_string()]).status().unwrap().success());
}

async fn gone(process: u32) {
    let began = Instant::now();
    // One that nobody waits for has ended all the same.
    while state_and_parent(process).is_some_and(|(state, _)| state != "Z") {
        assert!(began.elapsed() < PATIENCE, "process {process} is left behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_machine_without_cards_has_one_worker_that_is_started_again_and_ends_with_its_supervisor() {
    let mut coordinator = Coordinator::start().await;
    let mut process = Process::start(all(&coordinator, "box"));
    let session = coordinator.attached().await;
    let hello = session.hello();
    assert_eq!((hello.name.as_str(), hello.device.to_string().as_str()), ("box-cpu", "cpu"));
    assert_eq!((hello.budget.as_mib(), hello.threads), (16.0, 1), "it was told what its supervisor was");
    let (id, state) = (session.id(), coordinator.directory.path().join("box/box-cpu"));
    assert!(state.join("worker.pem").is_file(), "it has a state directory of its own");
    let [first] = children(process.id())[..] else { panic!("there is one worker") };
    kill(first);
    let mut session = coordinator.attached().await;
    assert_eq!(session.id(), id, "it comes back as who it was");
    session.telemetry().await;
    let [second] = children(process.id())[..] else { panic!("there is one worker again") };
    assert_ne!(first, second);
    process.signal("TERM");
    let leaving = |message| matches!(message, ToCoordinator::Leaving).then_some(());
    session.until("the farewell", leaving).await;
    let (status, took) = process.ended().await;
    gone(second).await;
    let log = process.log();
    assert!(status.success() && took < Duration::from_secs(2), "{status:?} after {took:?}: {log}");
    for part in ["starting 1 worker(s), on cpu: there is no card", "box-cpu died", "[box-cpu] "] {
        assert!(log.contains(part), "`{part}` is not in `{log}`");
    }
}

#[tokio::test]
async fn workers_end_even_if_their_supervisor_is_killed() {
    let mut coordinator = Coordinator::start().await;
    let mut process = Process::start(all(&coordinator, "box"));
    coordinator.attached().await.telemetry().await;
    let [worker] = children(process.id())[..] else { panic!("there is one worker") };
    process.signal("KILL");
    process.ended().await;
    gone(worker).await;
}

#[tokio::test]
async fn a_supervisor_whose_workers_were_told_to_end_ends_well() {
    let mut coordinator = Coordinator::start().await;
    let mut process = Process::start(all(&coordinator, "box"));
    let mut session = coordinator.attached().await;
    session.telemetry().await;
    session.tell(ToWorker::Shutdown { reason: "drained".to_owned() }).await;
    let (status, _) = process.ended().await;
    let log = process.log();
    assert!(status.success() && log.contains("worker box-cpu has ended"), "{status:?}: {log}");
}

#[tokio::test]
async fn a_worker_that_cannot_run_ends_all_with_its_reason() {
    let coordinator = Coordinator::start().await;
    let mut command = all(&coordinator, "box");
    command.args(["--memory", "0"]);
    let mut process = Process::start(command);
    let (status, _) = process.ended().await;
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("box-cpu cannot run") && log.contains("there is no memory for a model"), "{log}");
}

#[tokio::test]
async fn the_best_device_is_said_in_the_log() {
    let mut coordinator = Coordinator::start().await;
    let mut command = coordinator.command("w");
    command.env("BRIGADE_TOKEN", coordinator.token.to_string()).env("CUDA_VISIBLE_DEVICES", "");
    command.args(["--device", "auto"]);
    let mut process = Process::start(command);
    let session = coordinator.attached().await;
    assert_eq!(session.hello().device.to_string(), "cpu");
    process.signal("TERM");
    process.ended().await;
    let log = process.log();
    assert!(log.contains("computing on cpu: there is no card: "), "{log}");
}
