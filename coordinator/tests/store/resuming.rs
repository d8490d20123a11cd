//! Pulls that break off, and go on.

use std::time::Duration;

use brigade_coordinator::store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::models::gguf;
use crate::pulling::Trial;
use crate::server::{Served, Server};

/// 46 MiB: three requests.
const LAYERS: u64 = 18;

const HUB: &str = "hf:org/repo";
const FILE: &str = "org/repo/m-Q4_K_M.gguf";

/// A hub with one model, and the model.
async fn hub(layers: u64) -> (Server, Vec<u8>) {
    let server = Server::start().await;
    let model = gguf(layers, 7);
    server.put(FILE, model.clone());
    (server, model)
}

#[tokio::test]
async fn a_download_that_is_cut_anywhere_goes_on_with_what_is_missing() {
    let (server, model) = hub(LAYERS).await;
    let size = model.len() as u64;
    for tenth in 0..10 {
        let trial = Trial::new(&server);
        let cut = size * tenth / 10;
        server.heal();
        server.fail(|faults| faults.dies_after = Some(cut));
        let error = trial.refused(HUB).await;
        assert!(error.contains("the same command goes on"), "{error}");
        assert_eq!(trial.visible(), [""; 0], "nothing has its name before it is whole");
        let served = server.served();
        assert!(served <= cut, "{served} of {cut}");
        let there = if tenth == 0 { 0 } else { trial.unfinished() };
        // What was on its way when the connection went is lost, and no more.
        assert!(there <= served && served - there <= 8 << 20, "at {cut}: {there} of {served} are kept");

        server.heal();
        let pulled = trial.pull(HUB).await.unwrap();
        assert_eq!(server.served(), size - there, "cut at {cut}");
        assert_eq!(pulled.fetched.0, size - there);
        assert!(trial.read("m-Q4_K_M.gguf") == model);
        assert_eq!(trial.store().unfinished().unwrap(), []);
        server.heal();
        assert_eq!(trial.pull(HUB).await.unwrap().fetched.0, 0, "what is there is not fetched");
        assert_eq!(server.served(), 0);
    }
}

#[tokio::test]
async fn connections_that_are_cut_all_the_time_lead_to_the_end_and_not_twice_over() {
    let (server, model) = hub(LAYERS).await;
    server.fail(|faults| faults.cuts_at = Some(3_000_001));
    let trial = Trial::new(&server);
    trial.pull(HUB).await.unwrap();
    assert!(trial.read("m-Q4_K_M.gguf") == model);
    assert_eq!(server.served(), model.len() as u64);
    assert!(server.asked().len() > 15, "{:?}", server.asked());
}

#[tokio::test]
async fn a_hub_is_asked_where_a_file_is_only_as_often_as_it_must_be() {
    let (server, model) = hub(LAYERS).await;
    let resolved = || server.asked().iter().filter(|asked| asked.contains("/resolve/")).count();
    Trial::new(&server).pull(HUB).await.unwrap();
    assert_eq!(resolved(), 1, "{:?}", server.asked());
    // Places that a hub names serve for a while.
    server.heal();
    server.fail(|faults| {
        faults.tickets = Some(2);
        faults.cuts_at = Some(5 << 20);
    });
    let trial = Trial::new(&server);
    trial.pull(HUB).await.unwrap();
    assert!(resolved() > 2, "{:?}", server.asked());
    assert!(trial.read("m-Q4_K_M.gguf") == model);
}

#[tokio::test]
async fn what_always_ends_at_once_is_given_up() {
    let (server, _) = hub(1).await;
    server.fail(|faults| faults.cuts_at = Some(100));
    let trial = Trial::new(&server);
    let error = trial.refused(HUB).await;
    assert!(error.contains("failed to fetch m-Q4_K_M.gguf: 127.0.0.1"), "{error}");
    assert!(server.served() <= 800, "{}", server.served());
}

#[tokio::test]
async fn a_pull_that_is_ended_keeps_what_has_come() {
    let (server, model) = hub(LAYERS).await;
    server.fail(|faults| faults.trickles = Some((64 << 10, Duration::from_millis(5))));
    let trial = Trial::new(&server);
    let cancel = CancellationToken::new();
    let ending = async {
        server.serving(4 << 20).await;
        cancel.cancel();
    };
    let (pull, ()) = tokio::join!(trial.pull_until(HUB, &cancel), ending);
    let error = pull.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    let there = trial.unfinished();
    assert!(there > 2 << 20, "{there}");
    server.settle().await;
    server.heal();
    trial.pull(HUB).await.unwrap();
    assert_eq!(server.served(), model.len() as u64 - there);
    assert!(trial.read("m-Q4_K_M.gguf") == model);
}

