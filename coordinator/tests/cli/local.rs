//! Local workers under supervision, with shell scripts in the place of the worker's program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brigade_coordinator::local::{LocalSettings, LocalWorker, find_program_in, start, worker_name};
use brigade_proto::control::DeviceKind;
use brigade_proto::worker_processes::WorkerEvent;
use brigade_shard::units::{ByteRate, Bytes};
use tokio::sync::mpsc;

/// A program that runs `script`. Another process writes the file: while this one has it open, a test beside could fork,
/// and a file that somebody may write to cannot be run.
fn program(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("brigade-worker");
    let status = Command::new("sh")
        .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(&path)
        .arg(script)
        .status()
        .unwrap();
    assert!(status.success());
    path
}

fn settings(directory: &Path, script: &str, count: usize) -> LocalSettings {
    let worker = |index| {
        let (device, memory) = (DeviceKind::Cpu, Bytes::mib(64));
        LocalWorker { name: worker_name(index), device, memory }
    };
    LocalSettings {
        program: program(directory, script),
        control: ([127, 0, 0, 1], 4567).into(),
        token: "bg1-test-token".to_owned(),
        models: vec![directory.join("models")],
        workers: (0..count).map(worker).collect(),
        threads: 3,
        mmap: false,
        offload: None,
        state: directory.join("state"),
    }
}

async fn next(events: &mut mpsc::Receiver<WorkerEvent>) -> WorkerEvent {
    tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap()
}

/// Waits for a line of a worker.
async fn line(events: &mut mpsc::Receiver<WorkerEvent>) -> String {
    match next(events).await {
        WorkerEvent::Line { text, .. } => text,
        other => panic!("wanted a line, got {other:?}"),
    }
}

fn is_running(pid: &str) -> bool {
    Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status().unwrap().success()
}

#[tokio::test]
async fn a_worker_is_told_whether_it_may_read_layers_for_every_step() {
    let rate = ByteRate(2_000_000_000);
    let ways = [
        (None, ""),
        (Some(None), " --offload"),
        (Some(Some(rate)), " --offload --offload-rate=2000000000B/s"),
    ];
    for (offload, flags) in ways {
        let dir = tempfile::tempdir().unwrap();
        let settings = LocalSettings { offload, ..settings(dir.path(), "echo \"$@\" >&2; cat", 1) };
        let (workers, mut events) = start(&settings).unwrap();
        let told = line(&mut events).await;
        assert!(told.ends_with(&format!("--threads 3{flags} --exit-with-stdin")), "{told}");
        workers.stop().await;
    }
}

#[tokio::test]
async fn a_worker_is_told_everything_and_the_token_only_in_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo \"$@\" >&2; echo \"token $BRIGADE_TOKEN\" >&2; cat";
    let (workers, mut events) = start(&settings(dir.path(), script, 1)).unwrap();
    let state = dir.path().join("state/w1");
    assert_eq!(
        line(&mut events).await,
        format!(
            "join 127.0.0.1:4567 --name w1 --state {} --models {} --device cpu --memory 67108864 --threads 3 --exit-with-stdin",
            state.display(),
            dir.path().join("models").display()
        )
    );
    assert_eq!(line(&mut events).await, "token bg1-test-token");
    assert!(state.is_dir());
    workers.stop().await;
}

#[tokio::test]
async fn all_end_with_their_standard_input_and_stay_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (workers, mut events) = start(&settings(dir.path(), "echo $$ >&2; exec cat", 3)).unwrap();
    let mut pids = Vec::new();
    for _ in 0..3 {
        pids.push(line(&mut events).await);
    }
    assert!(pids.iter().all(|pid| is_running(pid)));
    let began = Instant::now();
    workers.stop().await;
    assert!(began.elapsed() < Duration::from_millis(1400), "{:?}", began.elapsed());
    assert!(pids.iter().all(|pid| !is_running(pid)), "no process is left, not even as a zombie");
    assert_eq!(events.recv().await, None, "no death is reported, and none is started again");
}

