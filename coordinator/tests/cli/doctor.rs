//! `brigade doctor` on this very machine, in a home of its own.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use brigade_proto::identity::CoordinatorIdentity;
use serde_json::Value;

use crate::program::{Outcome, run};

/// A certificate whose time has passed.
fn expired() -> String {
    let mut params = rcgen::CertificateParams::new(vec!["coordinator.brigade".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// The findings of a check, as JSON.
fn findings(outcome: &Outcome, check: &str) -> Vec<Value> {
    let report: Value =
        serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    let findings = report["findings"].as_array().unwrap().iter();
    findings.filter(|finding| finding["check"] == check).cloned().collect()
}

#[test]
fn in_a_new_home_nothing_has_failed() {
    let home = tempfile::tempdir().unwrap();
    let args = ["doctor", "--http", "127.0.0.1:0", "--control", "127.0.0.1:0", "--json"];
    let outcome = run(home.path(), &args);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for check in
        ["ports", "firewall", "certificates", "network", "disk", "memory", "device", "kernel", "clock"]
    {
        assert!(!findings(&outcome, check).is_empty(), "{check} in {}", outcome.out);
    }
    let text = run(home.path(), &args[..5]);
    assert!(text.out.contains("0 failed") && text.out.contains("ok    certificates"), "{text:?}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is made or changed");
}

#[test]
fn a_taken_port_fails_and_names_who_has_it() {
    let home = tempfile::tempdir().unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    // Where the system has more than one such address, one that no other test's connections have, any of which may take the
    // TCP port of this number.
    let own = if cfg!(target_os = "linux") { "127.0.0.77:0" } else { "127.0.0.1:0" };
    let data = UdpSocket::bind(own).unwrap();
    let addr = |addr: std::net::SocketAddr| addr.to_string();
    let (http_addr, data_addr) = (addr(http.local_addr().unwrap()), addr(data.local_addr().unwrap()));
    let outcome = run(home.path(), &["doctor", "--http", &http_addr, "--control", &data_addr, "--json"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let ports = findings(&outcome, "ports");
    let levels: Vec<_> = ports.iter().map(|finding| finding["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["fail", "ok", "fail"], "{ports:#?}");
    let id = std::process::id();
    for taken in [&ports[0], &ports[2]] {
        assert!(taken["found"].as_str().unwrap().contains(&format!("(process {id})")), "{taken}");
        assert!(taken["remedy"].as_str().unwrap().contains(&format!("kill {id}")), "{taken}");
    }
}

#[test]
fn keys_that_others_can_read_and_certificates_that_do_not_fit_fail() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join(".local/state/brigade");
    CoordinatorIdentity::load_or_create(&state).unwrap();
    let args = ["doctor", "--http", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    assert_eq!(run(home.path(), &args).code, Some(0));
    std::fs::set_permissions(state.join("ca.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let outcome = run(home.path(), &args);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.out.contains("ca.key can be read by others (0644 instead of 0600)"), "{}", outcome.out);
    assert!(
        outcome.out.contains(&format!("> chmod 600 {}", state.join("ca.key").display())),
        "{}",
        outcome.out
    );
    std::fs::set_permissions(state.join("ca.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(state.join("server.pem"), expired()).unwrap();
    let outcome = run(home.path(), &args);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.out.contains("server.pem has expired: it was valid until"), "{}", outcome.out);
    assert!(outcome.out.contains("made again at the next start"), "{}", outcome.out);
}

#[test]
fn an_address_that_nobody_listens_at_fails() {
    let home = tempfile::tempdir().unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let args = ["doctor", "--http", "127.0.0.1:0", "--control", "127.0.0.1:0", "--json", "--to", &free];
    let outcome = run(home.path(), &args);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let path = findings(&outcome, "path");
    assert!(path[0]["found"].as_str().unwrap().contains("nobody listens there"), "{path:#?}");
}
