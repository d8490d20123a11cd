//! Identities and join tokens, in files and as text.

mod harness;

use std::fs;

use brigade_proto::identity::{
    CoordinatorIdentity, IdentityError, JoinToken, TokenError, TransportIdentity, WorkerIdentity, WorkerKey,
    peer_of,
};
use brigade_proto::ids::{Peer, WorkerId};
use harness::{coordinator_identity, pem_section, worker_identity};
use tempfile::TempDir;

#[test]
fn a_token_survives_its_text() {
    let token = JoinToken::generate([0xab; 32]).unwrap();
    let text = token.to_string();
    assert!(text.starts_with(&format!("bg1-{}-", "ab".repeat(32))), "{text}");
    assert_eq!(text.parse(), Ok(token.clone()));
    assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
    assert_ne!(token.secret, JoinToken::generate([0xab; 32]).unwrap().secret);
}

#[test]
fn a_token_keeps_its_secret_out_of_logs() {
    let token = JoinToken::generate([1; 32]).unwrap();
    assert!(!format!("{token:?}").contains(&token.secret), "{token:?}");
}

#[test]
fn what_is_wrong_with_a_token_is_said() {
    let (hash, secret) = ("0".repeat(64), "f".repeat(32));
    for (text, error) in [
        (String::new(), TokenError::Prefix),
        ("hello".to_owned(), TokenError::Prefix),
        (format!("bg2-{hash}-{secret}"), TokenError::Prefix),
        ("bg1".to_owned(), TokenError::Parts { parts: 1 }),
        (format!("bg1-{hash}"), TokenError::Parts { parts: 2 }),
        (format!("bg1-{hash}-{secret}-x"), TokenError::Parts { parts: 4 }),
        (format!("bg1-{}-{secret}", &hash[1..]), TokenError::Hash { found: 63 }),
        (format!("bg1-{}-{secret}", "é".repeat(32)), TokenError::Hash { found: 32 }),
        (format!("bg1-{}-{secret}", "G".repeat(64)), TokenError::Hash { found: 64 }),
        (format!("bg1-{hash}-{}", &secret[1..]), TokenError::Secret { found: 31 }),
        (format!("bg1-{hash}-"), TokenError::Secret { found: 0 }),
    ] {
        let found = text.parse::<JoinToken>().unwrap_err();
        assert_eq!(found, error, "{text}");
        assert!(!found.to_string().contains(&secret), "{found}");
    }
}

#[test]
fn a_coordinator_stays_who_it_is() {
    let (first, dir) = coordinator_identity();
    let again = CoordinatorIdentity::load_or_create(dir.path()).unwrap();
    assert_eq!(first.ca_spki_sha256(), again.ca_spki_sha256());
    assert_eq!(first.ca_der(), again.ca_der());
    assert_ne!(first.ca_spki_sha256(), coordinator_identity().0.ca_spki_sha256());
}

#[test]
fn a_lost_server_certificate_or_ca_certificate_is_made_again_by_the_same_ca() {
    let (first, dir) = coordinator_identity();
    for file in ["server.pem", "server.key", "ca.pem"] {
        fs::remove_file(dir.path().join(file)).unwrap();
        let again = CoordinatorIdentity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.ca_spki_sha256(), again.ca_spki_sha256(), "without {file}");
        assert!(dir.path().join(file).exists(), "{file}");
    }
}

#[test]
fn broken_ca_files_are_named() {
    for (file, content) in [
        ("ca.key", Some("not a key")),
        ("ca.key", None),
        ("ca.pem", Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
        ("ca.pem", Some("")),
    ] {
        let (_, dir) = coordinator_identity();
        let path = dir.path().join(file);
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = CoordinatorIdentity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Content { .. }), "{error}");
        assert!(error.to_string().contains("ca."), "{error}");
    }
    // Another CA's certificate beside the key.
    let ((_, mine), (_, other)) = (coordinator_identity(), coordinator_identity());
    fs::copy(other.path().join("ca.pem"), mine.path().join("ca.pem")).unwrap();
    let error = CoordinatorIdentity::load_or_create(mine.path()).unwrap_err();
    assert!(error.to_string().contains("not the certificate of ca.key"), "{error}");
}