#[tokio::test]
async fn one_that_does_not_listen_is_killed_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' TERM INT; echo $$ >&2; exec sleep 1000";
    let (workers, mut events) = start(&settings(dir.path(), script, 1)).unwrap();
    let pid = line(&mut events).await;
    let began = Instant::now();
    workers.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(!is_running(&pid));
}

#[tokio::test]
async fn a_second_interrupt_kills_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' TERM INT; echo $$ >&2; exec sleep 1000";
    let (workers, mut events) = start(&settings(dir.path(), script, 1)).unwrap();
    let pid = line(&mut events).await;
    let began = Instant::now();
    tokio::select! {
        () = workers.stop() => panic!("it ended by itself"),
        () = tokio::time::sleep(Duration::from_millis(50)) => workers.kill().await,
    }
    assert!(began.elapsed() < Duration::from_millis(1400), "{:?}", began.elapsed());
    assert!(!is_running(&pid));
}

#[tokio::test]
async fn one_that_dies_is_started_again_after_a_pause_that_grows() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo 'the device is gone' >&2; exit 7";
    let (workers, mut events) = start(&settings(dir.path(), script, 1)).unwrap();
    let mut pauses = Vec::new();
    while pauses.len() < 3 {
        if let WorkerEvent::Restarting { worker, ended, pause } = next(&mut events).await {
            assert_eq!(worker, "w1");
            assert!(
                ended.contains("exit status: 7") && ended.ends_with("it last said: the device is gone"),
                "{ended}"
            );
            pauses.push(pause);
        }
    }
    assert!(pauses.is_sorted_by(|a, b| a < b), "{pauses:?}");
    workers.stop().await;
}

#[tokio::test]
async fn one_that_ends_well_has_been_told_to_and_is_not_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let (workers, mut events) = start(&settings(dir.path(), "exit 0", 1)).unwrap();
    assert_eq!(next(&mut events).await, WorkerEvent::Ended { worker: "w1".to_owned() });
    assert_eq!(events.recv().await, None);
    workers.stop().await;
}

#[tokio::test]
async fn each_worker_has_the_device_and_the_memory_that_were_found_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let card = LocalWorker { name: "w1-cuda1".to_owned(), device: DeviceKind::Cuda(1), memory: Bytes(7) };
    let settings = LocalSettings { workers: vec![card], ..settings(dir.path(), "echo \"$@\" >&2; cat", 1) };
    let (workers, mut events) = start(&settings).unwrap();
    let told = line(&mut events).await;
    assert!(told.contains("--name w1-cuda1 ") && told.contains(" --device cuda:1 --memory 7 "), "{told}");
    workers.stop().await;
}

#[tokio::test]
async fn one_that_was_used_wrongly_is_not_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo 'error: --memory is nonsense' >&2; exit 2";
    let (workers, mut events) = start(&settings(dir.path(), script, 1)).unwrap();
    assert_eq!(line(&mut events).await, "error: --memory is nonsense");
    assert_eq!(
        next(&mut events).await,
        WorkerEvent::Fatal { worker: "w1".to_owned(), reason: "error: --memory is nonsense".to_owned() }
    );
    assert_eq!(events.recv().await, None);
    workers.stop().await;
}

#[tokio::test]
async fn a_flood_of_lines_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let script = format!("yes 0123456789 | head -c 4000000 >&2; touch {}; exec cat", done.display());
    let (workers, events) = start(&settings(dir.path(), &script, 1)).unwrap();
    let began = Instant::now();
    while !done.exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "the worker waits for somebody to read its lines");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(events);
    workers.stop().await;
}

#[test]
fn the_program_beside_ours_wins_over_the_path() {
    let (beside, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = elsewhere.path().as_os_str();
    let error = find_program_in(beside.path(), Some(path)).unwrap_err().to_string();
    assert!(error.contains(&beside.path().display().to_string()) && error.contains("PATH"), "{error}");
    let there = program(elsewhere.path(), "");
    assert_eq!(find_program_in(beside.path(), Some(path)).unwrap(), there);
    let here = program(beside.path(), "");
    assert_eq!(find_program_in(beside.path(), Some(path)).unwrap(), here);
}
