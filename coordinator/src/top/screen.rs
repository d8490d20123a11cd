//! The terminal, taken for drawing and given back on every way out.

use std::io;

use ratatui::DefaultTerminal;

/// The terminal in raw mode, on its other screen. Dropping it gives the terminal back as it was, and so does a panic,
/// before its message is written.
#[derive(Debug)]
pub struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// Where standard output is no terminal that can be drawn on.
    pub fn open() -> io::Result<Screen> {
        ratatui::try_init().map(Screen).inspect_err(|_| {
            // Half of it may have been done; what could not be taken need not be given back.
            let _ = ratatui::try_restore();
        })
    }

    /// Draws one picture; of what is the same as in the last nothing is written.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub fn draw(&mut self, paint: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
        self.0.draw(paint).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The hook of a panic has given it back; a second time would put the cursor over what the panic said.
        if std::thread::panicking() {
            return;
        }
        // A terminal that is gone has nothing to get back.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}
