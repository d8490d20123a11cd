//! `brigade top` in a real terminal, on real clusters: what it shows, and how it leaves.

use std::process::{Command, Stdio};
use std::time::Duration;

use brigade_coordinator::top::Screen;
use brigade_tests::cluster::brigade;
use brigade_tests::picture::svg;
use brigade_tests::serve::{Joined, Served};
use brigade_tests::setup::repository;
use brigade_tests::stream::Streaming;
use brigade_tests::terminal::Terminal;
use serde_json::json;
use tempfile::TempDir;

/// Within this something that has happened is seen.
const SEEN: Duration = Duration::from_secs(5);
/// Within this a program has started and drawn, on a busy machine.
const STARTED: Duration = Duration::from_secs(30);
/// Within this it has ended.
const ENDED: Duration = Duration::from_secs(3);

/// `brigade top` on the coordinator at `url`, with colours.
fn top(home: &TempDir, url: &str, rows: u16, columns: u16) -> Terminal {
    let mut command = brigade(home);
    Terminal::start(command.args(["top", "--url", url]).env_remove("NO_COLOR"), rows, columns)
}

fn home() -> TempDir {
    tempfile::tempdir().expect("the temporary folder is writable")
}

/// Whether a line holds all of `texts`.
fn line_with(text: &str, texts: &[&str]) -> bool {
    text.lines().any(|line| texts.iter().all(|text| line.contains(text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_are_seen_and_a_killed_worker_within_five_seconds() {
    let mut served = Served::start(&["--min-workers", "3", "--ctx", "1024"]);
    let mut workers: Vec<Joined> =
        ["anna", "bert", "carla"].iter().map(|name| served.join(name, "96MiB")).collect();
    let client = served.client();
    let home = home();
    let mut top = top(&home, client.url(), 24, 80);
    top.wait_until("stages", STARTED, |text| {
        text.contains("serving") && ["anna", "bert", "carla"].iter().all(|name| text.contains(name))
    });
    let request = json!({ "prompt": "The bucket brigade stood", "max_tokens": 900, "ignore_eos": true });
    let _answers = [
        Streaming::start(&client, &client.model().await, request.clone()).await,
        Streaming::start(&client, &client.model().await, request).await,
    ];
    top.wait_until("requests", SEEN, |text| text.contains("2 running"));

    top.press("?");
    top.wait_until("help", SEEN, |text| text.contains("show only rows that hold a text"));
    top.press("?");
    top.press("/bert\r");
    top.wait_until("filter", SEEN, |text| text.contains("only rows with `bert`"));
    top.press("\x1b");
    top.wait_until("no filter", SEEN, |text| !text.contains("only rows"));
    top.press("\x1b[C\r");
    top.wait_until("details of the second stage", SEEN, |text| line_with(text, &["worker", " on "]));
    top.press("\r");
    top.resize(10, 40);
    top.wait_until("the small picture", SEEN, |text| text.contains("[ 2]") && !text.contains("events"));
    top.resize(40, 120);
    top.wait_until("the large picture", SEEN, |text| {
        ["details", "requests", "events", "workers"].iter().all(|pane| text.contains(pane))
    });
    if std::env::var_os("BRIGADE_PICTURES").is_some() {
        // The lines need some readings.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let folder = repository().join("docs/pictures");
        std::fs::create_dir_all(&folder).expect("the repository is writable");
        let picture = svg(top.screen().screen());
        std::fs::write(folder.join("top.svg"), picture).expect("the repository is writable");
    }

    workers[1].kill();
    top.wait_until("the lost worker", SEEN, |text| line_with(text, &["bert", "unreachable"]));
    top.press("q");
    assert!(top.wait(ENDED).success());
    top.assert_restored();
}

#[test]
fn a_coordinator_that_is_silent_or_gone_is_told_and_found_again() {
    let mut served = Served::start(&[]);
    let client = served.early_client();
    let home = home();
    let mut top = top(&home, client.url(), 24, 80);
    top.wait_until("the waiting cluster", STARTED, |text| text.contains("waiting"));
    served.process.signal(libc::SIGSTOP);
    top.wait_until("the silence", SEEN, |text| text.contains("no answer for") && text.contains("silent"));
    served.process.signal(libc::SIGCONT);
    top.wait_until("the answer", SEEN, |text| !text.contains("no answer"));
    served.process.signal(libc::SIGSTOP);
    top.wait_until("the second silence", SEEN, |text| text.contains("no answer for"));
    let served = served.kill_and_restart(&client);
    top.wait_until("its next start", SEEN, |text| !text.contains("no answer"));
    drop(served);
    top.wait_until("its end", SEEN, |text| text.contains("no answer for") && text.contains("refused"));
    // What a terminal in raw mode makes of Ctrl-C.
    top.press("\x03");
    assert!(top.wait(ENDED).success());
    top.assert_restored();
}

#[test]
fn signals_and_the_end_of_the_terminal_end_it_in_order() {
    let home = home();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut top = top(&home, "http://127.0.0.1:1", 24, 80);
        top.wait_until("a picture", STARTED, |text| text.contains("no answer"));
        assert!(top.screen().screen().alternate_screen());
        top.signal(signal);
        assert!(top.wait(ENDED).success(), "signal {signal}");
        top.assert_restored();
    }
}

/// Run in a terminal by the test below, in a process of its own.
#[test]
#[ignore = "panics on purpose"]
fn panics_on_a_screen() {
    let mut screen = Screen::open().expect("a terminal");
    screen.draw(|frame| frame.render_widget("a picture", frame.area())).expect("a terminal");
    std::thread::sleep(Duration::from_millis(300));
    panic!("this is told");
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was_and_is_told_on_it() {
    let mut command = Command::new(std::env::current_exe().expect("the system knows this program's path"));
    command.args(["--exact", "panics_on_a_screen", "--ignored", "--nocapture"]);
    // A backtrace would move the message off the screen.
    command.env("RUST_BACKTRACE", "0");
    let mut terminal = Terminal::start(&mut command, 24, 80);
    terminal.wait_until("a picture", STARTED, |text| text.contains("a picture"));
    assert!(!terminal.wait(ENDED).success());
    terminal.assert_restored();
    assert!(terminal.text().contains("this is told"), "{}", terminal.text());
}

#[test]
fn without_a_terminal_it_names_the_command_that_needs_none() {
    let home = home();
    let output = brigade(&home)
        .args(["top", "--url", "http://127.0.0.1:1"])
        .stdin(Stdio::null())
        .output()
        .expect("the program was built");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("brigade status --watch") && output.stdout.is_empty(), "{error}");
}
