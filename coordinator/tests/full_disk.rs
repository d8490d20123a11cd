//! Pulls to disks that are full: before the first byte, and in the middle. What needs a file system that is mounted, or a
//! limit that is set, is ignored where that cannot be done.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "models are pulled here, and not looked into")]
#[path = "store/models.rs"]
mod models;
#[expect(dead_code, reason = "commands are run to their ends here")]
#[path = "cli/program.rs"]
mod program;
#[expect(dead_code, reason = "pulls are neither cancelled nor in a hurry here")]
#[path = "store/pulling.rs"]
mod pulling;
#[path = "store/server.rs"]
mod server;
#[path = "../../tests/src/small_disk.rs"]
mod small_disk;

use std::process::Command;
use std::time::Duration;

use brigade_coordinator::store::StoreError;
use libtest_mimic::{Arguments, Failed};

use models::gguf;
use program::{brigade, outcome};
use pulling::Trial;
use server::Server;
use small_disk::SmallDisk;

const HUB: &str = "hf:org/repo";

fn main() {
    let no_mount = SmallDisk::obstacle().unwrap();
    if let Some(obstacle) = &no_mount {
        println!("no file system can be mounted here, so one test is skipped: {obstacle}");
    }
    let no_limit =
        !Command::new("prlimit").arg("--version").output().is_ok_and(|found| found.status.success());
    if no_limit {
        println!("there is no prlimit here, so one test is skipped");
    }
    let trials = vec![
        trial(
            "what_cannot_fit_is_refused_before_its_first_byte",
            what_cannot_fit_is_refused_before_its_first_byte,
            false,
        ),
        trial(
            "a_disk_that_becomes_full_ends_the_pull_which_goes_on_later",
            a_disk_that_becomes_full_ends_the_pull_which_goes_on_later,
            no_mount.is_some(),
        ),
        trial(
            "a_limit_on_the_size_of_files_ends_the_pull_which_goes_on_without_it",
            a_limit_on_the_size_of_files_ends_the_pull_which_goes_on_without_it,
            no_limit,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial<F: Future<Output = ()>>(
    name: &str,
    test: impl FnOnce() -> F + Send + 'static,
    ignored: bool,
) -> libtest_mimic::Trial {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(test());
        Ok::<(), Failed>(())
    };
    libtest_mimic::Trial::test(name, run).with_ignored_flag(ignored)
}

async fn what_cannot_fit_is_refused_before_its_first_byte() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 1));
    server.fail(|faults| faults.lists_more = 1 << 55);
    let trial = Trial::new(&server);
    let error = trial.refused(HUB).await;
    assert!(error.contains("but 32768.0 TiB are still to be written: make room"), "{error}");
    assert_eq!(server.served(), 0);
}

async fn a_disk_that_becomes_full_ends_the_pull_which_goes_on_later() {
    let server = Server::start().await;
    let model = gguf(8, 1);
    server.put("org/repo/m.gguf", model.clone());
    let trial = Trial::new(&server);
    let disk = SmallDisk::mount(&trial.root, 64 << 20).unwrap();
    // Somebody else writes so much meanwhile that half of the model finds no room.
    server.fail(|faults| faults.trickles = Some((256 << 10, Duration::from_millis(5))));
    let filler = disk.path().join("filler");
    let filling = async {
        server.serving(2 << 20).await;
        std::fs::write(&filler, vec![1; (64 << 20) - model.len() / 2]).unwrap();
    };
    let (pull, ()) = tokio::join!(trial.pull(HUB), filling);
    let error = pull.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    for words in ["No space left", "are to come", "is kept", "the same command"] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    assert_eq!(trial.visible(), ["filler"]);
    let there = trial.unfinished();
    assert!(there > model.len() as u64 / 3, "{there}");

    // While it stays full, it is said at once.
    server.settle().await;
    server.heal();
    assert!(trial.refused(HUB).await.contains("make room"));
    assert!(!server.asked().iter().any(|asked| asked.starts_with("GET /files/")));
    std::fs::remove_file(&filler).unwrap();
    trial.pull(HUB).await.unwrap();
    assert_eq!(server.served(), model.len() as u64 - there);
    assert!(trial.read("m.gguf") == model);
}

async fn a_limit_on_the_size_of_files_ends_the_pull_which_goes_on_without_it() {
    let server = Server::start().await;
    let model = gguf(4, 1);
    server.put("org/repo/m.gguf", model.clone());
    let home = tempfile::tempdir().unwrap();
    let pull = brigade(home.path(), &["models", "pull", HUB, "--store", "models"]);
    // A shell that ignores the signal that comes with the limit, as the program then does.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; exec prlimit --fsize=4000000 \"$0\" \"$@\""]).arg(pull.get_program());
    limited.args(pull.get_args()).current_dir(home.path()).env("HOME", home.path());
    limited.env("HF_ENDPOINT", server.url()).env_remove("HF_TOKEN");
    let ended = tokio::task::spawn_blocking(move || outcome(&mut limited)).await.unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("File too large") && ended.err.contains("is kept"), "{ended:?}");
    assert!(!home.path().join("models/m.gguf").exists());
    server.settle().await;
    server.heal();
    let mut again = pull;
    again.env("HF_ENDPOINT", server.url()).env_remove("HF_TOKEN");
    let ended = tokio::task::spawn_blocking(move || outcome(&mut again)).await.unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(server.served() < model.len() as u64 - 3_000_000, "{}", server.served());
    assert!(std::fs::read(home.path().join("models/m.gguf")).unwrap() == model);
}
