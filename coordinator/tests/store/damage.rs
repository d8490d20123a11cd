//! Bytes that are not what they should be: on their way, on the server and in the store.

use brigade_coordinator::store::{Checked, FileState, StoreError};
use tokio_util::sync::CancellationToken;

use crate::models::{gguf, safetensors, split_gguf};
use crate::pulling::{Trial, flip};
use crate::server::{Server, hex};

const HUB: &str = "hf:org/repo";

#[tokio::test]
async fn a_byte_that_flips_on_its_way_is_found_and_fetched_again() {
    let server = Server::start().await;
    let model = gguf(8, 3);
    server.put("org/repo/m.gguf", model.clone());
    let trial = Trial::new(&server);
    server.fail(|faults| faults.flips = Some(("org/repo/m.gguf".to_owned(), 17_000_000, 1)));
    trial.pull(HUB).await.unwrap();
    assert!(trial.read("m.gguf") == model);
    assert!(
        trial.notes.all().contains("m.gguf is damaged: it should be of SHA-256"),
        "{}",
        trial.notes.all()
    );

    let trial = Trial::new(&server);
    server.fail(|faults| faults.flips = Some(("org/repo/m.gguf".to_owned(), 17_000_000, 9)));
    let error = trial.pull(HUB).await.unwrap_err();
    let StoreError::Damaged { wanted, found, .. } = &error else { panic!("{error}") };
    assert!(wanted.starts_with("SHA-256 ") && found.len() == 64, "{error}");
    assert!(error.to_string().contains("m.gguf is damaged"), "{error}");
    assert_eq!(trial.visible(), [""; 0]);
    server.heal();
    trial.pull(HUB).await.unwrap();
    assert!(trial.read("m.gguf") == model);
}

#[tokio::test]
async fn a_flipped_byte_of_a_small_file_is_found_too() {
    let server = Server::start().await;
    for (name, bytes) in safetensors("LlamaForCausalLM") {
        server.put(&format!("org/repo/{name}"), bytes);
    }
    let trial = Trial::new(&server);
    server.fail(|faults| faults.flips = Some(("org/repo/config.json".to_owned(), 60, 9)));
    let error = trial.refused(HUB).await;
    assert!(error.contains("config.json"), "{error}");
    assert_eq!(trial.visible(), [""; 0]);
    let trial = Trial::new(&server);
    server.fail(|faults| faults.flips = Some(("org/repo/tokenizer.json".to_owned(), 1, 1)));
    trial.pull(HUB).await.unwrap();
    assert!(
        trial.notes.all().contains("tokenizer.json is damaged: it should be of git object"),
        "{}",
        trial.notes.all()
    );
    assert_eq!(trial.read("repo/tokenizer.json"), b"{}");
}

#[tokio::test]
async fn a_byte_that_flips_in_the_store_is_named_and_only_its_file_is_fetched_again() {
    let server = Server::start().await;
    let parts = split_gguf(8, 3, 5);
    for (number, part) in (1..).zip(&parts) {
        server.put(&format!("org/repo/big/m-Q4_K_M-{number:05}-of-00003.gguf"), part.clone());
    }
    let trial = Trial::new(&server);
    let pulled = trial.pull(HUB).await.unwrap();
    let second = "m-Q4_K_M-00002-of-00003.gguf";
    assert_eq!(trial.visible().len(), 3);
    let check = async || {
        let store = trial.store();
        store.check(&pulled.record, &trial.notes, &CancellationToken::new()).await.unwrap()
    };
    assert!(check().await.is_sound());

    flip(&trial.root.join(second), 5_000_000);
    let checkup = check().await;
    assert!(!checkup.is_sound());
    assert_eq!(checkup.files[0].state, FileState::Sound);
    assert!(checkup.files[1].path.ends_with(second));
    assert!(
        matches!(&checkup.files[1].state, FileState::Contents { wanted, .. } if *wanted == pulled.record.files[1].sha256.to_string())
    );

    server.heal();
    let again = trial.pull(HUB).await.unwrap();
    assert_eq!(server.served(), parts[1].len() as u64);
    assert_eq!(again.fetched.0, parts[1].len() as u64);
    assert!(
        trial.notes.all().contains(&format!("{second} is damaged or out of date")),
        "{}",
        trial.notes.all()
    );
    assert!(check().await.is_sound());

    std::fs::write(trial.root.join(second), b"short").unwrap();
    std::fs::remove_file(trial.root.join("m-Q4_K_M-00003-of-00003.gguf")).unwrap();
    let checkup = check().await;
    assert!(matches!(checkup.files[1].state, FileState::Size { .. }));
    assert_eq!(checkup.files[2].state, FileState::Missing);
    trial.pull(HUB).await.unwrap();
    assert!(check().await.is_sound());
    assert!(trial.read(second) == parts[1]);
}

#[tokio::test]
async fn a_server_that_lists_other_sizes_is_refused() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 3));
    server.fail(|faults| faults.lists_more = 1);
    let trial = Trial::new(&server);
    let error = trial.refused(HUB).await;
    assert!(error.contains("m.gguf on the server is of") && error.contains("but should be of"), "{error}");
    assert_eq!(trial.visible(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_read_as_a_model_gets_no_name() {
    let server = Server::start().await;
    let model = gguf(2, 3);
    server.put("o/r/cut.gguf", model[..model.len() - 1000].to_vec());
    server.put("o/r/page.gguf", b"<!DOCTYPE html>".to_vec());
    server.put("o/r/empty.gguf", Vec::new());
    let trial = Trial::new(&server);
    for (file, words) in
        [("cut", "it is cut off"), ("page", "not a GGUF file"), ("empty", "file ends at byte 0")]
    {
        let error = trial.refused(&format!("{}/files/o/r/{file}.gguf", server.url())).await;
        assert!(error.contains("is no model that can be read") && error.contains(words), "{error}");
    }
    assert_eq!(trial.visible(), [""; 0]);
    assert_eq!(trial.store().unfinished().unwrap(), []);
}

#[tokio::test]
async fn a_checksum_of_the_users_is_held_and_none_is_said_to_be_none() {
    let server = Server::start().await;
    let model = gguf(2, 3);
    server.put("o/r/m.gguf", model.clone());
    let url = format!("{}/files/o/r/m.gguf", server.url());
    let mut trial = Trial::new(&server);
    trial.options.sha256 = Some("ab".repeat(32).parse().unwrap());
    let error = trial.refused(&url).await;
    assert!(error.contains(&"ab".repeat(32)), "{error}");
    assert_eq!(trial.visible(), [""; 0]);

    let sha = hex(<sha2::Sha256 as sha2::Digest>::digest(&model).as_slice());
    trial.options.sha256 = Some(sha.parse().unwrap());
    let pulled = trial.pull(&url).await.unwrap();
    assert_eq!(pulled.record.files[0].checked, Checked::User);

    let trial = Trial::new(&server);
    let pulled = trial.pull(&url).await.unwrap();
    assert_eq!(
        (pulled.record.files[0].checked, pulled.record.files[0].sha256.to_string()),
        (Checked::Size, sha)
    );
    // What has a record is checked by it, and fetched again where it is damaged.
    flip(&trial.root.join("m.gguf"), 100_000);
    server.heal();
    let again = trial.pull(&url).await.unwrap();
    assert_eq!((again.fetched.0, server.served()), (model.len() as u64, model.len() as u64));
    assert!(trial.read("m.gguf") == model);
}
