//! Chat templates, rendered by processes of their own.
//!
//! A template comes from a file that nobody has checked. Its steps, output and nesting are bounded where it is rendered,
//! but not what it holds on the way: `a ~ a` doubles a text until no memory is left, and one comparison of nested lists
//! can take years. So it runs in a child process with an end to its memory and its time: whatever it does there, the
//! coordinator lives on, and the next chat works. A child is this same program with [`SUBCOMMAND`] for its only argument;
//! it is kept and used again, so that a chat starts no process.
//!
//! Main type: [`ChatRenderer`].

mod child;
mod process;
mod renderer;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

pub use child::serve;
pub use renderer::{ChatRenderer, RenderError};
pub use wire::Rendering;

/// The only argument of a process that renders: a subcommand that no user types.
pub const SUBCOMMAND: &str = "render-chat-templates";

/// Processor time of one rendering, and of compiling, at most; at least a second less. A conversation of 1,000 messages
/// takes some 0.1 s.
const CPU_SECONDS: u64 = 2;
/// How long one rendering may take by the clock, on a machine that has other things to do.
const DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of a process's address space. Half of it is the stack that deep nesting needs and hardly any template uses; the
/// rest is many times what the longest conversation takes. macOS takes the limit and does not hold anyone to it.
const ADDRESS_SPACE_BYTES: u64 = 1 << 30;
/// Most processes per model: rendering is short beside generating.
const PROCESSES: usize = 2;

/// This program, for the processes that render.
///
/// # Errors
/// Where the system does not know its path.
pub fn own_program() -> std::io::Result<PathBuf> {
    // On Linux this name holds even where the file has been replaced by a newer one.
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}
