//! What a worker runs with where it was not told.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use brigade_proto::control::DeviceKind;
use brigade_shard::units::{ByteRate, Bytes};
use brigade_worker::cli::{Command, JoinArgs, parse};
use brigade_worker::device::{DeviceMemory, Devices, Found, Presence};
use brigade_worker::offload::Offload;
use brigade_worker::settings::{Machine, Settings, SettingsError};

fn args(line: &str) -> JoinArgs {
    let words = ["brigade-worker", "join"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    match parse(words).unwrap().command {
        Command::Join(args) => *args,
        _ => panic!("not `join`"),
    }
}

fn machine() -> Machine {
    Machine {
        host: "studio.local".to_owned(),
        memory: Bytes(1000 << 20),
        parallelism: 12,
        home: Some("/home/ada".into()),
        state_home: None,
    }
}

/// A machine without cards, as drivers would tell of it where one is named all the same.
struct NoCards;

impl Devices for NoCards {
    fn found(&self) -> Found {
        Found { cuda: Presence::NotBuilt, metal: Presence::NotBuilt }
    }

    fn memory(&self, _: DeviceKind) -> Result<Option<DeviceMemory>, String> {
        Ok(None)
    }

    fn name(&self, _: DeviceKind) -> Option<String> {
        None
    }
}

#[test]
fn what_is_not_said_comes_from_the_machine() {
    let settings = Settings::new(args("10.0.0.1"), &machine(), &NoCards).unwrap();
    assert_eq!(settings.coordinator.as_str(), "10.0.0.1:7481");
    assert_eq!(settings.name.as_str(), "studio.local");
    assert_eq!(settings.budget.as_mib().round(), 800.0);
    assert_eq!((settings.threads, settings.device), (12, DeviceKind::Cpu));
    assert_eq!(settings.state, Path::new("/home/ada/.local/state/brigade-worker/studio.local"));
    assert_eq!(settings.models, [PathBuf::from("/home/ada/.local/share/brigade/models")]);
    assert!(settings.token.is_none() && settings.data.is_none() && settings.health.is_none());
}

#[test]
fn the_state_directory_follows_xdg_and_the_name() {
    let machine = Machine { state_home: Some("/var/state".into()), ..machine() };
    let settings = Settings::new(args("10.0.0.1 --name w1"), &machine, &NoCards).unwrap();
    assert_eq!(settings.state, Path::new("/var/state/brigade-worker/w1"));
}

#[test]
fn what_is_said_is_obeyed() {
    let line = "host:1 --memory 64MiB --threads 3 --device cuda:1 --models /a --models /b:/c --state /s --name n --data 10.0.0.2:9";
    let nowhere = Machine { home: None, ..machine() };
    let settings = Settings::new(args(line), &nowhere, &NoCards).unwrap();
    assert_eq!(settings.budget, Bytes::mib(64));
    assert_eq!((settings.threads, settings.device), (3, DeviceKind::Cuda(1)));
    assert_eq!(settings.models, ["/a", "/b", "/c"].map(PathBuf::from));
    assert_eq!((settings.state.as_path(), settings.name.as_str()), (Path::new("/s"), "n"));
    assert_eq!(settings.data, Some("10.0.0.2:9".parse().unwrap()));
}

#[test]
fn a_user_without_a_home_must_say_where() {
    let nowhere = Machine { home: None, ..machine() };
    for (line, flag) in [("h --models /m", "--state"), ("h --state /s", "--models")] {
        let error = Settings::new(args(line), &nowhere, &NoCards).unwrap_err();
        assert!(matches!(error, SettingsError::NoHome(_)) && error.to_string().contains(flag), "{error}");
    }
}

#[test]
fn a_token_is_taken_from_a_file_and_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let token = format!("bg1-{}-{}", "ab".repeat(32), "cd".repeat(16));
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let settings =
        Settings::new(args(&format!("h --token-file {}", file.display())), &machine(), &NoCards).unwrap();
    assert_eq!(settings.token.as_ref().unwrap().to_string(), token);
    assert!(!format!("{settings:?}").contains(&"cd".repeat(16)), "{settings:?}");
}

#[test]
fn layers_are_read_for_every_step_only_where_that_is_asked_for() {
    let settings = |line| Settings::new(args(line), &machine(), &NoCards);
    let offload = |line| settings(line).unwrap().offload;
    assert_eq!(offload("host"), Offload::No);
    assert_eq!(offload("host --offload"), Offload::Measured);
    assert_eq!(offload("host --offload --offload-rate 3GB/s"), Offload::Stated(ByteRate(3_000_000_000)));
    let refused = settings("host --offload --device metal").err().unwrap().to_string();
    assert!(refused.contains("--offload is for --device cpu"), "{refused}");
    for line in ["--offload-rate 3GB/s", "--offload --offload-rate 3GB"] {
        let words = format!("brigade-worker join host {line}");
        assert!(parse(words.split_whitespace().map(OsString::from)).is_err(), "{line}");
    }
}

/// A machine with one card, of which 20 of 24 GiB are free.
struct OneCard;

impl Devices for OneCard {
    fn found(&self) -> Found {
        Found { cuda: Presence::Present(1), metal: Presence::NotBuilt }
    }

    fn memory(&self, device: DeviceKind) -> Result<Option<DeviceMemory>, String> {
        let memory = DeviceMemory { free: Bytes::mib(20 << 10), total: Bytes::mib(24 << 10) };
        match device {
            DeviceKind::Cpu => Ok(None),
            DeviceKind::Cuda(0) => Ok(Some(memory)),
            DeviceKind::Cuda(_) | DeviceKind::Metal => Err("it is not there".to_owned()),
        }
    }

    fn name(&self, _: DeviceKind) -> Option<String> {
        None
    }
}

#[test]
fn the_best_device_is_taken_with_what_it_can_give() {
    let settings = Settings::new(args("h --device auto"), &machine(), &OneCard).unwrap();
    assert_eq!(settings.device, DeviceKind::Cuda(0));
    assert_eq!(settings.budget, Bytes((20 << 30) - (24 << 30) / 100 * 5), "a twentieth of it all stays free");
    let settings = Settings::new(args("h --device auto"), &machine(), &NoCards).unwrap();
    assert_eq!((settings.device, settings.budget), (DeviceKind::Cpu, machine().default_budget()));
}

#[test]
fn what_a_device_cannot_give_is_refused_before_anything_is_loaded() {
    let refused = |line: &str| Settings::new(args(line), &machine(), &OneCard).unwrap_err();
    let error = refused("h --device cuda:0 --memory 25GiB");
    assert!(error.is_usage() && error.to_string().contains("25.0 GiB is more than cuda:0 has"), "{error}");
    let error = refused("h --device cuda:1");
    assert!(
        !error.is_usage() && error.to_string().contains("cuda:1 cannot be used: there is cuda:0;"),
        "{error}"
    );
    let error = refused("h --device metal");
    assert!(error.is_usage() && error.to_string().contains("build with --features metal"), "{error}");
    assert!(refused("h --device all").to_string().contains("--device auto"));
    // More than is free just now may be free later.
    let settings = Settings::new(args("h --device cuda:0 --memory 22GiB"), &machine(), &OneCard).unwrap();
    assert_eq!(settings.budget, Bytes::mib(22 << 10));
}