#[test]
fn a_state_directory_that_cannot_be_is_an_error() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = CoordinatorIdentity::load_or_create(&file.join("state")).unwrap_err();
    assert!(error.to_string().contains("file/state"), "{error}");
}

#[cfg(unix)]
#[test]
fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("deep/state");
    let identity = CoordinatorIdentity::load_or_create(&dir).unwrap();
    worker_identity(&identity, "w1").save(&dir).unwrap();
    assert_eq!(mode(&dir), 0o700);
    let mut files: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["ca.key", "ca.pem", "server.key", "server.pem", "worker.pem"]);
    for file in files {
        assert_eq!(mode(&dir.join(&file)), 0o600, "{file}");
    }
}

#[test]
fn a_worker_stays_who_it_is() {
    let (coordinator, dir) = coordinator_identity();
    assert!(WorkerIdentity::load(dir.path()).unwrap().is_none());
    let worker = worker_identity(&coordinator, "w1");
    worker.save(dir.path()).unwrap();
    let again = WorkerIdentity::load(dir.path()).unwrap().unwrap();
    assert_eq!(again.id(), worker.id());
    assert_eq!(again.ca_spki_sha256().unwrap(), coordinator.ca_spki_sha256());
    let certificate = pem_section(&dir.path().join("worker.pem"), "CERTIFICATE", 0);
    assert_eq!(peer_of(&certificate.into()).unwrap(), Peer::Worker(worker.id().clone()));
    assert_eq!(TransportIdentity::from(&worker).peer(), &Peer::Worker(worker.id().clone()));
    assert_eq!(TransportIdentity::from(&coordinator).peer(), &Peer::Coordinator);
}

#[test]
fn a_broken_worker_file_is_named() {
    let (coordinator, dir) = coordinator_identity();
    worker_identity(&coordinator, "w1").save(dir.path()).unwrap();
    let path = dir.path().join("worker.pem");
    let good = fs::read_to_string(&path).unwrap();
    for length in (0..good.len()).step_by(53) {
        fs::write(&path, &good[..length]).unwrap();
        let error = WorkerIdentity::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("worker.pem"), "{length}: {error}");
    }
}

#[test]
fn the_coordinators_certificate_is_no_workers() {
    let (_, dir) = coordinator_identity();
    let certificate = pem_section(&dir.path().join("server.pem"), "CERTIFICATE", 0);
    assert_eq!(peer_of(&certificate.into()).unwrap(), Peer::Coordinator);
    let ca = pem_section(&dir.path().join("ca.pem"), "CERTIFICATE", 0);
    assert!(peer_of(&ca.into()).is_err(), "the CA is nobody's peer");
    assert!(peer_of(&b"junk".to_vec().into()).is_err());
}

#[test]
fn an_enrolment_must_fit_its_key_and_token() {
    let ((mine, _), (other, _)) = (coordinator_identity(), coordinator_identity());
    let worker = WorkerId::try_from("w1".to_owned()).unwrap();
    let enrolment = |by: &CoordinatorIdentity, csr: &[u8]| brigade_proto::control::Enrolment {
        worker: worker.clone(),
        certificate_der: by.sign_worker(csr, &worker).unwrap(),
        ca_der: by.ca_der().to_vec(),
    };
    let key = WorkerKey::generate().unwrap();
    let foreign = enrolment(&other, &key.request().unwrap());
    assert!(key.enrolled(foreign, &mine.ca_spki_sha256()).is_err(), "another CA");
    let key = WorkerKey::generate().unwrap();
    let stolen = enrolment(&mine, &WorkerKey::generate().unwrap().request().unwrap());
    assert!(key.enrolled(stolen, &mine.ca_spki_sha256()).is_err(), "another key");
}

#[test]
fn junk_is_not_signed() {
    let (coordinator, _dir) = coordinator_identity();
    let worker = WorkerId::try_from("w1".to_owned()).unwrap();
    let mut request = WorkerKey::generate().unwrap().request().unwrap();
    for junk in [&b""[..], b"junk", &request[..request.len() / 2]] {
        assert!(coordinator.sign_worker(junk, &worker).is_err(), "{} bytes", junk.len());
    }
    // The last byte is the signature's.
    *request.last_mut().unwrap() ^= 1;
    assert!(coordinator.sign_worker(&request, &worker).is_err(), "a wrong signature");
}
