//! Who is who: the coordinator's certificate authority, join tokens, workers' certificates, and the TLS made of them.
//!
//! A coordinator makes its CA on first start ([`CoordinatorIdentity`]). A join token ([`JoinToken`]) names that CA by
//! the hash of its public key and carries a secret; enrolling with it yields a [`WorkerIdentity`]. A certificate's one
//! DNS name says whose it is ([`peer_of`]): `coordinator.brigade`, or `<worker id>.worker.brigade`. Certificates are
//! ECDSA P-256, connections TLS 1.3, and the cryptography provider is handed to each of them.

mod authority;
mod files;
mod names;
mod pinned;
mod tls;
mod token;
mod worker;

pub use authority::CoordinatorIdentity;
pub use names::peer_of;
pub use tls::TransportIdentity;
pub use token::{JoinToken, TokenError};
pub use worker::{WorkerIdentity, WorkerKey};

pub(crate) use names::{dns_name, is_signed_by, server_name};
pub(crate) use tls::{Alpn, enrolment_client};

use std::path::PathBuf;

/// An identity that cannot be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or directory of the state directory could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} {problem}; restore it, or remove it to {remedy}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What starts anew without it.
        remedy: &'static str,
    },
    /// A certificate or request that is not acceptable.
    #[error("a certificate or request {0}")]
    Certificate(String),
    /// The cryptography library failed.
    #[error("cannot make a certificate or key: {0}")]
    Crypto(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> IdentityError {
        IdentityError::Crypto(error.to_string())
    }
}

impl From<rustls::Error> for IdentityError {
    fn from(error: rustls::Error) -> IdentityError {
        IdentityError::Crypto(error.to_string())
    }
}
