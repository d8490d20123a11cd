//! Files that only their owner may read, replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::IdentityError;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { action, path, source }
}

/// Makes `dir`, with its parents, for its owner alone (0700).
pub(super) fn private_dir(dir: &Path) -> Result<(), IdentityError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(failed("make directory", dir))?;
    #[cfg(unix)]
    restrict(dir, 0o700)?;
    Ok(())
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("protect", path))
}

/// Replaces the file `dir/name` with `content`, for its owner alone (0600). After a crash there is the old file or the
/// new one. Two processes must not do it at once: the state directory's lock sees to that.
pub(super) fn write_private(dir: &Path, name: &str, content: &[u8]) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let beside = dir.join(format!(".{name}.new"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside).map_err(failed("write", &beside))?;
    // The mode above is for a new file only; one that a crash left may have another.
    #[cfg(unix)]
    restrict(&beside, 0o600)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed("write", &beside))?;
    fs::rename(&beside, &path).map_err(failed("replace", &path))?;
    // The new name must be on disk too, which is the directory's content; systems without that need nothing.
    if let Ok(directory) = File::open(dir) {
        directory.sync_all().map_err(failed("write", dir))?;
    }
    Ok(())
}

/// The content of a file; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}
