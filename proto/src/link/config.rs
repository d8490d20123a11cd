//! Settings of QUIC and its socket, each with its reason.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::CubicWithFloor;
use crate::identity::{Alpn, TransportIdentity};

/// How often a link without traffic is used, so that a broken one is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a silent peer is believed to be there: five keep-alives.
const IDLE_TIMEOUT_MS: u32 = 5_000;
/// How long the peer may keep an acknowledgement back. A lost last packet of a frame is sent again only after the
/// round trip and this, so that the default of 25 ms would be a stall of several decode steps.
const MAX_ACK_DELAY: Duration = Duration::from_millis(5);
/// How many packets the peer may keep unacknowledged, up to that delay: 65 KB of the largest. Otherwise it would
/// acknowledge a decode step's frame, of two packets, before it looks into it, which takes as long as reading it.
const ACK_THRESHOLD: u32 = 10;
/// Round trip assumed before one is measured: what a lost first packet costs, on networks that are mostly local.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Largest datagram tried, which jumbo Ethernet, Thunderbolt and loopback carry; where the path does not, discovery
/// settles lower. Fewer datagrams per frame are what makes a fast local link fast. Not the whole 8,952 bytes of a jumbo
/// frame: quinn hands ten datagrams at a time to the system, and more than 64 KiB at once are dropped without a word.
const MAX_DATAGRAM_BYTES: u16 = 6500;
/// Bytes of one stream that may be under way or unread: the bandwidth-delay product of 10 Gbit/s over 6 ms.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes of a connection that may be under way or unread: both streams' windows, so that an unread prefill stream never
/// holds up decode.
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAM_WINDOW_BYTES;
/// Fewest and most bytes of a connection that are written and not yet acknowledged. What is under way of a prefill frame
/// is what a decode frame still waits behind (1 MiB is 8 ms of 1 Gbit/s), and it is what the time that a large frame
/// takes to be written does not tell of the link's.
const SEND_WINDOW_BYTES: (u64, u64) = (1 << 20, 16 << 20);
/// The link rate that the send window is to keep busy: 20 Gbit/s, a fast one with as much again for late answers.
const SEND_WINDOW_BYTES_PER_MS: u64 = 2_500_000;
/// Bytes sent before the first acknowledgement: what 10 Gbit/s carries in a local round trip of 0.2 ms, so that the
/// first frames need not wait for the window to grow. Also, QUIC's own default is only two of our datagrams, and
/// quinn does not send a connection's close, with its reason, while the window is full.
const INITIAL_WINDOW_BYTES: u64 = 256 << 10;
/// What may be under way however often packets are lost: a decode frame of a wide model with several sequences, or 50 ms
/// of 10 Mbit/s, which any network queues.
const LEAST_WINDOW_BYTES: u64 = 64 << 10;
/// The two kinds of step.
const UNI_STREAMS: u32 = 2;
/// The one on which the dialling end says that it has chosen this path.
const BIDI_STREAMS: u32 = 1;
/// Socket buffers asked for: one window, so that a burst does not overflow while the process is not running. Systems
/// give less where their limits say so.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Bytes of a delivery that may be under way or unread, on a stream and on all of a connection's: more than any local link
/// carries in a round trip, and little beside what a worker may use.
const DELIVERY_WINDOW_BYTES: (u32, u32) = (4 << 20, 8 << 20);

fn transport(service: Alpn) -> Arc<TransportConfig> {
    let (stream_window, window) = match service {
        Alpn::Link => (STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES),
        Alpn::Delivery => DELIVERY_WINDOW_BYTES,
    };
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_DATAGRAM_BYTES);
    let mut ack = AckFrequencyConfig::default();
    ack.max_ack_delay(Some(MAX_ACK_DELAY)).ack_eliciting_threshold(VarInt::from_u32(ACK_THRESHOLD));
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW_BYTES);
    let congestion = CubicWithFloor { cubic: Arc::new(cubic), floor_bytes: LEAST_WINDOW_BYTES };
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .ack_frequency_config(Some(ack))
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(congestion))
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW_BYTES.0)
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
        .datagram_receive_buffer_size(None);
    Arc::new(config)
}

/// Bytes that may be written and not yet acknowledged on a link of this round trip.
pub(super) fn send_window(rtt: Duration) -> u64 {
    let bytes = (rtt.as_micros() as u64).saturating_mul(SEND_WINDOW_BYTES_PER_MS / 1000);
    bytes.clamp(SEND_WINDOW_BYTES.0, SEND_WINDOW_BYTES.1)
}

pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // The only failure is a size outside of QUIC's range, which this constant is in; the default then stays.
    let _ = config.max_udp_payload_size(MAX_DATAGRAM_BYTES);
    config
}

/// For a socket that gives these services; the settings are a link's until a connection says what it is for.
pub(super) fn server(identity: &TransportIdentity, services: &[Alpn]) -> Result<ServerConfig, String> {
    let tls = identity.quic_server(services).map_err(|error| error.to_string())?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(Alpn::Link));
    Ok(config)
}

pub(super) fn client(identity: &TransportIdentity, service: Alpn) -> Result<ClientConfig, String> {
    let tls = identity.quic_client(service).map_err(|error| error.to_string())?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(service));
    Ok(config)
}

/// A UDP socket at `addr`; `[::]` takes IPv4 too.
pub(super) fn socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if let IpAddr::V6(ip) = addr.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    for (direction, result) in [
        ("receive", socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)),
        ("send", socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)),
    ] {
        if let Err(error) = result {
            tracing::debug!(direction, %error, "failed to enlarge a socket buffer");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
