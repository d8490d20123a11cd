//! Disks that are full: before the first byte, and in the middle.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use brigade_coordinator::store::StoreError;

use crate::models::gguf;
use crate::program::{brigade, outcome};
use crate::pulling::Trial;
use crate::server::Server;

const HUB: &str = "hf:org/repo";

#[tokio::test]
async fn what_cannot_fit_is_refused_before_its_first_byte() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 1));
    server.fail(|faults| faults.lists_more = 1 << 55);
    let trial = Trial::new(&server);
    let error = trial.refused(HUB).await;
    assert!(error.contains("but 32768.0 TiB are still to be written: make room"), "{error}");
    assert_eq!(server.served(), 0);
}

/// A file system of its own, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where none can be made.
    fn mount(at: &Path, bytes: u64) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_disk_that_becomes_full_ends_the_pull_which_goes_on_later() {
    let server = Server::start().await;
    let model = gguf(8, 1);
    server.put("org/repo/m.gguf", model.clone());
    let trial = Trial::new(&server);
    let Some(_disk) = SmallDisk::mount(&trial.root, 64 << 20) else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    // Somebody else writes so much meanwhile that half of the model finds no room.
    server.fail(|faults| faults.trickles = Some((256 << 10, Duration::from_millis(5))));
    let filler = trial.root.join("filler");
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
    assert!(!server.gave_files());
    std::fs::remove_file(&filler).unwrap();
    trial.pull(HUB).await.unwrap();
    assert_eq!(server.served(), model.len() as u64 - there);
    assert!(trial.read("m.gguf") == model);
}

#[tokio::test]
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
    if ended.code == Some(127) || ended.err.contains("prlimit: not found") {
        eprintln!("skipped: there is no prlimit here");
        return;
    }
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
