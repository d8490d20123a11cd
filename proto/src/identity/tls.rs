//! TLS configurations made of an identity: TLS 1.3 only, no resumption, so that every connection is authenticated anew.

use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::pinned::PinnedAuthority;
use super::{CoordinatorIdentity, IdentityError, WorkerIdentity};
use crate::control::PROTOCOL_VERSION;
use crate::ids::Peer;

/// What a QUIC connection is for, which its two ends must agree on, with the version that they speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// Frames of steps.
    Link,
    /// Weights.
    Delivery,
}

impl Alpn {
    pub(crate) fn protocol(self) -> Vec<u8> {
        let name = match self {
            Alpn::Link => "brigade",
            Alpn::Delivery => "brigade-delivery",
        };
        format!("{name}/{PROTOCOL_VERSION}").into_bytes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A certificate, its key, and the CA that signed it and every peer's.
pub(crate) struct TlsIdentity {
    pub(crate) peer: Peer,
    pub(super) certificate: CertificateDer<'static>,
    /// PKCS#8.
    pub(super) key: PrivatePkcs8KeyDer<'static>,
    pub(super) ca: CertificateDer<'static>,
}

impl TlsIdentity {
    fn roots(&self) -> Result<Arc<RootCertStore>, IdentityError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(Arc::new(roots))
    }

    /// The certificate and the CA's: who trusts by a token's hash must see the CA.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// Serves any client: one that shows a certificate must have it from this CA.
    pub(crate) fn control_server(&self) -> Result<ServerConfig, IdentityError> {
        self.server(true, vec![b"h2".to_vec()])
    }

    fn server(&self, anonymous: bool, protocols: Vec<Vec<u8>>) -> Result<ServerConfig, IdentityError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        let verifier = if anonymous { verifier.allow_unauthenticated() } else { verifier };
        let verifier = verifier.build().map_err(|error| IdentityError::Crypto(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(), self.private_key())?;
        config.alpn_protocols = protocols;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Talks to servers of this CA, with this identity.
    fn client(&self, protocol: Vec<u8>) -> Result<ClientConfig, IdentityError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, provider())
            .build()
            .map_err(|error| IdentityError::Crypto(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(self.chain(), self.private_key())?;
        config.alpn_protocols = vec![protocol];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// Talks to the coordinator whose CA has a key of this hash, without an identity of one's own.
pub(crate) fn enrolment_client(ca_spki_sha256: [u8; 32]) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority::new(ca_spki_sha256, provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What a data-plane transport needs of an identity, made from either kind.
#[derive(Clone)]
pub struct TransportIdentity(Arc<TlsIdentity>);

impl TransportIdentity {
    /// Whose identity it is.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    pub(crate) fn control_client(&self) -> Result<ClientConfig, IdentityError> {
        self.0.client(b"h2".to_vec())
    }

    pub(crate) fn quic_server(&self, services: &[Alpn]) -> Result<ServerConfig, IdentityError> {
        self.0.server(false, services.iter().map(|alpn| alpn.protocol()).collect())
    }

    pub(crate) fn quic_client(&self, service: Alpn) -> Result<ClientConfig, IdentityError> {
        self.0.client(service.protocol())
    }

    /// The certificate of the CA that it trusts.
    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.0.ca
    }
}

impl From<&CoordinatorIdentity> for TransportIdentity {
    fn from(identity: &CoordinatorIdentity) -> TransportIdentity {
        TransportIdentity(identity.tls())
    }
}

impl From<&WorkerIdentity> for TransportIdentity {
    fn from(identity: &WorkerIdentity) -> TransportIdentity {
        TransportIdentity(identity.tls())
    }
}

impl fmt::Debug for TransportIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransportIdentity({})", self.0.peer)
    }
}
