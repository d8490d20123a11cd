//! Clients that people already have work unchanged.

use std::process::Command;

use brigade_tests::cluster::Up;
use brigade_tests::setup;

#[test]
fn the_openai_package_works_unchanged() {
    let cluster = Up::new(setup::smollm2()).workers(2).memory("160MiB").args(["--ctx", "1024"]).start();
    let output = Command::new(setup::python())
        .arg(setup::repository().join("tests/python/openai_client.py"))
        .args([cluster.client.url(), "-"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{complaint}\nthe cluster said:\n{}", cluster.process.output());
    cluster.stop();
}
