//! `--threads N` means N threads, and a worker without work takes no processor.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brigade_tests::cluster::Up;
use brigade_tests::process::{cpu_time, status_field, thread_names};
use brigade_tests::setup;
use serde_json::json;

/// How long an idle worker is watched.
const WATCH: Duration = Duration::from_secs(10);

/// A request that computes for a second or more.
fn long() -> serde_json::Value {
    let prompt: Vec<u32> = (0..256).map(|i| i * 71 % 40_000 + 20).collect();
    json!({ "prompt": prompt, "max_tokens": 128, "ignore_eos": true, "temperature": 0 })
}

#[tokio::test]
async fn workers_compute_on_as_many_threads_as_they_were_given_and_on_any_processor() {
    for threads in [1, 2, 3] {
        let cluster = Up::new(setup::smollm2()).workers(2).threads(threads).start();
        let workers = cluster.workers();
        let before: Vec<Duration> = workers.iter().map(|worker| cpu_time(*worker)).collect();
        let began = Instant::now();
        cluster.client.complete(long()).await;
        let passed = began.elapsed();
        for (worker, before) in workers.iter().zip(before) {
            // The engine's thread computes too.
            let computing =
                thread_names(*worker).iter().filter(|n| n.starts_with("compute-") || *n == "engine").count();
            assert_eq!(computing, threads, "threads that compute: {:?}", thread_names(*worker));
            let took = cpu_time(*worker) - before;
            println!("{threads} threads: {:.2} cores", took.as_secs_f64() / passed.as_secs_f64());
            // The network's and the runtime's threads take a little besides.
            assert!(took <= passed.mul_f64(threads as f64 + 0.2), "{took:?} of the processors in {passed:?}");
        }
        // Nothing is pinned: two workers could be pinned to the same processors.
        let own = status_field(std::process::id(), "Cpus_allowed_list");
        let allowed: BTreeSet<String> =
            workers.iter().map(|worker| status_field(*worker, "Cpus_allowed_list")).collect();
        assert_eq!(allowed, BTreeSet::from([own]));
        cluster.stop();
    }
}

#[tokio::test]
async fn a_worker_without_work_takes_less_than_a_hundredth_of_a_core() {
    let cluster = Up::new(setup::smollm2()).workers(2).threads(2).start();
    cluster.client.complete(json!({ "prompt": "One", "max_tokens": 16, "ignore_eos": true })).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let workers = cluster.workers();
    let before: Vec<Duration> = workers.iter().map(|worker| cpu_time(*worker)).collect();
    let began = Instant::now();
    tokio::time::sleep(WATCH).await;
    for (worker, before) in workers.iter().zip(before) {
        let share = (cpu_time(*worker) - before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("worker {worker}: {:.2}% of a core", share * 100.0);
        assert!(share < 0.01, "an idle worker took {:.2}% of a core", share * 100.0);
    }
    cluster.stop();
}
