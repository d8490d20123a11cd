//! A network between namespaces whose packets all go through this process, which delays, paces and drops them.
//!
//! Each host has a TUN device, and what is sent there is read here and written to the device of the host it is for. So
//! links can be bad on every kernel that has TUN devices, whether it has queueing disciplines for that or not.

use std::fs::File;
use std::io::{Error, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Packets that a link holds at a time, as many as netem does; what comes on top is lost.
const QUEUE_PACKETS: usize = 1000;
/// Largest packet read.
const PACKET_BYTES: usize = 65_536;
/// How often a reader looks whether it is to end.
const POLL_MS: i32 = 50;

/// What each host's link does to what the host sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// How long a packet is under way.
    pub delay: Duration,
    /// The share of packets that are lost, from 0 to 1.
    pub loss: f64,
    /// Bits a second; `None` where that has no limit.
    pub bits_per_s: Option<f64>,
}

impl Conditions {
    /// A link with a delay alone.
    pub fn delay(delay: Duration) -> Conditions {
        Conditions { delay, loss: 0.0, bits_per_s: None }
    }

    /// The same, and a share of packets is lost.
    pub fn loss(self, loss: f64) -> Conditions {
        Conditions { loss, ..self }
    }

    /// The same, with so many bits a second.
    pub fn bits_per_s(self, bits_per_s: f64) -> Conditions {
        Conditions { bits_per_s: Some(bits_per_s), ..self }
    }
}

/// The links of some hosts. When it is dropped, they are gone.
#[derive(Debug)]
pub struct Wires {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    conditions: Mutex<Conditions>,
    /// The hosts' devices, each with its address.
    devices: Vec<(Ipv4Addr, File)>,
    sent: AtomicU64,
    dropped: AtomicU64,
    ended: AtomicBool,
}

struct Packet {
    due: Instant,
    to: usize,
    bytes: Vec<u8>,
}

impl Wires {
    /// Gives each namespace a device `eth0` for packets to and from the address named beside it; it has still to be given
    /// that address, and to be set up.
    ///
    /// # Errors
    /// Where the system makes no such devices, for people.
    pub fn between(hosts: &[(String, Ipv4Addr)], conditions: Conditions) -> Result<Wires, String> {
        let device = |(namespace, address): &(String, Ipv4Addr)| {
            within(namespace, || tun("eth0"))?
                .map(|file| (*address, file))
                .map_err(|error| format!("failed to make a TUN device: {error}"))
        };
        let devices = hosts.iter().map(device).collect::<Result<Vec<_>, String>>()?;
        let shared = Arc::new(Shared {
            conditions: Mutex::new(conditions),
            devices,
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        for host in 0..hosts.len() {
            let (queue, queued) = sync_channel(QUEUE_PACKETS);
            let (reader, writer) = (shared.clone(), shared.clone());
            threads.push(std::thread::spawn(move || reader.take(host, &queue)));
            threads.push(std::thread::spawn(move || writer.give(&queued)));
        }
        Ok(Wires { shared, threads })
    }

    /// From now on links are like this.
    pub fn set(&self, conditions: Conditions) {
        *self.shared.conditions.lock().expect("nobody panics while holding it") = conditions;
    }

    /// Packets sent and lost so far.
    pub fn packets(&self) -> (u64, u64) {
        (self.shared.sent.load(Ordering::Relaxed), self.shared.dropped.load(Ordering::Relaxed))
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A defect there has failed the test already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Reads what a host sends, until the end.
    fn take(&self, host: usize, queue: &SyncSender<Packet>) {
        let mut file = &self.devices[host].1;
        let mut buffer = vec![0; PACKET_BYTES];
        let mut random = host as u64 + 1;
        let mut free = Instant::now();
        while !self.ended.load(Ordering::Relaxed) {
            if !is_readable(file) {
                continue;
            }
            let Ok(len) = file.read(&mut buffer) else { return };
            let packet = &buffer[..len];
            let Some(to) = self.receiver(packet) else { continue };
            let conditions = *self.conditions.lock().expect("nobody panics while holding it");
            self.sent.fetch_add(1, Ordering::Relaxed);
            let now = Instant::now();
            free = free.max(now);
            if let Some(bits_per_s) = conditions.bits_per_s {
                free += Duration::from_secs_f64(len as f64 * 8.0 / bits_per_s);
            }
            let packet = Packet { due: free + conditions.delay, to, bytes: packet.to_vec() };
            if share(&mut random) < conditions.loss || queue.try_send(packet).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes what a host has sent, each packet when it is due.
    fn give(&self, queued: &Receiver<Packet>) {
        while let Ok(packet) = queued.recv() {
            std::thread::sleep(packet.due.saturating_duration_since(Instant::now()));
            // A host that is gone hears nothing.
            let _ = (&self.devices[packet.to].1).write(&packet.bytes);
        }
    }

    /// The host that a packet is for; only IPv4 goes anywhere.
    fn receiver(&self, packet: &[u8]) -> Option<usize> {
        let to = packet.get(16..20).filter(|_| packet[0] >> 4 == 4)?;
        let to = Ipv4Addr::new(to[0], to[1], to[2], to[3]);
        self.devices.iter().position(|(address, _)| *address == to)
    }
}

/// The next number from 0 to 1; the same ones in every run.
fn share(state: &mut u64) -> f64 {
    // splitmix64
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Does some work in a network namespace made by `ip netns add`, on a thread that ends with it.
///
/// # Errors
/// Where the namespace cannot be entered, for people.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let path = format!("/run/netns/{namespace}");
    let enter = || {
        let file = File::open(&path).map_err(|error| format!("failed to open {path}: {error}"))?;
        // SAFETY: the call takes numbers, and moves this thread alone, which ends with the work.
        match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(work()),
            _ => Err(format!("failed to enter {path}: {}", Error::last_os_error())),
        }
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A TUN device of this thread's namespace; it is there as long as the file is open.
fn tun(name: &str) -> Result<File, Error> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: zeroes are a valid `ifreq`, and the flags are what the call reads of its union.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &request)
    };
    if result == 0 { Ok(file) } else { Err(Error::last_os_error()) }
}

/// Waits for a packet, for a bounded time.
fn is_readable(file: &File) -> bool {
    let mut polled = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the one descriptor that is asked about lives for the call.
    unsafe { libc::poll(&mut polled, 1, POLL_MS) == 1 && polled.revents & libc::POLLIN != 0 }
}
