//! Log lines are JSON where that is asked for, and hold no prompt and no answer unless that is asked for, too: at the most
//! talkative level, of every program of a cluster.

use brigade_tests::http::Client;
use brigade_tests::serve::{Joined, Served};
use serde_json::{Value, json};

/// Stands in the prompt, and nowhere else in the world.
const MARK: &str = "zanzibarquokka7719";

async fn ask(client: &Client) -> String {
    let request = json!({
        "model": client.model().await,
        "messages": [{ "role": "user", "content": format!("Tell me of the {MARK} and the bucket brigade.") }],
        "temperature": 0,
        "max_tokens": 48,
    });
    let answer = client.post("/v1/chat/completions", &request).await.ok();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("an answer").to_owned();
    assert!(text.len() > 40, "too short to be found: {text}");
    text
}

/// The longest part of the answer that would stand in a log as it is.
fn part(answer: &str) -> &str {
    answer.split(['"', '\\', '\n']).max_by_key(|part| part.len()).expect("an answer has a part")
}

async fn cluster(arguments: &[&str]) -> (Served, Joined, Client) {
    let arguments = [&["--ctx", "256"], arguments].concat();
    let mut served =
        Served::start_in(&arguments, &[("BRIGADE_LOG", "trace"), ("BRIGADE_LOG_FORMAT", "json")]);
    let worker = served.join("anna", "160MiB");
    let client = served.client();
    (served, worker, client)
}

#[tokio::test]
async fn no_log_line_holds_a_prompt_or_an_answer_unless_it_is_asked_for() {
    let (mut served, mut worker, client) = cluster(&[]).await;
    let answer = ask(&client).await;
    served.process.signal(libc::SIGINT);
    worker.process.signal(libc::SIGINT);
    let limit = std::time::Duration::from_secs(10);
    for output in [served.process.wait(limit).1, worker.process.wait(limit).1] {
        let lines: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let levels = lines.iter().filter(|line| line["level"].is_string() && line["timestamp"].is_string());
        assert!(levels.count() > 20, "hardly a log line in JSON:\n{output}");
        assert!(lines.iter().any(|line| line["level"] == "TRACE"), "nothing at the level asked for");
        for told in [MARK, part(&answer)] {
            let line = output.lines().find(|line| line.contains(told));
            assert!(line.is_none(), "{told:?} was logged: {line:?}");
        }
    }
}

#[tokio::test]
async fn with_log_prompts_each_request_is_one_line() {
    let (mut served, _worker, client) = cluster(&["--log-prompts"]).await;
    let answer = ask(&client).await;
    served.process.signal(libc::SIGINT);
    let (_, output) = served.process.wait(std::time::Duration::from_secs(10));
    let lines: Vec<&str> = output.lines().filter(|line| line.contains(MARK)).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let line: Value = serde_json::from_str(lines[0]).expect("a line in JSON");
    assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"brigade::prompts".into()));
    assert_eq!(line["fields"]["answers"], format!("{:?}", [&answer]));
}
