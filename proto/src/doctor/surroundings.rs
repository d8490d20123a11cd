//! What the checks look at the machine through.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::path::{self, Reach};

/// How long a command may take; one that hangs tells nothing.
const COMMAND_TIME: Duration = Duration::from_secs(5);
/// How often a command is asked whether it has ended.
const COMMAND_POLL: Duration = Duration::from_millis(10);
/// Most that is read of a file or a command's output, in bytes.
const MOST_BYTES: u64 = 1 << 20;
/// How long an HTTP server may take to answer.
const HTTP_TIME: Duration = Duration::from_secs(3);

/// A kind of operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Linux.
    Linux,
    /// macOS.
    MacOs,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a command came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Whether it ended well.
    pub success: bool,
    /// Its standard output.
    pub output: String,
}

/// A machine, as the checks see it.
pub trait Surroundings {
    /// What runs on it.
    fn system(&self) -> System;
    /// A file, by its absolute path.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The names in a folder; none where it cannot be read.
    fn list(&self, path: &Path) -> Vec<String>;
    /// Where a symbolic link points to.
    fn link(&self, path: &Path) -> Option<PathBuf>;
    /// Permissions of a file or folder, as in `0o600`; `None` where it is not there.
    fn mode(&self, path: &Path) -> Option<u32>;
    /// What a command says; `None` where there is no such program.
    fn run(&self, program: &str, arguments: &[&str]) -> Option<Ran>;
    /// Whether a port can be listened on.
    ///
    /// # Errors
    /// Why not.
    fn listen(&self, protocol: Protocol, addr: SocketAddr) -> io::Result<()>;
    /// How an address is reached.
    fn reach(&self, to: &str) -> Reach;
    /// The headers of what answers at an `http://` URL.
    ///
    /// # Errors
    /// Where nothing does.
    fn http_headers(&self, url: &str) -> io::Result<String>;
    /// Every address of every interface, by its name.
    fn addresses(&self) -> Vec<(String, IpAddr)>;
    /// Seconds since the Unix epoch.
    fn now(&self) -> f64;

    /// The first line of a file.
    fn line(&self, path: &str) -> Option<String> {
        Some(self.read(Path::new(path)).ok()?.lines().next()?.trim().to_owned())
    }

    /// A file that holds a number.
    fn number(&self, path: &str) -> Option<u64> {
        self.line(path)?.parse().ok()
    }
}

/// This machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

impl Surroundings for Here {
    fn system(&self) -> System {
        if cfg!(target_os = "macos") { System::MacOs } else { System::Linux }
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
        Ok(text)
    }

    fn list(&self, path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn link(&self, path: &Path) -> Option<PathBuf> {
        std::fs::read_link(path).ok()
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        let metadata = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        return Some(std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777);
        #[cfg(not(unix))]
        return Some(if metadata.is_dir() { 0o700 } else { 0o600 });
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Option<Ran> {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().ok()?;
        let pipe = child.stdout.take()?;
        // The pipe is read beside, so that a command that writes much does not wait for us.
        let reader = std::thread::spawn(move || {
            let mut output = Vec::new();
            let _ = pipe.take(MOST_BYTES).read_to_end(&mut output);
            String::from_utf8_lossy(&output).into_owned()
        });
        let deadline = Instant::now() + COMMAND_TIME;
        let success = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status.success(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(COMMAND_POLL),
                Ok(None) | Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break false;
                }
            }
        };
        let output = reader.join().unwrap_or_default();
        Some(Ran { success, output })
    }

    fn listen(&self, protocol: Protocol, addr: SocketAddr) -> io::Result<()> {
        match protocol {
            Protocol::Tcp => TcpListener::bind(addr).map(|_| ()),
            Protocol::Udp => UdpSocket::bind(addr).map(|_| ()),
        }
    }

    fn reach(&self, to: &str) -> Reach {
        path::reach(to)
    }

    fn http_headers(&self, url: &str) -> io::Result<String> {
        let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
        let host = host.ok_or_else(|| io::Error::other("it is not an http:// URL"))?;
        let with_port = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let addr =
            with_port.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("it has no address"))?;
        let mut stream = TcpStream::connect_timeout(&addr, HTTP_TIME)?;
        stream.set_read_timeout(Some(HTTP_TIME))?;
        write!(stream, "GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(MOST_BYTES).read_to_string(&mut answer)?;
        Ok(answer.split("\r\n\r\n").next().unwrap_or_default().to_owned())
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        interfaces.into_iter().map(|interface| (interface.name.clone(), interface.ip())).collect()
    }

    fn now(&self) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}
