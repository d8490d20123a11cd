//! How this program asks others over HTTP: one place gives every client its TLS.
//!
//! Most clients speak to the user's own servers over plain HTTP; they trust no authority, so that making one reads no
//! files and works on systems without certificates. What comes from the internet trusts those of the system.

use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

/// A client for plain HTTP, past any proxy: a proxy stands between us and the internet, not between us and our own
/// servers.
pub fn plain() -> ClientBuilder {
    let trusting_nobody =
        tls().map(|tls| tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    with_tls(trusting_nobody).no_proxy()
}

/// A client for https, too, which trusts the authorities that the system trusts, and uses the proxy that `HTTPS_PROXY`,
/// `HTTP_PROXY` or `ALL_PROXY` name. Where the system has no authorities it reaches plain HTTP alone, and why is given.
pub fn internet() -> (ClientBuilder, Option<String>) {
    let trusting_the_system = tls().and_then(|tls| tls.with_platform_verifier());
    match trusting_the_system.map(|tls| tls.with_no_client_auth()) {
        Ok(tls) => (with_tls(Ok(tls)), None),
        Err(error) => {
            let nobody =
                tls().map(|tls| tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
            (with_tls(nobody), Some(error.to_string()))
        }
    }
}

type TlsBuilder = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn tls() -> Result<TlsBuilder, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
}

fn with_tls(tls: Result<ClientConfig, rustls::Error>) -> ClientBuilder {
    let builder = reqwest::Client::builder();
    match tls {
        Ok(tls) => builder.tls_backend_preconfigured(tls),
        // Ring speaks all versions, so that there is always a configuration.
        Err(_) => builder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_can_be_made_without_a_provider_of_the_process() {
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
        plain().build().unwrap();
        internet().0.build().unwrap();
    }
}
