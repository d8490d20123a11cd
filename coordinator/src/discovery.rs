//! How commands find a coordinator on the same machine: each one that runs keeps a small file in a directory of its user.
//!
//! The file tells where its HTTP listens, never a key. It goes when the coordinator ends; one that was left behind by a
//! crash is recognised by its process being gone or its `/livez` not answering.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Most files looked at: nobody runs more coordinators than this as one user on one machine.
const MAX_FILES: usize = 64;

/// Largest file believed to be an announcement, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// A running coordinator, as it announces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Where its HTTP can be reached from this machine, without a path.
    pub url: String,
    /// Its process.
    pub pid: u32,
    /// The id of the model it serves.
    pub model: String,
    /// Where workers attach.
    pub control: SocketAddr,
    /// Its state directory, absolute.
    pub state: PathBuf,
}

/// The file of a running coordinator; dropping it removes the file.
#[derive(Debug)]
pub struct AnnouncementFile {
    path: PathBuf,
}

/// Where coordinators announce themselves: `brigade` in `$XDG_RUNTIME_DIR`, else `run` in the default state directory.
pub fn directory() -> Option<PathBuf> {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(dir) => Some(Path::new(&dir).join("brigade")),
        None => default_state_dir().map(|state| state.join("run")),
    }
}

/// `brigade` in `$XDG_STATE_HOME` or `~/.local/state`; `None` where neither variable is set.
pub fn default_state_dir() -> Option<PathBuf> {
    home_directory("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("brigade"))
}

/// `$XDG_CONFIG_HOME` or `~/.config`; `None` where neither variable is set.
pub fn config_home() -> Option<PathBuf> {
    home_directory("XDG_CONFIG_HOME", ".config")
}

fn home_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(variable).or_else(|| set("HOME").map(|home| home.join(below_home)))
}

/// Writes `announcement` into `directory`, which is made where it is missing.
///
/// # Errors
/// Where the directory or the file cannot be written.
pub fn announce(directory: &Path, announcement: &Announcement) -> io::Result<AnnouncementFile> {
    fs::create_dir_all(directory)?;
    let path = directory.join(format!("{}.json", announcement.pid));
    let partial = directory.join(format!(".{}.json", announcement.pid));
    fs::write(&partial, serde_json::to_vec(announcement)?)?;
    fs::rename(&partial, &path)?;
    Ok(AnnouncementFile { path })
}

impl Drop for AnnouncementFile {
    fn drop(&mut self) {
        // A file that cannot be removed is recognised as stale by its process being gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// The coordinators announced in `directory` whose processes are alive, the latest first. Files that cannot be read as
/// announcements are passed over, and those of processes that are gone are removed.
pub fn announced(directory: &Path) -> Vec<Announcement> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        .take(MAX_FILES)
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
                return None;
            }
            let announcement: Announcement = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
            if !is_running(announcement.pid) {
                let _ = fs::remove_file(entry.path());
                return None;
            }
            Some((metadata.modified().ok()?, announcement))
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    found.into_iter().map(|(_, announcement)| announcement).collect()
}

/// Whether a process of this id exists.
fn is_running(pid: u32) -> bool {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
    let pid = Pid::from_u32(pid);
    // Where processes cannot be looked at, whether it answers decides.
    let Ok(mut system) = System::new() else {
        return true;
    };
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
    system.process(pid).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(pid: u32) -> Announcement {
        Announcement {
            url: "http://127.0.0.1:7480".to_owned(),
            pid,
            model: "tiny".to_owned(),
            control: SocketAddr::from(([127, 0, 0, 1], 7481)),
            state: PathBuf::from("/state"),
        }
    }

    #[test]
    fn a_running_coordinator_is_found_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("brigade");
        assert_eq!(announced(&directory), []);
        let mine = announcement(std::process::id());
        let file = announce(&directory, &mine).unwrap();
        assert_eq!(announced(&directory), [mine]);
        drop(file);
        assert_eq!(announced(&directory), []);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn files_of_dead_processes_and_foreign_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        std::mem::forget(announce(dir.path(), &announcement(dead)).unwrap());
        fs::write(dir.path().join("broken.json"), b"{").unwrap();
        fs::write(dir.path().join("huge.json"), vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap();
        fs::write(dir.path().join("notes.txt"), b"hello").unwrap();
        assert_eq!(announced(dir.path()), []);
        assert!(!dir.path().join(format!("{dead}.json")).exists(), "the stale file is removed");
        assert!(dir.path().join("notes.txt").exists());
    }
}
