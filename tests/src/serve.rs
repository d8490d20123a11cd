//! A coordinator that waits for workers, and workers that join it: programs of their own, each of which a test may stop,
//! kill and start again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cluster::{START, brigade, served_url, worker};
use crate::http::Client;
use crate::process::Process;
use crate::setup;

/// How long a coordinator may take to say how to join it.
const JOINABLE: Duration = Duration::from_secs(20);
/// How often it is asked whether it serves.
const POLL: Duration = Duration::from_millis(20);

/// A coordinator started by `brigade serve`.
#[derive(Debug)]
pub struct Served {
    /// The program.
    pub process: Process,
    /// Where it keeps things.
    pub home: TempDir,
    /// The join token that it printed.
    pub token: String,
    /// Where workers join.
    pub control: String,
    arguments: Vec<String>,
    /// What it finds in its environment, and every worker that joins.
    environment: Vec<(String, String)>,
    model: PathBuf,
}

impl Served {
    /// Serves the real model on ephemeral ports of loopback.
    pub fn start(arguments: &[&str]) -> Served {
        Served::start_in(arguments, &[])
    }

    /// The same with more in the environment, as all workers have it that join.
    pub fn start_in(arguments: &[&str], environment: &[(&str, &str)]) -> Served {
        let home = tempfile::tempdir().expect("the temporary folder is writable");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Served::at(home, "127.0.0.1:0", "127.0.0.1:0", arguments, environment, setup::smollm2().to_owned())
    }

    /// Serves the model of a file of the test's own.
    pub fn start_model(model: &Path, arguments: &[&str]) -> Served {
        let home = tempfile::tempdir().expect("the temporary folder is writable");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Served::at(home, "127.0.0.1:0", "127.0.0.1:0", arguments, Vec::new(), model.to_owned())
    }

    fn at(
        home: TempDir,
        http: &str,
        control: &str,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        model: PathBuf,
    ) -> Served {
        let mut command = brigade(&home);
        command
            .arg("serve")
            .arg(&model)
            .args(["--http", http, "--control", control])
            .args(&arguments)
            .envs(environment.iter().cloned());
        let mut process = Process::start(&mut command);
        let (control, token) = process.wait_for("join command", JOINABLE, |line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let join =
                words.windows(2).position(|pair| pair[0].ends_with("brigade-worker") && pair[1] == "join")?;
            let token = words.iter().position(|word| *word == "--token")?;
            Some((words.get(join + 2)?.to_string(), words.get(token + 1)?.trim_matches('\'').to_string()))
        });
        Served { process, home, token, control, arguments, environment, model }
    }

    /// Ends the program at once, as a power cut would, and starts it again at the same addresses; `client` speaks to it.
    pub fn kill_and_restart(mut self, client: &Client) -> Served {
        self.kill();
        self.restart(client)
    }

    /// Ends the program at once, as a power cut would.
    pub fn kill(&mut self) {
        self.process.signal(libc::SIGKILL);
        self.process.wait(Duration::from_secs(5));
    }

    /// Starts the program again after its end, at the same addresses; `client` speaks to it.
    pub fn restart(self, client: &Client) -> Served {
        let http = client.url().trim_start_matches("http://").to_owned();
        Served::at(self.home, &http, &self.control, self.arguments, self.environment, self.model)
    }

    /// A worker that joins with the coordinator's token.
    pub fn join(&self, name: &str, memory: &str) -> Joined {
        self.join_with(name, memory, Some(&self.token))
    }

    /// A worker that joins with another token.
    pub fn join_with(&self, name: &str, memory: &str, token: Option<&str>) -> Joined {
        self.started(self.joining(name, memory), token)
    }

    /// A worker that has its models in a folder of its own.
    pub fn join_from(&self, name: &str, memory: &str, models: &Path) -> Joined {
        let settings = Joining { models: models.to_owned(), ..self.joining(name, memory) };
        self.started(settings, Some(&self.token))
    }

    /// The same, with more in its environment.
    pub fn join_from_with(
        &self,
        name: &str,
        memory: &str,
        models: &Path,
        environment: &[(String, String)],
    ) -> Joined {
        let mut settings = Joining { models: models.to_owned(), ..self.joining(name, memory) };
        settings.environment.extend_from_slice(environment);
        self.started(settings, Some(&self.token))
    }

    fn joining(&self, name: &str, memory: &str) -> Joining {
        let home = tempfile::tempdir().expect("the temporary folder is writable");
        let models = setup::smollm2().parent().expect("a folder").to_owned();
        let (name, memory, environment) = (name.to_owned(), memory.to_owned(), self.environment.clone());
        let stretch = "1".to_owned();
        Joining { control: self.control.clone(), name, memory, models, environment, stretch, home }
    }

    /// A worker that joins, and whose steps take so many times as long as they need.
    pub fn join_stretched(&self, name: &str, memory: &str, stretch: &str) -> Joined {
        let settings = Joining { stretch: stretch.to_owned(), ..self.joining(name, memory) };
        self.started(settings, Some(&self.token))
    }

    fn started(&self, settings: Joining, token: Option<&str>) -> Joined {
        Joined { process: Process::start(&mut settings.command(token)), settings }
    }

    /// A client of its API, which may not serve yet.
    pub fn early_client(&mut self) -> Client {
        let url = |line: &str| Some(line.split_once("HTTP at ")?.1.trim().to_owned());
        Client::new(&self.process.wait_for("address", JOINABLE, url))
    }

    /// A client of its API, once it serves.
    pub fn client(&mut self) -> Client {
        Client::new(&self.process.wait_for("address", START, served_url))
    }

    /// Waits until it serves again.
    pub async fn wait_until_serving(&self, client: &Client) {
        let deadline = Instant::now() + START;
        while client.get("/health").await.status != 200 {
            assert!(Instant::now() < deadline, "not serving again:\n{}", self.process.output());
            tokio::time::sleep(POLL).await;
        }
    }
}

/// A worker started by `brigade-worker join`.
#[derive(Debug)]
pub struct Joined {
    /// The program.
    pub process: Process,
    settings: Joining,
}

#[derive(Debug)]
struct Joining {
    control: String,
    name: String,
    memory: String,
    models: PathBuf,
    environment: Vec<(String, String)>,
    stretch: String,
    home: TempDir,
}

impl Joining {
    fn command(&self, token: Option<&str>) -> Command {
        let mut command = worker(&self.home);
        command.args(["join", &self.control, "--name", &self.name, "--memory", &self.memory]);
        command.args(["--threads", "1", "--models"]).arg(&self.models);
        command.envs(self.environment.iter().cloned());
        command.args(["--stretch", &self.stretch]);
        if let Some(token) = token {
            command.env("BRIGADE_TOKEN", token);
        }
        command
    }
}

impl Joined {
    /// The worker's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where it keeps weights that come from other machines.
    pub fn cache(&self) -> PathBuf {
        self.settings.home.path().join("state/brigade-worker").join(&self.settings.name).join("cache")
    }

    /// Ends the program as Ctrl-C does.
    pub fn stop(&mut self) {
        self.process.signal(libc::SIGINT);
        self.process.wait(Duration::from_secs(5));
    }

    /// Ends the program at once, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.signal(libc::SIGKILL);
        self.process.wait(Duration::from_secs(5));
    }

    /// Starts the program again, with the certificate that it has by now.
    pub fn restart(&mut self) {
        self.process = Process::start(&mut self.settings.command(None));
    }
}
