//! The path to another machine: whether TCP connects, and whether UDP passes there and back.
//!
//! Any QUIC endpoint answers a packet of a version that does not exist with the versions that it speaks, before any
//! certificate is shown (RFC 9000, section 6). So the path is known without being anybody in particular.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use super::Finding;

const CHECK: &str = "path";

/// Port of a coordinator's data plane, and of its control plane, where an address names none.
pub const DATA_PORT: u16 = 7481;

/// How long an answer is waited for, each time.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is asked: one packet may be lost.
const TRIES: u32 = 4;
/// Smaller packets are not answered (RFC 9000, section 14.1).
const PACKET_BYTES: usize = 1200;
/// A version that is reserved for asking for others (RFC 9000, section 15).
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// Our connection id, which an answer repeats: so a stray datagram is none.
const CONNECTION_ID: &[u8; 8] = b"brigade?";

/// How an address is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It has no address, for this reason.
    Unknown(String),
    /// It was tried.
    Tried {
        /// The address.
        addr: SocketAddr,
        /// How UDP went.
        udp: UdpReach,
        /// How TCP went.
        tcp: TcpReach,
    },
}

/// How UDP passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdpReach {
    /// A QUIC endpoint has answered after this time.
    Answered(Duration),
    /// The machine says that nobody listens.
    Refused,
    /// Nothing came back.
    Silent,
    /// It could not be sent.
    Unsent(String),
}

/// How TCP connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpReach {
    /// It connects.
    Connected,
    /// The machine says that nobody listens.
    Refused,
    /// It does not, for this reason.
    Failed(String),
}

pub(super) fn check(to: &str, reach: &Reach) -> Vec<Finding> {
    let (addr, udp, tcp) = match reach {
        Reach::Unknown(reason) => {
            let remedy = "write HOST or HOST:PORT, or use the machine's IP address";
            return vec![Finding::fail(CHECK, format!("`{to}` has no address: {reason}"), remedy)];
        }
        Reach::Tried { addr, udp, tcp } => (addr, udp, tcp),
    };
    let port = addr.port();
    let open = format!(
        "let it through there: sudo ufw allow {port}, or sudo firewall-cmd --add-port={port}/tcp --add-port={port}/udp"
    );
    let udp = match udp {
        UdpReach::Answered(rtt) => {
            let ms = rtt.as_secs_f64() * 1e3;
            Finding::ok(CHECK, format!("UDP reaches {addr} and comes back in {ms:.1} ms"))
        }
        UdpReach::Refused => Finding::fail(
            CHECK,
            format!("UDP reaches {addr}, but nobody listens there"),
            "start the program there, or give the port that it says: `brigade status` lists workers' addresses",
        ),
        UdpReach::Silent => Finding::fail(
            CHECK,
            format!("UDP to {addr} does not come back: a firewall drops it"),
            open.clone(),
        ),
        UdpReach::Unsent(reason) => {
            let remedy = "check cable, Wi-Fi and address of this machine";
            Finding::fail(CHECK, format!("UDP to {addr} cannot be sent: {reason}"), remedy)
        }
    };
    let tcp = match tcp {
        TcpReach::Connected => Finding::ok(CHECK, format!("TCP connects to {addr}")),
        // Workers dial; only a coordinator is dialled.
        TcpReach::Refused => {
            Finding::ok(CHECK, format!("TCP to {addr} is refused, as by a worker, which needs none"))
        }
        TcpReach::Failed(reason) => {
            Finding::fail(CHECK, format!("TCP does not connect to {addr}: {reason}"), open)
        }
    };
    vec![udp, tcp]
}

/// Tries the first address of `to`.
pub(super) fn reach(to: &str) -> Reach {
    let resolved = to.to_socket_addrs().or_else(|_| {
        let host = to.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(to);
        (host, DATA_PORT).to_socket_addrs()
    });
    let addr = match resolved.map(|mut addrs| addrs.next()) {
        Ok(Some(addr)) => addr,
        Ok(None) => return Reach::Unknown("the name is known, but not where it is".to_owned()),
        Err(error) => return Reach::Unknown(error.to_string()),
    };
    let tcp = match TcpStream::connect_timeout(&addr, PATIENCE * TRIES) {
        Ok(_) => TcpReach::Connected,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => TcpReach::Refused,
        Err(error) => TcpReach::Failed(error.to_string()),
    };
    let udp = match ask(addr) {
        Ok(udp) => udp,
        Err(error) => UdpReach::Unsent(error.to_string()),
    };
    Reach::Tried { addr, udp, tcp }
}

fn ask(addr: SocketAddr) -> io::Result<UdpReach> {
    let socket = match addr {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.connect(addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    for _ in 0..TRIES {
        let asked = Instant::now();
        match socket.send(&question()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(UdpReach::Refused),
            sent => sent?,
        };
        let mut answer = [0; 1500];
        match socket.recv(&mut answer) {
            Ok(count) if is_answer(&answer[..count]) => return Ok(UdpReach::Answered(asked.elapsed())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(UdpReach::Refused),
            // Something else, or nothing yet.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(UdpReach::Silent)
}

/// A packet with a long header, of a version that nobody speaks.
fn question() -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend(NO_VERSION);
    packet.push(CONNECTION_ID.len() as u8);
    packet.extend(CONNECTION_ID);
    packet.push(CONNECTION_ID.len() as u8);
    packet.extend(CONNECTION_ID);
    packet.resize(PACKET_BYTES, 0);
    packet
}

/// Whether this is a version negotiation packet for our question: a long header, version 0, and our id as its
/// destination.
fn is_answer(packet: &[u8]) -> bool {
    packet.len() > 14
        && packet[0] & 0x80 != 0
        && packet[1..5] == [0; 4]
        && usize::from(packet[5]) == CONNECTION_ID.len()
        && packet[6..14] == CONNECTION_ID[..]
}
