//! A file system of its own that is soon full; also for the test programs of other crates, which name this file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, until it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many bytes.
    ///
    /// # Errors
    /// Where none can be mounted here: that is mostly for the superuser to do.
    pub fn mount(at: &Path, bytes: u64) -> io::Result<SmallDisk> {
        fs::create_dir_all(at)?;
        let size = format!("size={bytes}");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).output()?;
        match output.status.success() {
            true => Ok(SmallDisk(at.to_owned())),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    /// Why none can be mounted here, if so.
    ///
    /// # Errors
    /// Where not even a directory can be made.
    pub fn obstacle() -> io::Result<Option<String>> {
        let at = std::env::temp_dir().join(format!("brigade-small-disk-{}", std::process::id()));
        let mounted = SmallDisk::mount(&at, 1 << 20);
        let obstacle = mounted.err().map(|error| error.to_string());
        fs::remove_dir(&at)?;
        Ok(obstacle)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open there has ended by now, or soon will.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
