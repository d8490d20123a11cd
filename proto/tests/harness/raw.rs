//! Peers that speak the wire's protocols without this crate's code: other versions, and attackers.
#![expect(dead_code, reason = "each test binary uses its part of the harness")]

use std::sync::Arc;

use brigade_proto::identity::{CoordinatorIdentity, WorkerIdentity};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::harness::pem_section;

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn credentials(identity: &WorkerIdentity) -> Credentials {
    let dir = TempDir::new().expect("a temporary directory");
    identity.save(dir.path()).expect("saved");
    let path = dir.path().join("worker.pem");
    let chain = (0..2).map(|index| pem_section(&path, "CERTIFICATE", index).into()).collect();
    (chain, PrivatePkcs8KeyDer::from(pem_section(&path, "PRIVATE KEY", 0)).into())
}

fn roots(ca: &CoordinatorIdentity) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.ca_der().to_vec().into()).expect("a CA");
    Arc::new(roots)
}

/// A client that trusts `ca`, shows `identity` where there is one, and offers `alpn`.
pub fn client(ca: &CoordinatorIdentity, identity: Option<&WorkerIdentity>, alpn: &str) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots(ca));
    let mut config = match identity.map(credentials) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a key"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

/// A server that shows `identity` and takes `alpn`.
pub fn server(identity: &WorkerIdentity, alpn: &str) -> ServerConfig {
    let (chain, key) = credentials(identity);
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a key");
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

/// A gRPC channel to a coordinator.
pub async fn channel(addr: &str, tls: ClientConfig) -> Channel {
    let addr = addr.to_owned();
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let (addr, tls) = (addr.clone(), TlsConnector::from(Arc::new(tls.clone())));
        async move {
            let stream = TcpStream::connect(addr).await?;
            let name = ServerName::try_from("coordinator.brigade").map_err(std::io::Error::other)?;
            tls.connect(name, stream).await.map(hyper_util::rt::TokioIo::new)
        }
    });
    Endpoint::from_static("http://test").connect_with_connector(connector).await.expect("a channel")
}
