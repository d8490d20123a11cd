//! Room for templates that nest deeply, and an end for those that write without one.

use std::io;

use super::TemplateError;

/// Stack of the thread that compiles and renders. The parser, the printing of values and their release go one call
/// deeper per level of nesting, and a template of the largest size with the most steps reaches some 200,000 levels of
/// a few hundred bytes. Only what is used is ever backed by memory.
const STACK_BYTES: usize = 512 << 20;

/// Runs `work` on a thread of its own with a large stack, and waits for it.
pub(super) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, work);
        let thread =
            thread.map_err(|error| TemplateError::Sandbox { problem: format!("no thread: {error}") })?;
        thread.join().map_err(|panic| {
            let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
            TemplateError::Sandbox { problem: message.unwrap_or_else(|| "it panicked".to_owned()) }
        })
    })
}

/// A buffer that takes no more than so many bytes.
pub(super) struct Limited {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl Limited {
    pub(super) fn new(limit: usize) -> Limited {
        Limited { bytes: Vec::new(), limit, full: false }
    }

    /// Whether something did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// What was written; `None` where it is no text.
    pub(super) fn into_text(self) -> Option<String> {
        String::from_utf8(self.bytes).ok()
    }
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.full = true;
            return Err(io::Error::other("too much output"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
