//! What a server may not do: lead out of the store, to other machines of this network, or to a secret.

use std::time::Duration;

use brigade_coordinator::store::{HubSettings, StoreError};
use tokio_util::sync::CancellationToken;

use crate::models::gguf;
use crate::pulling::Trial;
use crate::server::{COMMIT, Server};

const HUB: &str = "hf:org/repo";

#[tokio::test]
async fn names_that_lead_out_of_the_store_are_refused() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 1));
    for name in [
        "../m.gguf",
        "a/../../m.gguf",
        "/etc/m.gguf",
        "..\\\\m.gguf",
        "a\\\\m.gguf",
        "a//m.gguf",
        "m\\n.gguf",
    ] {
        let trial = Trial::new(&server);
        server.heal();
        server.fail(|faults| faults.lists_also = vec![name.to_owned()]);
        let error = trial.refused(HUB).await;
        assert!(error.contains("cannot be the name of a file in the store"), "{name}: {error}");
        assert_eq!(server.served(), 0);
        assert!(!trial.root.exists(), "nothing was made");
    }
    // Hidden files are only no models.
    server.heal();
    server.fail(|faults| faults.lists_also = vec![".gitattributes".to_owned(), ".x/y".to_owned()]);
    Trial::new(&server).pull(HUB).await.unwrap();

    let trial = Trial::new(&server);
    for url in ["/files/o/..%2f..%2fm.gguf", "/files/o/.m.gguf", "/files/o/a%5Cm.gguf", "/files/o/a%00m.gguf"]
    {
        let error = trial.refused(&format!("{}{url}", server.url())).await;
        assert!(error.contains("cannot be the name of a model in the store"), "{url}: {error}");
    }
    let mut trial = Trial::new(&server);
    trial.options.name = Some("../x".to_owned());
    assert!(trial.refused(HUB).await.contains("begins with a dot"));
}

#[cfg(unix)]
#[tokio::test]
async fn links_in_the_store_are_not_written_or_read_through() {
    use std::os::unix::fs::symlink;
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 1));

    // A link in the place of the model.
    let trial = Trial::new(&server);
    std::fs::create_dir_all(&trial.root).unwrap();
    let outside = trial.root.parent().unwrap().join("outside");
    std::fs::write(&outside, "secret").unwrap();
    symlink(&outside, trial.root.join("m.gguf")).unwrap();
    let error = trial.refused(HUB).await;
    assert!(error.contains("m.gguf is a link"), "{error}");

    // Links in the place of the store's own directories, and of an unfinished file.
    let elsewhere = trial.root.parent().unwrap().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    for link in [".brigade", ".brigade/records", ".brigade/partial", ".brigade/partial/m", ".brigade/locks/m"]
    {
        let trial = Trial::new(&server);
        let link = trial.root.join(link);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&elsewhere, &link).unwrap();
        let error = trial.pull(HUB).await.unwrap_err();
        assert!(matches!(error, StoreError::NotOurs { .. }), "{}: {error}", link.display());
    }
    let trial = Trial::new(&server);
    server.fail(|faults| faults.dies_after = Some(1000));
    trial.refused(HUB).await;
    let partial = trial.root.join(".brigade/partial/m/files/m.gguf");
    std::fs::remove_file(&partial).unwrap();
    symlink(&outside, &partial).unwrap();
    server.heal();
    let outcome = trial.pull(HUB).await;
    assert!(outcome.is_ok() || matches!(outcome, Err(StoreError::NotOurs { .. })), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "secret");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);

    // Records are read no better.
    let trial = Trial::new(&server);
    trial.pull(HUB).await.unwrap();
    let record = trial.root.join(".brigade/records/m.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"m.gguf\"", "\"../../outside\"")).unwrap();
    let error = trial.store().list().unwrap_err().to_string();
    assert!(error.contains("m.json is damaged") && error.contains("cannot be the name of a file"), "{error}");
    assert!(trial.store().remove("m").is_err());
    assert!(outside.exists());
}