#[tokio::test]
async fn a_damaged_journal_costs_what_has_come_and_nothing_else() {
    let (server, model) = hub(2).await;
    let trial = Trial::new(&server);
    for journal in ["", "{", r#"{"form":1,"source":"hf:org/repo","files":[]}"#, "[]"] {
        server.heal();
        server.fail(|faults| faults.dies_after = Some(1 << 20));
        trial.refused(HUB).await;
        std::fs::write(trial.root.join(".brigade/partial/m-Q4_K_M/journal.json"), journal).unwrap();
    }
    // What it says is there is not: the hash tells.
    let journal = trial.root.join(".brigade/partial/m-Q4_K_M/journal.json");
    server.heal();
    server.fail(|faults| faults.dies_after = Some(1 << 20));
    trial.refused(HUB).await;
    let lie = std::fs::read_to_string(&journal).unwrap();
    let file = trial.root.join(".brigade/partial/m-Q4_K_M/files/m-Q4_K_M.gguf");
    let there = std::fs::read(&file).unwrap().len();
    std::fs::write(&file, vec![0; there]).unwrap();
    std::fs::write(&journal, lie).unwrap();
    server.heal();
    trial.pull(HUB).await.unwrap();
    assert!(trial.notes.all().contains("is damaged: it should be of SHA-256"), "{}", trial.notes.all());
    assert!(trial.read("m-Q4_K_M.gguf") == model);
}

#[tokio::test]
async fn a_file_that_changes_between_two_pulls_begins_anew() {
    let server = Server::start().await;
    let (old, new) = (gguf(2, 1), gguf(2, 2));
    for (etag_old, etag_new) in
        [(Some("\"a\""), Some("\"b\"")), (Some("W/\"a\""), Some("W/\"b\"")), (None, None)]
    {
        let trial = Trial::new(&server);
        let served = |bytes: &[u8], etag: Option<&str>| Served {
            bytes: bytes.to_vec().into(),
            etag: etag.map(str::to_owned),
        };
        server.heal();
        server.put_as("o/r/m.gguf", served(&old, etag_old));
        server.fail(|faults| faults.dies_after = Some(2 << 20));
        let url = format!("{}/files/o/r/m.gguf", server.url());
        trial.refused(&url).await;
        assert!(trial.unfinished() > 0);
        server.heal();
        server.put_as("o/r/m.gguf", served(&new, etag_new));
        let pulled = trial.pull(&url).await.unwrap();
        assert!(trial.read("m.gguf") == new, "{etag_old:?}");
        assert!(server.served() >= new.len() as u64, "{etag_old:?}");
        assert_eq!(pulled.record.files[0].bytes.0, new.len() as u64);
        assert_eq!(
            trial.notes.all().contains("has changed on the server"),
            etag_old.is_some(),
            "{}",
            trial.notes.all()
        );
    }
}

#[tokio::test]
async fn a_url_without_a_checksum_goes_on_where_its_version_is_the_same() {
    let server = Server::start().await;
    let model = gguf(LAYERS, 1);
    server.put("o/r/m.gguf", model.clone());
    let trial = Trial::new(&server);
    let url = format!("{}/files/o/r/m.gguf", server.url());
    server.fail(|faults| faults.dies_after = Some(20 << 20));
    trial.refused(&url).await;
    let there = trial.unfinished();
    assert!(there > 10 << 20, "{there}");
    server.heal();
    trial.pull(&url).await.unwrap();
    assert_eq!(server.served(), model.len() as u64 - there);
    assert!(trial.read("m.gguf") == model);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_in_one_stream() {
    let (server, model) = hub(LAYERS).await;
    server.fail(|faults| faults.no_ranges = true);
    let trial = Trial::new(&server);
    trial.pull(HUB).await.unwrap();
    assert_eq!(server.served(), model.len() as u64);
    let files = server.asked().into_iter().filter(|asked| asked.starts_with("GET /files")).count();
    assert_eq!(files, 1, "{:?}", server.asked());

    // Broken off, it begins anew, since there is no other way.
    let trial = Trial::new(&server);
    server.heal();
    server.fail(|faults| {
        faults.no_ranges = true;
        faults.dies_after = Some(30 << 20);
    });
    trial.refused(HUB).await;
    server.heal();
    server.fail(|faults| faults.no_ranges = true);
    trial.pull(HUB).await.unwrap();
    assert!(trial.read("m-Q4_K_M.gguf") == model);
}

#[tokio::test]
async fn servers_that_are_busy_are_asked_again() {
    let (server, model) = hub(2).await;
    let trial = Trial::new(&server);
    server.fail(|faults| {
        faults.statuses = [(503, None), (429, Some("1")), (502, None), (500, Some("0"))].into();
    });
    let began = std::time::Instant::now();
    trial.pull(HUB).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "the server wanted to be left alone");
    assert!(trial.read("m-Q4_K_M.gguf") == model);

    let trial = Trial::new(&server);
    server.fail(|faults| faults.statuses = std::iter::repeat_n((503, None), 50).collect());
    let error = trial.refused(HUB).await;
    assert!(error.contains("answered 503") && error.contains("the same command goes on"), "{error}");
}

#[tokio::test]
async fn servers_that_fall_silent_or_trickle_are_left() {
    let (server, model) = hub(LAYERS).await;
    let trial = Trial::in_a_hurry(&server);
    server.fail(|faults| faults.stalls_at = Some(4 << 20));
    // Each try brings 4 MiB, so that there is an end.
    trial.pull(HUB).await.unwrap();
    assert!(trial.read("m-Q4_K_M.gguf") == model);

    server.heal();
    let trial = Trial::in_a_hurry(&server);
    server.fail(|faults| faults.stalls_at = Some(0));
    let error = trial.refused(HUB).await;
    assert!(error.contains("it sent nothing for 400ms"), "{error}");

    server.heal();
    server.fail(|faults| faults.trickles = Some((10, Duration::from_millis(50))));
    let error = trial.refused(HUB).await;
    assert!(error.contains("it sent no more than"), "{error}");
}
