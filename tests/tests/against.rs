//! Another server measured over OpenAI's API: Brigade itself, which is as strict as any.

use brigade_coordinator::bench::{Test, TestKind};
use brigade_coordinator::compare::Quantity;
use brigade_coordinator::compare::against::{Other, OtherError, OtherSettings};
use brigade_tests::cluster::Up;
use brigade_tests::setup;

#[tokio::test]
async fn a_cluster_is_measured_as_another_server() {
    let cluster = tokio::task::spawn_blocking(|| {
        Up::new(setup::smollm2())
            .workers(1)
            .memory("256MiB")
            .args(["--ctx", "512", "--parallel", "4"])
            .start()
    });
    let cluster = cluster.await.expect("the cluster starts");
    let url = cluster.client.url().to_owned();
    let before = cluster.client.status().await["requests"]["generated_tokens"].as_u64().expect("a number");
    let vocabulary = cluster.client.status().await["model"]["vocabulary"].as_u64().expect("a number") as u32;
    let decode = |streams| Test { kind: TestKind::Decode { tokens: 48, depth: 1 }, streams };
    let tests = [decode(1), decode(4), Test { kind: TestKind::Prompt { tokens: 96 }, streams: 1 }];
    let quantities = [
        Quantity::Decode { streams: 1 },
        Quantity::Decode { streams: 4 },
        Quantity::Prompt { tokens: 96 },
        Quantity::Ttft { tokens: 96 },
    ];

    let settings = OtherSettings { vocabulary, seed: 11, ..OtherSettings::default() };
    let mut other = Other::find(&url, settings.clone()).await.expect("it is found");
    assert_eq!(other.notes(), Vec::<String>::new(), "it takes all that is asked for");
    assert!(other.model().contains("SmolLM2"), "{}", other.model());
    let measured = other.measure(&tests).await.expect("it is measured");
    println!("{measured:?}");
    assert_eq!(measured.notes, Vec::<String>::new());
    let found: Vec<Quantity> = measured.figures.iter().map(|(quantity, _)| *quantity).collect();
    assert_eq!(found, quantities);
    assert!(measured.figures.iter().all(|(_, value)| value.is_finite() && *value > 0.0), "{measured:?}");
    let after = cluster.client.status().await["requests"]["generated_tokens"].as_u64().expect("a number");
    assert!(after - before > 48 + 4 * 48, "{} tokens were drawn", after - before);

    // With words, as a server is asked that takes no ids: their tokens are counted by the server.
    let mut with_words =
        Other::find(&url, OtherSettings { vocabulary: 0, ..settings }).await.expect("it is found");
    assert_eq!(with_words.notes().len(), 1, "{:?}", with_words.notes());
    let measured = with_words.measure(&tests).await.expect("it is measured");
    assert_eq!(measured.figures.len(), quantities.len(), "{measured:?}");

    let unknown = OtherSettings { model: Some("nobody".to_owned()), ..OtherSettings::default() };
    let error = Other::find(&url, unknown).await.expect_err("there is no such model");
    assert!(matches!(error, OtherError::Refused { status: 404, .. }), "{error}");
    assert!(error.to_string().contains("--against-model"), "{error}");
    cluster.stop();
}
