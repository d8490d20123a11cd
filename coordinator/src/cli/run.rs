//! `brigade run`: a chat in the terminal, against a running coordinator or one that lives as long as the chat.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tokio::sync::mpsc;

use super::connect::{self, ConnectOptions};
use super::options::{ServingOptions, WorkerOptions, model_file, model_id};
use super::report::note;
use super::{INTERRUPTED, UsageError, own};
use crate::client::{ChatEvent, ChatMessage, ChatRequest, ChatStream, Client, ClientError};
use crate::signals::Signals;

/// How long a question waits for a cluster that is being put together again.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it asks meanwhile.
const RETRY: Duration = Duration::from_millis(500);

/// Most bytes of a prompt on standard input: more than any model's context.
const MAX_INPUT_BYTES: u64 = 16 << 20;

/// Flags of `brigade run`.
#[derive(Debug, Args)]
#[command(after_help = "Example: brigade run SmolLM2.gguf 'Why is the sky blue?'")]
pub struct RunArgs {
    /// The model: a GGUF file, a directory of safetensors, or the id of a model that a running coordinator serves
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: PathBuf,

    /// What to ask; without it standard input is read, line by line on a terminal, else as one question
    prompt: Option<String>,

    #[command(flatten)]
    connect: ConnectOptions,

    /// What the model is told before the chat
    #[arg(long, env = "BRIGADE_SYSTEM", value_name = "TEXT", hide_env = true)]
    system: Option<String>,

    /// Most tokens of an answer [default: the rest of the context]
    #[arg(long, env = "BRIGADE_MAX_TOKENS", value_name = "N", hide_env = true, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,

    /// Sampling temperature; 0 takes the likeliest token [default: the server's, 1]
    #[arg(long, env = "BRIGADE_TEMPERATURE", value_name = "T", hide_env = true, value_parser = parse_temperature)]
    temperature: Option<f64>,

    /// Seed of the sampling [default: random]
    #[arg(long, env = "BRIGADE_SEED", value_name = "N", hide_env = true, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seed: Option<u64>,

    /// Tell the speed of each answer on standard error
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    workers: WorkerOptions,

    #[command(flatten)]
    serving: ServingOptions,
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    let temperature = text.parse::<f64>().ok().filter(|t| (0.0..=2.0).contains(t));
    temperature.ok_or_else(|| "write a number from 0 to 2".to_owned())
}

/// Where the questions come from.
enum Questions {
    /// There is one.
    One(String),
    /// A person types them.
    Typed(Typist),
}

/// Chats until there are no more questions.
pub(super) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let questions = questions(args.prompt.clone())?;
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    if let Some((client, model)) = find_running(&args).await? {
        let mut chat = Chat::new(client, model, &args);
        return chat.hold(questions, &mut signals).await;
    }
    let model = model_file(&args.model)?;
    let id = model_id(&model);
    let chat =
        async |client, signals: &mut Signals| Chat::new(client, id, &args).hold(questions, signals).await;
    own::with_cluster(&model, &args.workers, &args.serving, &mut signals, chat).await
}

/// The coordinator to use instead of an embedded one: the one named, else one on this machine that serves the model.
async fn find_running(args: &RunArgs) -> anyhow::Result<Option<(Client, String)>> {
    let given = args.model.to_string_lossy().into_owned();
    let names = [given, model_id(&args.model)];
    if args.connect.url.is_some() {
        let client = args.connect.client().await?;
        let served = client.models().await?;
        return match served.iter().find(|id| names.contains(id)) {
            Some(model) => Ok(Some((client, model.clone()))),
            None => anyhow::bail!(
                "the coordinator at {} serves {}, not {}; give that id as MODEL",
                client.url(),
                served.join(", "),
                names[0]
            ),
        };
    }
    let running = connect::running(args.connect.api_key.as_deref()).await;
    Ok(running
        .into_iter()
        .find(|(_, announcement)| names.contains(&announcement.model))
        .map(|(client, announcement)| (client, announcement.model)))
}

