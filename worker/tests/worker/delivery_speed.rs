//! How fast weights come, against what quinn alone moves between two threads of this machine: a measurement, run when asked
//! for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::desk::{Worker, World};
use super::tiny_model::TinyModel;

const ROUNDS: usize = 5;
/// Of what quinn alone moves, the least that is wanted.
const WANTED: f64 = 0.7;
const MIB: f64 = (1 << 20) as f64;

/// The windows, and the largest datagram, that deliveries have.
fn transport() -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(6500);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(VarInt::from_u32(4 << 20))
        .receive_window(VarInt::from_u32(8 << 20))
        .send_window(16 << 20);
    Arc::new(config)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Bytes per second of one stream between two threads.
fn quinn_alone(bytes: usize) -> f64 {
    let key = rcgen::generate_simple_self_signed(["here".to_owned()]).unwrap();
    let cert: CertificateDer<'static> = key.cert.der().clone();
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], private.into())
        .unwrap();
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    server.transport_config(transport());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    client.transport_config(transport());
    let (told, port) = std::sync::mpsc::channel();
    let giving = thread::spawn(move || {
        runtime().block_on(async move {
            let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let endpoint = Endpoint::server(server, any).unwrap();
            told.send(endpoint.local_addr().unwrap()).unwrap();
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let mut stream = connection.open_uni().await.unwrap();
            let piece = Bytes::from(vec![7; 1 << 20]);
            for _ in 0..bytes >> 20 {
                stream.write_chunk(piece.clone()).await.unwrap();
            }
            stream.finish().unwrap();
            connection.closed().await;
        });
    });
    let at = port.recv().unwrap();
    let rate = runtime().block_on(async move {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(client, at, "here").unwrap().await.unwrap();
        let began = Instant::now();
        let mut stream = connection.accept_uni().await.unwrap();
        let mut came = 0;
        while let Some(piece) = stream.read_chunk(usize::MAX, true).await.unwrap() {
            came += piece.bytes.len();
        }
        let rate = came as f64 / began.elapsed().as_secs_f64();
        connection.close(VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
        rate
    });
    giving.join().unwrap();
    rate
}

/// Bytes per second of a whole fetch into an empty cache: asked for, hashed, checked and written.
fn fetched(world: &World, round: usize) -> f64 {
    let worker: Worker = world.worker(&format!("round{round}"), None);
    let kept = worker.obtain(world);
    let all = world.desk.all();
    let bytes = kept.chunks().bytes(all.iter().copied()).0;
    let began = Instant::now();
    worker.fetch(&kept, all).unwrap();
    let rate = bytes as f64 / began.elapsed().as_secs_f64();
    drop(kept);
    world.stop(worker);
    rate
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement: run it with --ignored on a machine that does nothing else"]
fn weights_come_about_as_fast_as_quinn_moves_bytes() {
    let model = TinyModel {
        layers: 6,
        hidden: 2048,
        heads: 16,
        kv_heads: 16,
        feed_forward: 8192,
        vocab: 32_000,
        ..TinyModel::q4_1()
    };
    let world = World::with(model);
    let bytes = world.desk.chunks.bytes(world.desk.all()).0 as usize;
    // Pages of hashes are made once, which a coordinator does, too.
    fetched(&world, 0);
    let (mut alone, mut whole) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        alone.push(quinn_alone(bytes));
        whole.push(fetched(&world, round));
        println!(
            "round {round}: quinn alone {:.0} MiB/s, fetched {:.0} MiB/s",
            alone[round - 1] / MIB,
            whole[round - 1] / MIB
        );
    }
    let (alone, whole) = (median(&mut alone), median(&mut whole));
    println!(
        "{:.0} MiB: quinn alone {:.0} MiB/s, fetched {:.0} MiB/s: {:.0}% (medians; at least {:.0}% are wanted)",
        bytes as f64 / MIB,
        alone / MIB,
        whole / MIB,
        whole / alone * 100.0,
        WANTED * 100.0
    );
}
