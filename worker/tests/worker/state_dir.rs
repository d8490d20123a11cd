//! The state directory's lock, between values and between processes.

use brigade_worker::state_dir::{StateDir, StateDirError};

#[test]
fn a_state_directory_is_one_worker_s_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("workers/w1");
    let first = StateDir::open(&path).unwrap();
    assert_eq!(first.path(), path);
    let error = StateDir::open(&path).unwrap_err();
    assert!(matches!(error, StateDirError::InUse { .. }), "{error}");
    let text = error.to_string();
    let pid = std::process::id().to_string();
    assert!(text.contains("workers/w1") && text.contains(&pid) && text.contains("--name"), "{text}");
    drop(first);
    StateDir::open(&path).unwrap();
}

#[cfg(unix)]
#[test]
fn only_its_owner_can_look_into_it() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    let _state = StateDir::open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_place_that_cannot_be_a_directory_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let text = StateDir::open(&file.join("state")).unwrap_err().to_string();
    assert!(text.contains("file/state") && text.contains("--state"), "{text}");
}
