//! The certificates and keys of a state directory: whether they are valid, fit each other, and are the owner's alone.

use std::path::Path;

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Finding, Role, Subject, Surroundings};

const CHECK: &str = "certificates";

/// Files of a coordinator: certificates with their keys.
const PAIRS: [(&str, &str); 2] = [("ca.pem", "ca.key"), ("server.pem", "server.key")];
/// File of a worker, with its certificate, the CA's and its key.
const WORKER: &str = "worker.pem";
/// Other files that are nobody else's business.
const SECRETS: [&str; 2] = ["tokens.json", "coordinator.json"];
/// How long before its end a certificate is spoken of, in seconds.
const SOON: f64 = 30.0 * 24.0 * 3600.0;

pub(super) fn check(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    let Some(state) = &subject.state else {
        let remedy = "give --state DIR, or set HOME";
        return vec![Finding::fail(CHECK, "there is no place for the state directory", remedy)];
    };
    let at = state.display();
    let Some(mode) = machine.mode(state) else {
        return vec![Finding::ok(CHECK, format!("{at} is not there yet: it is made at the first start"))];
    };
    let mut findings = Vec::new();
    if mode & 0o077 != 0 {
        let found = format!("{at} is open to others ({mode:04o} instead of 0700)");
        findings.push(Finding::warn(CHECK, found, format!("chmod 700 {at}")));
    }
    let files: &[&str] = match subject.role {
        Role::Coordinator => &["ca.pem", "ca.key", "server.pem", "server.key", SECRETS[0], SECRETS[1]],
        Role::Worker => &[WORKER],
    };
    for file in files {
        let path = state.join(file);
        if let Some(mode) = machine.mode(&path)
            && mode & 0o077 != 0
        {
            let found = format!("{} can be read by others ({mode:04o} instead of 0600)", path.display());
            findings.push(Finding::fail(CHECK, found, format!("chmod 600 {}", path.display())));
        }
    }
    findings.extend(match subject.role {
        Role::Coordinator => coordinator(state, machine),
        Role::Worker => worker(state, machine),
    });
    findings
}

fn coordinator(state: &Path, machine: &dyn Surroundings) -> Vec<Finding> {
    let at = state.display();
    let anew_ca = format!("rm {at}/ca.pem {at}/ca.key, start the coordinator, and join every worker again");
    let anew_server = format!("rm {at}/server.pem {at}/server.key: they are made again at the next start");
    let mut findings = Vec::new();
    let mut authority = None;
    for ((cert_name, key_name), anew) in PAIRS.into_iter().zip([anew_ca, anew_server]) {
        let path = state.join(cert_name);
        let pem = match read(&path, machine) {
            Ok(Some(pem)) => pem,
            Ok(None) => {
                findings.push(Finding::ok(
                    CHECK,
                    format!("{} is not there yet: it is made at the next start", path.display()),
                ));
                continue;
            }
            Err(finding) => {
                findings.push(finding);
                continue;
            }
        };
        let Ok(cert) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
            findings.push(Finding::fail(CHECK, format!("{} holds no certificate", path.display()), anew));
            continue;
        };
        findings.push(validity(&path, &cert, machine.now(), &anew));
        let key = machine.read(&state.join(key_name)).ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
        if !key.is_some_and(|key| fits(&cert, &key)) {
            let found = format!("{} and {key_name} do not belong together", path.display());
            findings.push(Finding::fail(CHECK, found, anew));
            continue;
        }
        match &authority {
            None => authority = Some(cert),
            Some(ca) if !signed_by(&cert, ca) => {
                let found = format!("{} was not signed by ca.pem", path.display());
                findings.push(Finding::fail(CHECK, found, anew));
            }
            Some(_) => {}
        }
    }
    findings
}

fn worker(state: &Path, machine: &dyn Surroundings) -> Vec<Finding> {
    let path = state.join(WORKER);
    let at = path.display();
    let anew = format!("rm {at}, and join with a token: brigade-worker join ADDRESS --token TOKEN");
    let pem = match read(&path, machine) {
        Ok(Some(pem)) => pem,
        Ok(None) => {
            return vec![Finding::ok(CHECK, format!("{at} is not there yet: it comes with the first join"))];
        }
        Err(finding) => return vec![finding],
    };
    let certs: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect();
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).ok();
    let key = key.and_then(|key| KeyPair::try_from(&key).ok());
    let ([cert, ca], Some(key)) = (certs.as_slice(), key) else {
        return vec![Finding::fail(CHECK, format!("{at} does not hold two certificates and a key"), anew)];
    };
    if !fits(cert, &key) || !signed_by(cert, ca) {
        return vec![Finding::fail(CHECK, format!("{at} holds parts that do not belong together"), anew)];
    }
    vec![validity(&path, cert, machine.now(), &anew)]
}

/// What a file holds; `None` where there is none.
fn read(path: &Path, machine: &dyn Surroundings) -> Result<Option<String>, Finding> {
    match machine.read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let at = path.display();
            let remedy = format!("run this as its owner, or take it over: sudo chown \"$USER\" {at}");
            Err(Finding::fail(CHECK, format!("{at} cannot be read: {error}"), remedy))
        }
    }
}

fn validity(path: &Path, cert: &CertificateDer<'_>, now: f64, anew: &str) -> Finding {
    let at = path.display();
    let Ok((_, parsed)) = X509Certificate::from_der(cert) else {
        return Finding::fail(CHECK, format!("{at} holds no certificate that can be read"), anew);
    };
    let (from, until) = (parsed.validity().not_before, parsed.validity().not_after);
    let (from_s, until_s) = (from.timestamp() as f64, until.timestamp() as f64);
    if now < from_s {
        let found = format!("{at} is valid only from {from} on");
        return Finding::fail(CHECK, found, "set this machine's clock: sudo timedatectl set-ntp true");
    }
    if now > until_s {
        return Finding::fail(CHECK, format!("{at} has expired: it was valid until {until}"), anew);
    }
    if until_s - now < SOON {
        return Finding::warn(CHECK, format!("{at} expires soon, on {until}"), anew);
    }
    Finding::ok(CHECK, format!("{at} is valid until {until}"))
}

fn fits(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    X509Certificate::from_der(cert)
        .is_ok_and(|(_, cert)| cert.public_key().raw == key.subject_public_key_info())
}

fn signed_by(cert: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> bool {
    match (X509Certificate::from_der(cert), X509Certificate::from_der(ca)) {
        (Ok((_, cert)), Ok((_, ca))) => cert.verify_signature(Some(ca.public_key())).is_ok(),
        _ => false,
    }
}
