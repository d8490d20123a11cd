//! Where models come from, and which of their files are taken.

use brigade_coordinator::store::{Checked, Form};

use crate::models::{gguf, safetensors, split_gguf, write_all};
use crate::pulling::Trial;
use crate::server::{COMMIT, Server};

/// What was fetched of files, without their directories.
fn fetched(server: &Server) -> Vec<String> {
    let asked = server.asked().into_iter().filter(|asked| asked.starts_with("GET /files/"));
    let mut names: Vec<String> = asked.map(|asked| asked.rsplit('/').next().unwrap().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test]
async fn of_a_repository_only_what_was_asked_for_is_fetched() {
    let server = Server::start().await;
    for quant in ["Q4_K_M", "Q8_0", "IQ2_M"] {
        server.put(&format!("org/M-GGUF/M-{quant}.gguf"), gguf(1, quant.len() as u64));
    }
    for (number, part) in (1..).zip(split_gguf(2, 2, 9)) {
        server.put(&format!("org/M-GGUF/BF16/M-BF16-{number:05}-of-00002.gguf"), part);
    }
    server.put("org/M-GGUF/README.md", b"# M".to_vec());
    server.put("org/M-GGUF/mmproj-F16.gguf", vec![0; 100]);
    let trial = Trial::new(&server);
    let pulled = trial.pull("hf:org/M-GGUF").await.unwrap();
    assert_eq!(fetched(&server), ["M-Q4_K_M.gguf"]);
    let record = &pulled.record;
    assert_eq!(
        (record.name.as_str(), record.format, record.weights.as_str()),
        ("M-Q4_K_M", Form::Gguf, "F32")
    );
    assert_eq!((record.source.as_str(), record.revision.as_deref()), ("hf:org/M-GGUF", Some(COMMIT)));
    assert_eq!(record.files[0].checked, Checked::Hub);
    assert!(pulled.path.ends_with("models/M-Q4_K_M.gguf"));

    server.heal();
    let pulled = trial.pull("hf:org/M-GGUF@main:bf16").await.unwrap();
    assert_eq!(fetched(&server), ["M-BF16-00001-of-00002.gguf", "M-BF16-00002-of-00002.gguf"]);
    assert!(pulled.path.ends_with("models/M-BF16-00001-of-00002.gguf"));
    assert_eq!(pulled.record.name.as_str(), "M-BF16");

    let error = trial.refused("hf:org/M-GGUF:Q5_K_M").await;
    for words in ["org/M-GGUF has no GGUF file of `Q5_K_M`", "M-IQ2_M (", "M-BF16 ("] {
        assert!(error.contains(words), "{error}");
    }
    // The same model by its quantisation is the one that is there.
    server.heal();
    assert_eq!(trial.pull("hf:org/M-GGUF:q4_k_m").await.unwrap().fetched.0, 0);
    assert_eq!(server.served(), 0);
}

#[tokio::test]
async fn of_safetensors_what_is_read_is_fetched_into_a_directory() {
    let server = Server::start().await;
    let files = safetensors("LlamaForCausalLM");
    for (name, bytes) in &files {
        server.put(&format!("org/Llama-1/{name}"), bytes.clone());
    }
    let trial = Trial::new(&server);
    let pulled = trial.pull("hf:org/Llama-1").await.unwrap();
    let wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(fetched(&server), wanted);
    assert_eq!(trial.visible(), ["Llama-1"]);
    assert!(pulled.path.ends_with("models/Llama-1") && pulled.record.format == Form::Safetensors);
    for (name, bytes) in files.iter().filter(|(name, _)| wanted.contains(name)) {
        assert!(trial.read(&format!("Llama-1/{name}")) == *bytes, "{name}");
    }

    // A directory of somebody else's is not written to.
    let other = Trial::new(&server);
    std::fs::create_dir_all(other.root.join("Llama-1/notes")).unwrap();
    assert!(other.refused("hf:org/Llama-1").await.contains("was not put there by"));

    // What is missing is put back, and nothing else is fetched.
    std::fs::remove_file(trial.root.join("Llama-1/model-00002-of-00002.safetensors")).unwrap();
    server.heal();
    trial.pull("hf:org/Llama-1").await.unwrap();
    assert_eq!(fetched(&server), ["model-00002-of-00002.safetensors"]);
    let removed = trial.store().remove("Llama-1").unwrap();
    assert_eq!((removed.paths.len(), removed.bytes), (5, pulled.record.bytes()));
    assert_eq!(trial.visible(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_before_its_weights_are_fetched() {
    let server = Server::start().await;
    for (name, bytes) in safetensors("MambaForCausalLM") {
        server.put(&format!("org/repo/{name}"), bytes);
    }
    let trial = Trial::new(&server);
    let error = trial.refused("hf:org/repo").await;
    assert!(error.contains("the architecture `MambaForCausalLM` is not supported"), "{error}");
    assert_eq!(fetched(&server), ["config.json"]);
}

#[tokio::test]
async fn all_parts_behind_a_url_are_fetched_or_none() {
    let server = Server::start().await;
    let parts = split_gguf(3, 2, 9);
    server.put("o/r/m-00001-of-00002.gguf", parts[0].clone());
    let url = format!("{}/files/o/r/m-00001-of-00002.gguf", server.url());
    let trial = Trial::new(&server);
    let error = trial.refused(&url).await;
    assert!(error.contains("m-00002-of-00002.gguf") && error.contains("404"), "{error}");
    assert_eq!(server.served(), 0);

    server.put("o/r/m-00002-of-00002.gguf", parts[1].clone());
    let error = trial.refused(&url.replace("m-00001", "m-00002")).await;
    assert!(error.contains("give the URL of the first one, m-00001-of-00002.gguf"), "{error}");
    server.fail(|faults| faults.no_head = true);
    let pulled = trial.pull(&url).await.unwrap();
    assert_eq!(trial.visible(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    assert_eq!((pulled.record.name.as_str(), pulled.record.files.len()), ("m", 2));
    assert!(trial.read("m-00002-of-00002.gguf") == parts[1]);
    let error = trial.refused(&format!("{}/org/repo", server.url())).await;
    assert!(error.contains("names no GGUF file") && error.contains("hf:OWNER/REPOSITORY"), "{error}");
}

#[tokio::test]
async fn files_and_directories_of_this_machine_are_copied() {
    let server = Server::start().await;
    let trial = Trial::new(&server);
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    let model = gguf(2, 4);
    std::fs::write(path("a.gguf"), &model).unwrap();
    let parts = split_gguf(3, 2, 9);
    write_all(here.path(), ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"].into_iter().zip(&parts));
    let tensors = safetensors("LlamaForCausalLM");
    write_all(&here.path().join("c"), tensors.iter().map(|(name, bytes)| (*name, bytes)));

    let pulled = trial.pull(&path("a.gguf")).await.unwrap();
    assert_eq!((pulled.fetched.0, pulled.record.files[0].checked), (model.len() as u64, Checked::Original));
    assert!(trial.read("a.gguf") == model);
    trial.pull(&path("b-00001-of-00002.gguf")).await.unwrap();
    assert!(trial.read("b-00002-of-00002.gguf") == parts[1]);
    let pulled = trial.pull(&path("c")).await.unwrap();
    assert_eq!(pulled.record.files.len(), 5, "{:?}", pulled.record.files);
    assert_eq!(trial.visible(), ["a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "c"]);
    assert_eq!(trial.pull(&path("c")).await.unwrap().fetched.0, 0);

    std::fs::write(path("a.gguf"), &model[..1000]).unwrap();
    assert!(trial.refused(&path("a.gguf")).await.contains("it is cut off"));
    assert!(trial.refused(&path("missing.gguf")).await.contains("failed to open"));
    let own = trial.root.join("a.gguf").to_str().unwrap().to_owned();
    assert!(trial.refused(&own).await.contains("is in the store already"));
}

#[tokio::test]
async fn models_of_one_name_do_not_replace_each_other() {
    let server = Server::start().await;
    let (mine, other) = (gguf(1, 1), gguf(1, 2));
    server.put("org/one/m.gguf", mine.clone());
    server.put("org/two/m.gguf", other.clone());
    let mut trial = Trial::new(&server);
    trial.pull("hf:org/one").await.unwrap();
    let error = trial.refused("hf:org/two").await;
    assert!(error.contains("has a model m from hf:org/one") && error.contains("--name"), "{error}");
    trial.options.name = Some("two".to_owned());
    trial.pull("hf:org/two").await.unwrap();
    assert!(trial.read("two.gguf") == other && trial.read("m.gguf") == mine);

    // What somebody put there stays; where it is the same, it is taken on.
    let trial = Trial::new(&server);
    std::fs::create_dir_all(&trial.root).unwrap();
    std::fs::write(trial.root.join("m.gguf"), &other).unwrap();
    let error = trial.refused("hf:org/one").await;
    assert!(error.contains("was not put there by `brigade models pull`"), "{error}");
    assert!(trial.read("m.gguf") == other);
    assert!(trial.store().remove("m").unwrap_err().to_string().contains("remove it yourself"));
    server.heal();
    let pulled = trial.pull("hf:org/two").await.unwrap();
    assert_eq!((pulled.fetched.0, server.served()), (0, 0));
}

#[tokio::test]
async fn a_new_version_takes_the_place_of_the_old_one() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 1));
    let trial = Trial::new(&server);
    let old = trial.pull("hf:org/repo").await.unwrap();
    let new = gguf(2, 2);
    server.put("org/repo/m.gguf", new.clone());
    let pulled = trial.pull("hf:org/repo").await.unwrap();
    assert!(trial.read("m.gguf") == new);
    assert_ne!(old.record.fingerprint, pulled.record.fingerprint);
    assert_eq!(trial.store().find("m").unwrap().bytes.0, new.len() as u64);
}