fn questions(prompt: Option<String>) -> anyhow::Result<Questions> {
    if let Some(prompt) = prompt {
        return Ok(Questions::One(prompt));
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(Questions::Typed(Typist::start()?));
    }
    let mut text = String::new();
    let read = stdin.lock().take(MAX_INPUT_BYTES + 1).read_to_string(&mut text);
    let read = read.context("failed to read the prompt from standard input (it must be UTF-8)")?;
    if read as u64 > MAX_INPUT_BYTES {
        return Err(UsageError(format!(
            "the prompt on standard input has more than {MAX_INPUT_BYTES} bytes"
        ))
        .into());
    }
    if text.trim().is_empty() {
        return Err(UsageError("standard input is empty: give a PROMPT, or pipe one in".to_owned()).into());
    }
    // The line's own end is not part of the question.
    Ok(Questions::One(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A conversation under way.
struct Chat<'a> {
    client: Client,
    request: ChatRequest,
    args: &'a RunArgs,
}

impl<'a> Chat<'a> {
    fn new(client: Client, model: String, args: &'a RunArgs) -> Chat<'a> {
        let system = args.system.iter().map(|text| ChatMessage { role: "system", content: text.clone() });
        let request = ChatRequest {
            model,
            messages: system.collect(),
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            seed: args.seed,
        };
        Chat { client, request, args }
    }

    /// Asks one question, or all that are typed.
    async fn hold(&mut self, questions: Questions, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        let mut typist = match questions {
            Questions::One(question) => {
                let whole = self.ask(question, signals).await?;
                return Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) });
            }
            Questions::Typed(typist) => typist,
        };
        note(&format!("{}: Ctrl-C ends an answer, Ctrl-D the chat", self.request.model));
        loop {
            let line = tokio::select! {
                line = typist.line() => line,
                () = signals.next() => None,
            };
            let Some(line) = line else {
                note("");
                return Ok(ExitCode::SUCCESS);
            };
            if line.trim().is_empty() {
                continue;
            }
            if let Err(error) = self.ask(line, signals).await {
                if super::is_broken_pipe(&error) {
                    return Err(error);
                }
                // The chat goes on without the question that failed.
                note(&format!("error: {error:#}"));
                self.request.messages.pop();
                note("the question was not kept: ask again when you like");
            }
        }
    }

    /// Asks, and writes the answer as it comes. Returns whether it came to its end before a signal.
    async fn ask(&mut self, question: String, signals: &mut Signals) -> anyhow::Result<bool> {
        self.request.messages.push(ChatMessage { role: "user", content: question });
        let mut answer = String::new();
        let mut stats = Stats::new();
        let told = tokio::select! {
            told = self.tell(&mut answer, &mut stats) => Some(told),
            () = signals.next() => None,
        };
        if !answer.is_empty() && !answer.ends_with('\n') {
            writeln!(std::io::stdout())?;
        }
        let whole = told.transpose()?.is_some();
        self.request.messages.push(ChatMessage { role: "assistant", content: answer });
        if stats.cut_off {
            note("(cut off: the answer has reached --max-tokens or the end of the context)");
        }
        if self.args.stats {
            note(&stats.line());
        }
        Ok(whole)
    }

    /// Writes the answer to standard output as it comes, and keeps it in `answer`.
    async fn tell(&mut self, answer: &mut String, stats: &mut Stats) -> anyhow::Result<()> {
        let mut stream = self.begin().await?;
        let on_terminal = std::io::stdout().is_terminal();
        while let Some(event) = stream.next().await? {
            match event {
                ChatEvent::Text(text) => {
                    stats.text();
                    let mut out = std::io::stdout().lock();
                    out.write_all(shown(&text, on_terminal).as_bytes())?;
                    out.flush()?;
                    answer.push_str(&text);
                }
                ChatEvent::Usage { prompt, completion } => stats.usage = Some((prompt, completion)),
                ChatEvent::Finished(reason) => stats.cut_off = reason == "length",
            }
        }
        Ok(())
    }

    /// Sends the conversation. Where it has outgrown the context its oldest turns are let go, and where the cluster is
    /// being put together again it is waited for.
    async fn begin(&mut self) -> anyhow::Result<ChatStream> {
        let asked = Instant::now();
        let mut patient = false;
        loop {
            let refused = match self.client.chat(&self.request).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let ClientError::Refused { status, code, .. } = &refused else {
                return Err(refused.into());
            };
            if code.as_deref() == Some("context_length_exceeded") && self.forget_oldest_turn() {
                note("the context is full: the oldest question and its answer are forgotten");
            } else if *status == 503 && asked.elapsed() < PATIENCE {
                if !std::mem::replace(&mut patient, true) {
                    note("the cluster is not serving yet: waiting for it");
                }
                tokio::time::sleep(RETRY).await;
            } else {
                return Err(refused.into());
            }
        }
    }

    /// Whether there was a turn before the last question.
    fn forget_oldest_turn(&mut self) -> bool {
        let messages = &mut self.request.messages;
        let first = messages.iter().position(|message| message.role == "user");
        let Some(first) = first.filter(|first| first + 2 < messages.len()) else {
            return false;
        };
        messages.drain(first..first + 2);
        true
    }
}

/// Text for a terminal without what could steer the terminal.
fn shown(text: &str, on_terminal: bool) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(|c| !on_terminal || harmless(*c)).collect()
}

/// How fast an answer came.
struct Stats {
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    usage: Option<(u64, u64)>,
    cut_off: bool,
}

impl Stats {
    fn new() -> Stats {
        Stats { asked: Instant::now(), first: None, last: None, usage: None, cut_off: false }
    }

    fn text(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn line(&self) -> String {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return "no answer".to_owned();
        };
        let ttft = first.duration_since(self.asked).as_secs_f64();
        match self.usage {
            Some((prompt, completion)) => {
                // The first token's time is the prompt's; the others come one after the other.
                let seconds = last.duration_since(first).as_secs_f64();
                let rate = match seconds > 0.0 && completion > 1 {
                    true => format!(" at {:.1} tokens/s", (completion - 1) as f64 / seconds),
                    false => String::new(),
                };
                format!("first token after {ttft:.2} s ({prompt} prompt tokens), {completion} tokens{rate}")
            }
            None => format!("first token after {ttft:.2} s, cancelled"),
        }
    }
}

/// Reads lines from the terminal in a thread of its own: reading a terminal cannot be interrupted, so the thread ends
/// with the process.
struct Typist {
    wanted: mpsc::Sender<()>,
    lines: mpsc::Receiver<Option<String>>,
}

impl Typist {
    fn start() -> anyhow::Result<Typist> {
        // One line is asked for at a time.
        let (wanted, mut asked) = mpsc::channel::<()>(1);
        let (sender, lines) = mpsc::channel(1);
        let read = move || {
            while asked.blocking_recv().is_some() {
                let _ = write!(std::io::stderr(), "> ");
                let mut line = String::new();
                let read = std::io::stdin().lock().take(MAX_INPUT_BYTES).read_line(&mut line);
                let line = matches!(read, Ok(1..)).then(|| line.trim_end_matches(['\r', '\n']).to_owned());
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("typist".to_owned()).spawn(read)?;
        Ok(Typist { wanted, lines })
    }

    /// The next line; `None` at the end of the input.
    async fn line(&mut self) -> Option<String> {
        self.wanted.send(()).await.ok()?;
        self.lines.recv().await.flatten()
    }
}
