//! A program in a terminal of its own: what stands on it, the keys that are pressed, and how the program leaves it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vt100::Parser;

use crate::process::send_signal;

const POLL: Duration = Duration::from_millis(10);

/// A pseudo-terminal with a program in it, which is killed when this is dropped.
pub struct Terminal {
    child: Child,
    /// Our end.
    master: File,
    /// The program's end, kept open so that its settings can be read when the program has ended.
    slave: Option<OwnedFd>,
    screen: Arc<Mutex<Parser>>,
    reader: Option<JoinHandle<()>>,
    before: Settings,
}

/// How the terminal treats what is typed and written.
type Settings = [libc::tcflag_t; 4];

impl Terminal {
    /// Starts `command` in a terminal of so many rows and columns.
    pub fn start(command: &mut Command, rows: u16, columns: u16) -> Terminal {
        let (master, slave) = open(rows, columns);
        let before = settings(&slave);
        let end = || Stdio::from(slave.try_clone().expect("the terminal is open"));
        command.env("TERM", "xterm-256color").env("COLORTERM", "").stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only these two system calls are made, which are safe there.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
        // What it was given is closed here when the command is: it would keep the terminal open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let screen = Arc::new(Mutex::new(Parser::new(cells(rows), cells(columns), 0)));
        let reader = read(master.try_clone().expect("the terminal is open"), screen.clone());
        Terminal { child, master, slave: Some(slave), screen, reader: Some(reader), before }
    }

    /// What stands on it, line by line.
    pub fn text(&self) -> String {
        self.screen().screen().contents()
    }

    /// The parser that knows every cell.
    pub fn screen(&self) -> MutexGuard<'_, Parser> {
        self.screen.lock().expect("a reader never panics")
    }

    /// Waits until `is` holds of what stands on it; how long that took.
    pub fn wait_until(&mut self, what: &str, limit: Duration, is: impl Fn(&str) -> bool) -> Duration {
        let start = Instant::now();
        loop {
            let text = self.text();
            if is(&text) {
                return start.elapsed();
            }
            let ended = self.child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "the program ended before {what}: {ended:?}\n{text}");
            assert!(start.elapsed() < limit, "no {what} within {limit:?}:\n{text}");
            std::thread::sleep(POLL);
        }
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Gives the terminal another size, as dragging its window does.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.screen().screen_mut().set_size(cells(rows), cells(columns));
        let size = window(rows, columns);
        // SAFETY: the descriptor is open, and the call reads one `winsize`.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0, "failed to resize: {}", std::io::Error::last_os_error());
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: i32) {
        send_signal(self.child.id(), signal);
    }

    /// Waits for the program's end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}:\n{}", self.text());
            std::thread::sleep(POLL);
        }
    }

    /// Checks that the program has left the terminal as it was: its settings, its screen and its cursor.
    #[track_caller]
    pub fn assert_restored(&self) {
        let slave = self.slave.as_ref().expect("it is open until this is dropped");
        assert_eq!(settings(slave), self.before, "the terminal's settings are others");
        // The last of what was written may still be on its way to the reader.
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let (other, hidden) = {
                let parser = self.screen();
                (parser.screen().alternate_screen(), parser.screen().hide_cursor())
            };
            if !other && !hidden {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left on the other screen: {other}; cursor hidden: {hidden}\n{}",
                self.text()
            );
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // With the last of the program's ends gone, the reader comes to the end.
        self.slave = None;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("a terminal has cells")
}

fn window(rows: u16, columns: u16) -> libc::winsize {
    libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn open(rows: u16, columns: u16) -> (File, OwnedFd) {
    let (mut master, mut slave, size) = (-1, -1, window(rows, columns));
    // SAFETY: the call writes two descriptors and reads one `winsize`; a name and settings are not asked for. What it
    // has written is ours alone.
    let (master, slave) = unsafe {
        let done = libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw const size).cast_mut(),
        );
        assert_eq!(done, 0, "failed to open a terminal: {}", std::io::Error::last_os_error());
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    };
    for end in [&master, &slave] {
        // SAFETY: the descriptor is open. Children get only what is put in the place of their standard streams.
        let done = unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        assert_eq!(done, 0, "failed to keep a terminal: {}", std::io::Error::last_os_error());
    }
    (master.into(), slave)
}

fn settings(terminal: &OwnedFd) -> Settings {
    let mut found = std::mem::MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: the descriptor is open, the call writes one `termios`, and zeroes are a valid one.
    let found = unsafe {
        let done = libc::tcgetattr(terminal.as_raw_fd(), found.as_mut_ptr());
        assert_eq!(done, 0, "failed to look at a terminal: {}", std::io::Error::last_os_error());
        found.assume_init()
    };
    [found.c_iflag, found.c_oflag, found.c_cflag, found.c_lflag]
}

fn read(mut master: File, screen: Arc<Mutex<Parser>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = [0; 8192];
        while let Ok(count @ 1..) = master.read(&mut bytes) {
            screen.lock().expect("a test never panics while it holds the screen").process(&bytes[..count]);
        }
    })
}
