//! The processes that render one model's template: few, kept, and replaced when a template has ended one.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use brigade_shard::template::TemplateSource;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::process::Process;
use super::wire::{self, MAX_REQUEST_BYTES, Rendering, Reply, Request};
use super::{DEADLINE, PROCESSES};

/// Why there is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template is no Jinja, refuses the messages, failed on them, or exceeded a limit.
    #[error("{0}")]
    Template(String),
    /// The template writes the same with tools as without.
    #[error("the chat template knows no tools")]
    NoTools,
    /// The process could not be run.
    #[error("the chat template's process could not be used: {0}")]
    Process(String),
}

/// A model's chat template; cheap to clone.
#[derive(Clone, Debug)]
pub struct ChatRenderer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    /// The first frame to every process.
    load: Vec<u8>,
    /// At most [`PROCESSES`] at a time render or start.
    turns: Semaphore,
    /// Processes that have loaded the template and wait.
    idle: Mutex<Vec<Process>>,
}

impl ChatRenderer {
    /// A renderer of `source` whose processes are `program`, the coordinator's own. Starts none yet.
    ///
    /// # Errors
    /// [`RenderError::Process`] where the source is too long to be sent.
    pub fn new(program: PathBuf, source: TemplateSource) -> Result<ChatRenderer, RenderError> {
        let load = framed(&Request::Load(source))?;
        let (turns, idle) = (Semaphore::new(PROCESSES), Mutex::new(Vec::new()));
        Ok(ChatRenderer { shared: Arc::new(Shared { program, load, turns, idle }) })
    }

    /// Compiles the template.
    ///
    /// # Errors
    /// Where it is no Jinja, compiling it exceeds a limit, or no process can be started.
    pub async fn check(&self) -> Result<(), RenderError> {
        let _turn = self.turn().await?;
        let process = self.start().await?;
        self.keep(process);
        Ok(())
    }

    /// The prompt, up to the beginning of the assistant's answer.
    ///
    /// # Errors
    /// Where the template refuses the messages or exceeds a limit, knows no tools and some are given, or no process
    /// can be started. The next rendering works all the same.
    pub async fn render(&self, rendering: Rendering) -> Result<String, RenderError> {
        let frame = framed(&Request::Render(rendering))?;
        let _turn = self.turn().await?;
        if let Some(process) = self.take() {
            match exchange(process, &frame).await {
                Ok((process, reply)) => return self.done(process, reply),
                // It may have ended while it waited: only a new one's end is the template's doing.
                Err(Broken::Gone) => {}
                Err(Broken::Ended(reason)) => return Err(reason),
            }
        }
        match exchange(self.start().await?, &frame).await {
            Ok((process, reply)) => self.done(process, reply),
            Err(broken) => Err(broken.into()),
        }
    }

    /// Keeps a process that has answered.
    fn done(&self, process: Process, reply: Reply) -> Result<String, RenderError> {
        self.keep(process);
        match reply {
            Reply::Text(text) => Ok(text),
            Reply::NoTools => Err(RenderError::NoTools),
            Reply::Refused(problem) => Err(RenderError::Template(problem)),
            Reply::Loaded => Err(RenderError::Process("it loaded instead of rendering".to_owned())),
        }
    }

    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, RenderError> {
        self.shared.turns.acquire().await.map_err(|error| RenderError::Process(error.to_string()))
    }

    fn take(&self) -> Option<Process> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, process: Process) {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
    }

    /// A new process that has loaded the template.
    async fn start(&self) -> Result<Process, RenderError> {
        let process = Process::start(&self.shared.program).map_err(|error| {
            RenderError::Process(format!("{} could not be started: {error}", self.shared.program.display()))
        })?;
        match exchange(process, &self.shared.load).await {
            Ok((process, Reply::Loaded)) => Ok(process),
            Ok((_, Reply::Refused(problem))) => Err(RenderError::Template(problem)),
            Ok(_) => Err(RenderError::Process("it rendered instead of loading".to_owned())),
            Err(broken) => Err(broken.into()),
        }
    }
}

/// A process that gave no reply, and has ended.
enum Broken {
    /// It took no request.
    Gone,
    /// It ended, or was ended, over the request.
    Ended(RenderError),
}

impl From<Broken> for RenderError {
    fn from(broken: Broken) -> RenderError {
        match broken {
            Broken::Gone => RenderError::Process("it took no request".to_owned()),
            Broken::Ended(reason) => reason,
        }
    }
}

/// Sends a frame and waits for the reply.
async fn exchange(mut process: Process, frame: &[u8]) -> Result<(Process, Reply), Broken> {
    let stopped =
        |why: String| Broken::Ended(RenderError::Template(format!("the chat template was stopped: {why}")));
    match timeout(DEADLINE, process.ask(frame)).await {
        Ok(Ok(reply)) => Ok((process, reply)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(Broken::Gone),
        Ok(Err(error)) => Err(stopped(process.ended(&error).await)),
        Err(_) => Err(stopped(format!("it took more than {} s", DEADLINE.as_secs()))),
    }
}

fn framed(request: &Request) -> Result<Vec<u8>, RenderError> {
    let frame = wire::frame(request).map_err(|error| RenderError::Process(error.to_string()))?;
    if frame.len() > MAX_REQUEST_BYTES {
        return Err(RenderError::Process(format!("a request of {} bytes is too long", frame.len())));
    }
    Ok(frame)
}
