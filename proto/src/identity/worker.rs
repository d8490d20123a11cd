//! A worker's certificate, as enrolling yields it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::IdentityError;
use super::files;
use super::names::{peer_of, spki, spki_sha256};
use super::tls::TlsIdentity;
use crate::control::Enrolment;
use crate::ids::{Peer, WorkerId};

/// The file of the state directory: certificate, CA and key in one, so that it is replaced as a whole.
const FILE: &str = "worker.pem";

/// A key without a certificate yet.
pub struct WorkerKey(KeyPair);

impl WorkerKey {
    /// A new key, ECDSA P-256.
    ///
    /// # Errors
    /// Where the system gives no random numbers.
    pub fn generate() -> Result<WorkerKey, IdentityError> {
        Ok(WorkerKey(KeyPair::generate()?))
    }

    /// A PKCS#10 request, DER, that proves possession of the key and asks for nothing else.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    /// The identity that the key and an enrolment make.
    ///
    /// # Errors
    /// Where the certificate is not for this key or this worker, or the CA's key does not have the hash.
    pub fn enrolled(
        self,
        enrolment: Enrolment,
        ca_spki_sha256: &[u8; 32],
    ) -> Result<WorkerIdentity, IdentityError> {
        let certificate = CertificateDer::from(enrolment.certificate_der);
        let ca = CertificateDer::from(enrolment.ca_der);
        if spki_sha256(&ca)? != *ca_spki_sha256 {
            return Err(IdentityError::Certificate("came with another CA than the token's".to_owned()));
        }
        let identity = WorkerIdentity::new(certificate, ca, self.0)?;
        if identity.id != enrolment.worker {
            let problem = format!("is for `{}`, not for `{}`", identity.id, enrolment.worker);
            return Err(IdentityError::Certificate(problem));
        }
        Ok(identity)
    }
}

impl fmt::Debug for WorkerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerKey")
    }
}

/// A worker's id, key and certificate, and the CA that it trusts. Clones share it.
#[derive(Clone)]
pub struct WorkerIdentity {
    id: WorkerId,
    tls: Arc<TlsIdentity>,
}

impl WorkerIdentity {
    fn new(
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<WorkerIdentity, IdentityError> {
        let peer = peer_of(&certificate)?;
        let Peer::Worker(id) = peer.clone() else {
            return Err(IdentityError::Certificate("is the coordinator's, not a worker's".to_owned()));
        };
        if spki(&certificate)? != key.subject_public_key_info() {
            return Err(IdentityError::Certificate("is for another key".to_owned()));
        }
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(WorkerIdentity { id, tls: Arc::new(TlsIdentity { peer, certificate, key, ca }) })
    }

    /// Reads the identity that `state_dir` holds (`worker.pem`); `None` where there is none.
    ///
    /// # Errors
    /// Where the file cannot be read or does not hold certificate, CA and key.
    pub fn load(state_dir: &Path) -> Result<Option<WorkerIdentity>, IdentityError> {
        let path = state_dir.join(FILE);
        let Some(pem) = files::read(&path)? else {
            return Ok(None);
        };
        let problem = match WorkerIdentity::parse(&pem) {
            Ok(identity) => return Ok(Some(identity)),
            Err(error) => format!("does not hold a worker's identity ({error})"),
        };
        Err(IdentityError::Content { path, problem, remedy: "join again with a token" })
    }

    fn parse(pem: &str) -> Result<WorkerIdentity, IdentityError> {
        let unreadable =
            |error: &dyn fmt::Display| IdentityError::Certificate(format!("is missing: {error}"));
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unreadable(&error))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| unreadable(&error))?;
        let key = KeyPair::try_from(&key)?;
        match <[CertificateDer<'static>; 2]>::try_from(certificates) {
            Ok([certificate, ca]) => WorkerIdentity::new(certificate, ca, key),
            Err(found) => {
                Err(IdentityError::Certificate(format!("is missing: {} of 2 are there", found.len())))
            }
        }
    }

    /// Keeps the identity in `state_dir` (made with 0700) as `worker.pem` (0600), replacing one that is there.
    ///
    /// # Errors
    /// Where the file or its directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), IdentityError> {
        files::private_dir(state_dir)?;
        let parts = [
            pem::Pem::new("CERTIFICATE", self.tls.certificate.to_vec()),
            pem::Pem::new("CERTIFICATE", self.tls.ca.to_vec()),
            pem::Pem::new("PRIVATE KEY", self.tls.key.secret_pkcs8_der()),
        ];
        files::write_private(state_dir, FILE, pem::encode_many(&parts).as_bytes())
    }

    /// The worker's id, as the coordinator gave it.
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// SHA-256 of the CA's public key: whose worker this is.
    ///
    /// # Errors
    /// Where the CA's certificate cannot be read.
    pub fn ca_spki_sha256(&self) -> Result<[u8; 32], IdentityError> {
        spki_sha256(&self.tls.ca)
    }

    pub(crate) fn tls(&self) -> Arc<TlsIdentity> {
        self.tls.clone()
    }
}

impl fmt::Debug for WorkerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerIdentity({})", self.id)
    }
}
