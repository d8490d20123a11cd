//! The program as a user meets it: help, exit codes, and errors that say what to do.

use std::io::Read as _;
use std::process::Stdio;

use crate::program::{brigade, run};

#[test]
fn help_is_there_for_every_command_with_an_example() {
    let home = tempfile::tempdir().unwrap();
    let help = run(home.path(), &["--help"]);
    assert_eq!(help.code, Some(0), "{help:?}");
    for command in ["up", "serve", "run", "plan", "status", "bench", "token", "completions", "version"] {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command} in {}", help.out);
        let own = run(home.path(), &[command, "--help"]);
        assert_eq!(own.code, Some(0), "{own:?}");
        assert!(own.out.contains("Usage: brigade"), "{}", own.out);
        if command != "token" {
            assert!(own.out.contains("Example: brigade"), "{command}: {}", own.out);
        }
    }
    for command in ["create", "ls", "revoke"] {
        let own = run(home.path(), &["token", command, "--help"]);
        assert!(own.out.contains("Example: brigade token"), "{}", own.out);
    }
    assert_eq!(run(home.path(), &["help"]).code, Some(0));
}

#[test]
fn the_version_names_the_protocol() {
    let home = tempfile::tempdir().unwrap();
    let version = run(home.path(), &["version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.out.starts_with("brigade 0.") && version.out.contains("(protocol "), "{}", version.out);
    assert!(run(home.path(), &["--version"]).out.starts_with("brigade 0."));
}

#[test]
fn wrong_use_is_exit_code_2_and_failure_is_1() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["juggle"],
        &["up"],
        &["plan"],
        &["plan", "--claims", "--list", "devices"],
        &["plan", "m.gguf", "--objective", "profit"],
        &["plan", "m.gguf", "--memory", "lots"],
        &["plan", "m.gguf", "--workers", "0"],
        &["plan", "m.gguf", "--cluster", "c.toml", "--workers", "2"],
        &["up", "m.gguf", "--http", "nowhere"],
        &["up", "m.gguf", "--kv-dtype", "f64"],
        &["up", "m.gguf", "--wire", "f64"],
        &["serve", "m.gguf", "--http", "0.0.0.0:0"],
        &["up", "m.gguf", "--http", "0.0.0.0:0"],
        &["token", "create", "--ttl", "soon"],
        &["token", "create", "--uses", "0"],
        &["run", "m.gguf", "hello", "--temperature", "9"],
        &["completions", "cobol"],
    ] {
        let outcome = run(home.path(), args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(!outcome.err.is_empty() && outcome.out.is_empty(), "{args:?}: {outcome:?}");
    }
    for args in [&["up", "m.gguf"][..], &["serve", "m.gguf"], &["plan", "m.gguf"], &["run", "m.gguf", "hi"]] {
        let outcome = run(home.path(), args);
        assert_eq!(outcome.code, Some(1), "{args:?}: {outcome:?}");
        assert!(
            outcome.err.starts_with("error: failed to open the model m.gguf: No such file")
                && outcome.err.contains("give the path of a GGUF file"),
            "{args:?}: {}",
            outcome.err
        );
        assert_eq!(outcome.err.lines().count(), 1, "one line: {}", outcome.err);
    }
}

#[test]
fn an_open_api_on_the_network_is_refused_with_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let outcome = run(home.path(), &["serve", "m.gguf", "--http", "0.0.0.0:7480"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.err.contains("--api-key") && outcome.err.contains("127.0.0.1:7480"), "{}", outcome.err);
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("m.gguf"), b"this is no model at all, not even nearly").unwrap();
    for command in ["plan", "up"] {
        let outcome = run(home.path(), &[command, "m.gguf"]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.err.starts_with("error: failed to read the model"), "{}", outcome.err);
        assert!(outcome.err.contains("m.gguf"), "{}", outcome.err);
    }
    let directory = run(home.path(), &["plan", "."]);
    assert!(
        directory.err.contains("a directory with GGUF files") && directory.err.contains("m.gguf"),
        "{directory:?}"
    );
}

#[test]
fn completions_know_the_commands() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let outcome = run(home.path(), &["completions", shell]);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.out.contains("min-workers") && outcome.out.contains("revoke"), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    crate::tiny_model::write_model(&home.path().join("m.gguf"), 2);
    for args in [&["plan", "m.gguf"][..], &["completions", "bash"], &["version"], &["--help"]] {
        let mut child =
            brigade(home.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{args:?}: {status} {err}");
        assert_eq!(err, "", "{args:?}");
    }
}

#[test]
fn without_a_coordinator_status_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let outcome = run(home.path(), &["status"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.err.contains("no coordinator runs on this machine"), "{}", outcome.err);
    assert!(outcome.err.contains("brigade up MODEL"), "{}", outcome.err);
    let outcome = run(home.path(), &["status", "--url", "http://127.0.0.1:1"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.err.contains("no coordinator answers at http://127.0.0.1:1"), "{}", outcome.err);
    let outcome = run(home.path(), &["status", "--url", "nonsense"]);
    assert!(outcome.err.contains("http://HOST:PORT"), "{}", outcome.err);
}

#[test]
fn tokens_are_made_listed_and_revoked_in_the_state_directory() {
    let home = tempfile::tempdir().unwrap();
    let created = run(home.path(), &["token", "create", "--uses", "3", "--ttl", "1h"]);
    assert_eq!(created.code, Some(0), "{created:?}");
    let token = created.out.trim_end();
    assert!(token.starts_with("bg1-") && token.lines().count() == 1, "{}", created.out);
    assert!(
        created.err.contains(&format!("brigade-worker join HOST:7481 --token {token}")),
        "{}",
        created.err
    );
    assert!(home.path().join(".local/state/brigade/tokens.json").is_file());

    let listed = run(home.path(), &["token", "ls"]).out;
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[1], row[4]), ("valid", "3"), "{listed}");
    let revoked = run(home.path(), &["token", "revoke", row[0]]);
    assert_eq!(revoked.out, format!("revoked {}\n", row[0]), "{revoked:?}");
    assert!(run(home.path(), &["token", "ls"]).out.contains("revoked"));
    let unknown = run(home.path(), &["token", "revoke", "ffffffff"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("brigade token ls"), "{}", unknown.err);
}
