//! How hidden states cross links: bit for bit as f32, close as f16 and bf16.

use std::time::Duration;

use brigade_tests::cluster::Up;
use brigade_tests::{reference, setup};

/// Largest mean difference of a log-probability from the one with f32 on the link. Each value is rounded once per link,
/// by at most one part in 2,048 (f16) or 256 (bf16) of itself; products that round their activations to 8 bits then round
/// some of them the other way, which is most of what is seen.
const BOUNDS: [(&str, f64); 2] = [("f16", 0.1), ("bf16", 0.15)];

/// Tokens whose log-probabilities are compared.
const TOKENS: usize = 512;

#[tokio::test]
async fn half_the_bytes_cost_little_and_f32_costs_nothing() {
    let cases = reference::smollm2();
    let longest = cases.iter().max_by_key(|case| case.path.len()).expect("there are cases");
    let path = &longest.path[..TOKENS.min(longest.path.len())];
    let scores = async |workers: usize, wire: &str| {
        let up = Up::new(setup::smollm2()).workers(workers).memory("256MiB");
        let cluster = up.args(["--ctx", "1024", "--wire", wire]).start();
        let status = cluster.client.status().await;
        assert_eq!(status["wire"], wire, "{status:#}");
        let scores: Vec<f64> = cluster.client.score(path).await.into_iter().flatten().collect();
        // The state is published every quarter of a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let totals = cluster.client.status().await["stages"][0]["totals"].clone();
        cluster.stop();
        (scores, totals["sent_bytes"].as_u64().expect("a number"))
    };
    let (alone, sent) = scores(1, "f32").await;
    assert_eq!((alone.len(), sent), (path.len() - 1, 0));
    let (exact, exact_bytes) = scores(2, "f32").await;
    assert_eq!(exact, alone, "f32 on the link gives the bits of a single box");
    for (wire, bound) in BOUNDS {
        let (rounded, bytes) = scores(2, wire).await;
        assert_eq!(bytes * 2, exact_bytes, "{wire}");
        let mean = rounded.iter().zip(&alone).map(|(a, b)| (a - b).abs()).sum::<f64>() / alone.len() as f64;
        println!("{wire}: mean difference of {} log-probabilities {mean:.6}", alone.len());
        assert!(mean > 0.0 && mean < bound, "{wire}: {mean}");
    }
}
