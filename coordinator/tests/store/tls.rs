//! https: whom the system trusts, and nothing without it that was asked for with it.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::models::gguf;
use crate::program::{Outcome, brigade, outcome};
use crate::server::Server;

/// The server before TLS: its URL, and its authority's certificate.
async fn encrypted(server: &Server) -> (String, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let own = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (server, acceptor) = (server.clone(), acceptor.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    server.serve(stream).await;
                }
            });
        }
    });
    (url, certificate)
}

async fn pull(home: &Path, endpoint: &str, authorities: &Path) -> Outcome {
    let mut command = brigade(home, &["models", "pull", "hf:org/repo"]);
    for name in
        ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "SSL_CERT_DIR"]
    {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", endpoint).env_remove("HF_TOKEN").env("SSL_CERT_FILE", authorities);
    tokio::task::spawn_blocking(move || outcome(&mut command)).await.unwrap()
}

/// Where the system's authorities are named by a variable.
#[tokio::test]
async fn https_is_spoken_with_whom_the_system_trusts() {
    let server = Server::start().await;
    let model = gguf(8, 1);
    server.put("org/repo/m.gguf", model.clone());
    let (url, authority) = encrypted(&server).await;
    let (_, stranger) = encrypted(&server).await;
    let home = tempfile::tempdir().unwrap();
    let (known, unknown) = (home.path().join("known.pem"), home.path().join("unknown.pem"));
    std::fs::write(&known, authority).unwrap();
    std::fs::write(&unknown, stranger).unwrap();

    let refused = pull(home.path(), &url, &unknown).await;
    assert!(refused.code == Some(1) && refused.err.contains("invalid peer certificate"), "{refused:?}");
    assert_eq!(server.asked(), [""; 0]);

    // What is asked for over https is not fetched without it, wherever the hub points.
    server.fail(|faults| faults.redirect = Some(server.url()));
    let refused = pull(home.path(), &url, &known).await;
    assert!(refused.code == Some(1) && refused.err.contains("is not fetched without it"), "{refused:?}");
    assert_eq!(server.served(), 0);

    server.heal();
    let pulled = pull(home.path(), &url, &known).await;
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(std::fs::read(home.path().join(".local/share/brigade/models/m.gguf")).unwrap() == model);
}
