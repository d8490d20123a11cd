//! The coordinator's certificate authority and its own certificate.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::IdentityError;
use super::files;
use super::names::{dns_name, peer_of, spki, spki_sha256};
use super::tls::TlsIdentity;
use crate::ids::{Peer, WorkerId};

/// How long certificates last: longer than the machines they are on. Removing a worker is the coordinator's list of
/// members, not its certificate's end.
const VALIDITY: Duration = Duration::days(3650);
/// How far clocks of a cluster may be behind the coordinator's when it joins.
const BACKDATED: Duration = Duration::days(2);

/// The coordinator's CA, and the certificate under it that the coordinator itself shows. Clones share it.
#[derive(Clone)]
pub struct CoordinatorIdentity(Arc<Authority>);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_spki_sha256: [u8; 32],
    tls: Arc<TlsIdentity>,
}

impl CoordinatorIdentity {
    /// Reads the identity that `state_dir` holds (`ca.pem`, `ca.key`, `server.pem`, `server.key`), making what is not
    /// there yet. The directory is for its owner alone (0700), and so are the files (0600).
    ///
    /// # Errors
    /// Where a file cannot be read or written, does not hold what it should, or the CA's certificate is there without
    /// its key.
    pub fn load_or_create(state_dir: &Path) -> Result<CoordinatorIdentity, IdentityError> {
        files::private_dir(state_dir)?;
        let (ca, issuer) = load_or_create_ca(state_dir)?;
        let (certificate, key) = load_or_create_server(state_dir, &issuer)?;
        let ca_spki_sha256 = spki_sha256(&ca)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let tls = Arc::new(TlsIdentity { peer: Peer::Coordinator, certificate, key, ca });
        Ok(CoordinatorIdentity(Arc::new(Authority { issuer, ca_spki_sha256, tls })))
    }

    /// SHA-256 of the CA's public key: what join tokens carry.
    pub fn ca_spki_sha256(&self) -> [u8; 32] {
        self.0.ca_spki_sha256
    }

    /// The CA's certificate, DER.
    pub fn ca_der(&self) -> &[u8] {
        &self.0.tls.ca
    }

    /// A certificate, DER, for `worker` and the key of `csr_der`, a PKCS#10 request. Nothing else in the request
    /// counts: the name is the coordinator's to give.
    ///
    /// # Errors
    /// Where the request cannot be read or is not signed by its own key.
    pub fn sign_worker(&self, csr_der: &[u8], worker: &WorkerId) -> Result<Vec<u8>, IdentityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| IdentityError::Certificate(format!("is not a certificate request: {error}")))?;
        let params = leaf(&Peer::Worker(worker.clone()))?;
        let certificate = params.signed_by(&request.public_key, &self.0.issuer)?;
        Ok(certificate.der().to_vec())
    }

    /// The CA key's signature of a message. Certificates begin with another byte than `message` may, so that no message is
    /// one.
    ///
    /// # Errors
    /// Where signing fails.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        debug_assert_ne!(message.first(), Some(&0x30), "it could be a certificate");
        Ok(self.0.issuer.key().sign(message)?)
    }

    pub(crate) fn tls(&self) -> Arc<TlsIdentity> {
        self.0.tls.clone()
    }
}

impl fmt::Debug for CoordinatorIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoordinatorIdentity")
    }
}

fn load_or_create_ca(
    dir: &Path,
) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), IdentityError> {
    const REMEDY: &str = "start a new CA, which every worker must join again";
    let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    let cert = files::read(&cert_path)?;
    let key = match files::read(&key_path)? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(|error| IdentityError::Content {
            path: key_path,
            problem: format!("is not a private key ({error})"),
            remedy: "start a new CA, together with ca.pem",
        })?,
        None if cert.is_some() => {
            let problem = "is there without its key, ca.key".to_owned();
            return Err(IdentityError::Content { path: cert_path, problem, remedy: REMEDY });
        }
        None => {
            let key = KeyPair::generate()?;
            files::write_private(dir, "ca.key", key.serialize_pem().as_bytes())?;
            key
        }
    };
    let cert = match cert {
        Some(pem) => CertificateDer::from_pem_slice(pem.as_bytes())
            .ok()
            .filter(|cert| spki(cert).is_ok_and(|spki| spki == key.subject_public_key_info()))
            .ok_or_else(|| IdentityError::Content {
                path: cert_path,
                problem: "is not the certificate of ca.key".to_owned(),
                remedy: "have it made again",
            })?,
        None => {
            let cert = authority()?.self_signed(&key)?;
            files::write_private(dir, "ca.pem", cert.pem().as_bytes())?;
            cert.der().clone()
        }
    };
    let issuer = Issuer::from_ca_cert_der(&cert, key)?;
    Ok((cert, issuer))
}

fn load_or_create_server(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
) -> Result<(CertificateDer<'static>, KeyPair), IdentityError> {
    let cert = files::read(&dir.join("server.pem"))?
        .and_then(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
    let key = files::read(&dir.join("server.key"))?.and_then(|pem| KeyPair::from_pem(&pem).ok());
    if let (Some(cert), Some(key)) = (cert, key)
        && peer_of(&cert).is_ok_and(|peer| peer == Peer::Coordinator)
        && spki(&cert).is_ok_and(|spki| spki == key.subject_public_key_info())
        && signed_by(&cert, issuer)
    {
        return Ok((cert, key));
    }
    // Nothing but the CA vouches for this key, so that a new one is as good as a lost or a half-written one.
    let key = KeyPair::generate()?;
    let cert = leaf(&Peer::Coordinator)?.signed_by(&key, issuer)?;
    files::write_private(dir, "server.key", key.serialize_pem().as_bytes())?;
    files::write_private(dir, "server.pem", cert.pem().as_bytes())?;
    Ok((cert.der().clone(), key))
}

fn signed_by(cert: &CertificateDer<'_>, issuer: &Issuer<'static, KeyPair>) -> bool {
    use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};
    let key = issuer.key().subject_public_key_info();
    match (X509Certificate::from_der(cert), SubjectPublicKeyInfo::from_der(&key)) {
        (Ok((_, cert)), Ok((_, key))) => {
            cert.verify_signature(Some(&key)).is_ok() && cert.validity().is_valid()
        }
        _ => false,
    }
}

/// Parameters of the CA's certificate. Its name is different each time: two CAs of one name would be told apart by
/// their signatures only, and the error would say that a signature is bad instead of that the issuer is unknown.
fn authority() -> Result<CertificateParams, IdentityError> {
    let mut tag = [0u8; 4];
    getrandom::fill(&mut tag).map_err(|error| IdentityError::Random(error.to_string()))?;
    let mut params = dated(CertificateParams::default());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Brigade CA {:08x}", u32::from_be_bytes(tag)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Parameters of a peer's certificate. Workers are servers too: their neighbours dial them.
fn leaf(peer: &Peer) -> Result<CertificateParams, IdentityError> {
    let name = dns_name(peer);
    let mut params = dated(CertificateParams::default());
    params.distinguished_name = DistinguishedName::new();
    // A common name has at most 64 characters, which an id fits and its DNS name may not.
    params.distinguished_name.push(DnType::CommonName, peer.to_string());
    params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.not_before = now.saturating_sub(BACKDATED);
    params.not_after = now.saturating_add(VALIDITY);
    params
}
