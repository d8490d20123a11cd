//! What a certificate says about its owner.

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;
use crate::ids::{Peer, WorkerId};

/// The coordinator's DNS name, whatever address it is reached at.
const SERVER_NAME: &str = "coordinator.brigade";
/// What follows a worker's id in its DNS name.
const WORKER_SUFFIX: &str = ".worker.brigade";

/// The DNS name in a peer's certificate.
pub(crate) fn dns_name(peer: &Peer) -> String {
    match peer {
        Peer::Coordinator => SERVER_NAME.to_owned(),
        Peer::Worker(id) => format!("{id}{WORKER_SUFFIX}"),
    }
}

/// The name that a peer's certificate is checked against.
///
/// # Errors
/// Never for a valid id: every worker id is a DNS label.
pub(crate) fn server_name(peer: &Peer) -> Result<ServerName<'static>, IdentityError> {
    ServerName::try_from(dns_name(peer))
        .map_err(|error| IdentityError::Certificate(format!("cannot have the name of {peer}: {error}")))
}

/// Whether the owner of a certificate's key has signed a message.
pub(crate) fn is_signed_by(cert: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let Ok(parsed) = parse(cert) else {
        return false;
    };
    let key = &parsed.public_key().subject_public_key.data;
    // A key of one kind is none of another, so that the right algorithm is the one that says yes.
    let algorithms = ring::default_provider().signature_verification_algorithms;
    algorithms.all.iter().any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(cert) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(IdentityError::Certificate(format!("cannot be read: {error}"))),
    }
}

/// Whose certificate it is, by its one DNS name. The certificate's signature is not looked at: TLS has done that.
///
/// # Errors
/// Where the certificate cannot be read, or its name is not one that a Brigade coordinator gives.
pub fn peer_of(cert: &CertificateDer<'_>) -> Result<Peer, IdentityError> {
    let parsed = parse(cert)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| IdentityError::Certificate(format!("has a name that cannot be read: {error}")))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let [GeneralName::DNSName(name)] = names else {
        return Err(IdentityError::Certificate(format!("has {} names instead of one DNS name", names.len())));
    };
    if *name == SERVER_NAME {
        return Ok(Peer::Coordinator);
    }
    let id = name.strip_suffix(WORKER_SUFFIX).and_then(|id| WorkerId::try_from(id.to_owned()).ok());
    match id {
        Some(id) => Ok(Peer::Worker(id)),
        None => Err(IdentityError::Certificate(format!("is for `{name}`, which names nobody of a brigade"))),
    }
}

/// SHA-256 of a certificate's public key (its SubjectPublicKeyInfo, DER).
pub(super) fn spki_sha256(cert: &CertificateDer<'_>) -> Result<[u8; 32], IdentityError> {
    Ok(Sha256::digest(parse(cert)?.public_key().raw).into())
}

/// A certificate's public key (its SubjectPublicKeyInfo, DER).
pub(super) fn spki(cert: &CertificateDer<'_>) -> Result<Vec<u8>, IdentityError> {
    Ok(parse(cert)?.public_key().raw.to_vec())
}