#[tokio::test]
async fn redirects_to_private_addresses_are_refused() {
    let server = Server::start().await;
    let other = Server::start().await;
    for server in [&server, &other] {
        server.put("org/repo/m.gguf", gguf(1, 1));
    }
    let port = other.address.port();
    for (target, words) in [
        (format!("http://127.0.0.1:{port}"), "a private address"),
        (format!("http://localhost:{port}"), "a private address"),
        (format!("http://[::1]:{port}"), "a private address"),
        (format!("http://[::ffff:127.0.0.1]:{port}"), "a private address"),
        (format!("http://2130706433:{port}"), "a private address"),
        ("http://169.254.169.254".to_owned(), "a private address"),
        ("http://192.168.0.1".to_owned(), "a private address"),
        ("ftp://127.0.0.1".to_owned(), "only https and http"),
        (format!("{}/loop", server.url()), "one redirect too many"),
    ] {
        let trial = Trial::new(&server);
        server.fail(|faults| faults.redirect = Some(target.clone()));
        let error = trial.refused(HUB).await;
        assert!(error.contains(words), "{target}: {error}");
        assert_eq!(trial.visible(), [""; 0]);
    }
    assert_eq!(other.asked(), [""; 0], "nobody asked there");
    // The server that was named may be wherever it likes.
    server.heal();
    server.fail(|faults| faults.redirect = Some(server.url()));
    Trial::new(&server).pull(HUB).await.unwrap();
}

#[tokio::test]
async fn a_list_is_read_to_its_end_but_not_on_other_servers() {
    let server = Server::start().await;
    let other = Server::start().await;
    for quant in ["Q2_K", "Q4_K_M", "Q5_K_M", "Q8_0"] {
        server.put(&format!("org/repo/m-{quant}.gguf"), gguf(1, 1));
    }
    server.fail(|faults| faults.page = Some(2));
    let trial = Trial::new(&server);
    trial.pull("hf:org/repo:Q8_0").await.unwrap();
    assert_eq!(trial.visible(), ["m-Q8_0.gguf"]);
    let pages = server.asked().iter().filter(|asked| asked.contains("/tree/")).count();
    assert_eq!(pages, 3, "{:?}", server.asked());

    server.fail(|faults| faults.next_page_at = Some(other.url()));
    let error = trial.refused("hf:org/repo:Q2_K").await;
    assert!(error.contains("next page is on another server"), "{error}");
    assert_eq!(other.asked(), [""; 0]);
    server.fail(|faults| {
        faults.page = Some(0);
        faults.next_page_at = None;
    });
    let error = trial.refused("hf:org/repo:Q2_K").await;
    assert!(error.contains("more than 100 pages"), "{error}");
}

#[tokio::test]
async fn a_token_opens_what_is_gated_and_errors_say_what_to_do() {
    let server = Server::start().await;
    server.put("org/repo/m.gguf", gguf(1, 1));
    server.fail(|faults| faults.token = Some("hf_secret".to_owned()));
    let mut trial = Trial::new(&server);
    let error = trial.refused(HUB).await;
    for words in ["org/repo", "status 401", "HF_TOKEN", "accept the terms"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    trial.options.hub = HubSettings::new(Some(&server.url()), Some("hf_secret".to_owned())).unwrap();
    let pulled = trial.pull(HUB).await.unwrap();
    assert_eq!(pulled.record.revision.as_deref(), Some(COMMIT));
    assert!(!format!("{:?}", trial.options).contains("hf_secret"));

    let error = trial.refused("hf:org/missing").await;
    assert!(error.contains("status 404") && error.contains("check the spelling"), "{error}");
    // A mirror that knows no commits is asked by the revision's name.
    server.heal();
    server.fail(|faults| faults.no_commits = true);
    let trial = Trial::new(&server);
    assert_eq!(trial.pull(HUB).await.unwrap().record.revision, None);
    assert!(
        server.asked().iter().any(|asked| asked == "GET /api/models/org/repo/tree/main"),
        "{:?}",
        server.asked()
    );
}

#[tokio::test]
async fn two_pulls_of_one_model_do_not_fight() {
    let server = Server::start().await;
    let model = gguf(2, 1);
    server.put("org/repo/m.gguf", model.clone());
    server.fail(|faults| faults.trickles = Some((32 << 10, Duration::from_millis(10))));
    let trial = Trial::new(&server);
    let cancel = CancellationToken::new();
    let second = async {
        server.serving(1).await;
        let error = trial.refused(HUB).await;
        assert!(error.contains("another process is pulling or removing m"), "{error}");
        let error = trial.store().remove("m").unwrap_err().to_string();
        assert!(error.contains("another process is pulling or removing m"), "{error}");
    };
    let (first, ()) = tokio::join!(trial.pull_until(HUB, &cancel), second);
    first.unwrap();
    assert!(trial.read("m.gguf") == model);
}
