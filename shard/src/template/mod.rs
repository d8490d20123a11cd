//! Chat templates: from messages to the text that a model was trained on (`tokenizer.chat_template`, Jinja).
//!
//! Templates are written for Python's Jinja in the environment of Hugging Face's transformers, and come from a file that
//! nobody has checked. They run with that environment's functions and white-space rules, and within limits on their
//! size, steps, output and nesting. What a template holds or compares on the way has no limit here: one that doubles a
//! text (`a ~ a`) or a list again and again takes memory, or time, without end, even while it is compiled. Who takes
//! files from strangers compiles and renders in a process whose memory and time have one, as the coordinator does.

mod generation;
mod json;
mod python;
mod sandbox;
mod strftime;

use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::model_file::{FileError, Header};
use crate::tokenizer::Tokenizer;
use json::Style;
use sandbox::Limited;

/// Bytes of a template's source; the longest in use have some 20 KiB.
pub const MAX_TEMPLATE_BYTES: usize = 128 << 10;
/// Steps of one rendering; a conversation of 1,000 messages takes some 100,000.
pub const MAX_STEPS: u64 = 1_000_000;
/// Bytes of a rendered prompt: more than the longest context in use can hold.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// The name under which errors speak of the template.
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A chat template that cannot be used, or messages that it does not take.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TemplateError {
    /// The metadata could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file has no template.
    #[error(
        "the model has no chat template: use plain completions, or a file of the instruction-tuned model"
    )]
    Missing,
    /// The template's source is too long.
    #[error("the chat template has {bytes} bytes, more than the limit of {MAX_TEMPLATE_BYTES}")]
    TooLong { bytes: usize },
    /// The template is no valid Jinja.
    #[error("the chat template cannot be read: {problem}")]
    Syntax { problem: String },
    /// The template itself refuses the messages.
    #[error("{message}")]
    Refused { message: String },
    /// The template failed on the messages.
    #[error("the chat template failed: {problem}")]
    Failed { problem: String },
    /// The template did not come to an end.
    #[error("the chat template took more than {MAX_STEPS} steps: it loops, or the conversation is too long")]
    TooManySteps,
    /// The text grew too long.
    #[error("the chat template wrote more than {MAX_OUTPUT_BYTES} bytes: the conversation is too long")]
    TooMuchOutput,
    /// No thread to run it on.
    #[error("the chat template could not be run: {problem}")]
    Sandbox { problem: String },
}

/// A template before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSource {
    /// Its Jinja.
    pub source: String,
    /// Text of the token at a whole text's beginning, which templates write.
    pub bos: Option<String>,
    /// Text of the token at a whole text's end.
    pub eos: Option<String>,
}

impl TemplateSource {
    /// The file's chat template.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] where the file has none.
    pub fn from_header(header: &Header, tokenizer: &Tokenizer) -> Result<TemplateSource, TemplateError> {
        let source = header.str("tokenizer.chat_template")?.ok_or(TemplateError::Missing)?.to_owned();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(str::to_owned);
        Ok(TemplateSource { source, bos: text(tokenizer.bos()), eos: text(tokenizer.eos()) })
    }
}

/// Marks the errors that a template raises itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A model's chat template, ready to be rendered any number of times.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// Where the source is too long, nested too deep, or no Jinja.
    pub fn compile(template: &TemplateSource) -> Result<ChatTemplate, TemplateError> {
        let TemplateSource { source, bos, eos } = template.clone();
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong { bytes: source.len() });
        }
        let source = generation::without_tags(&source).into_owned();
        let mut environment = environment()?;
        let compiled = sandbox::run(|| environment.add_template_owned(NAME, source))?;
        compiled.map_err(|error| TemplateError::Syntax { problem: describe(&error) })?;
        Ok(ChatTemplate { environment, bos, eos })
    }

    /// Lets the template ask for the date through `strftime_now`, in UTC. Without a clock it finds no such function,
    /// and templates write a fixed date then.
    pub fn with_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> ChatTemplate {
        let now = Arc::new(now);
        self.environment.add_function("strftime_now", move |format: String| strftime::format(now(), &format));
        self
    }

    /// The prompt for `messages`, each with at least a role and a content ([`Message`], or JSON objects with more).
    /// With `add_generation_prompt` it ends where the model's answer begins. `extra` are further variables that
    /// templates know, such as `enable_thinking`; they do not replace the ones given here.
    ///
    /// Waits for a thread that renders, which a hostile template can keep busy for about a second: call it where
    /// blocking is allowed.
    ///
    /// The text holds special tokens, the one at its beginning included where the template writes it: encode it with
    /// [`ParseSpecial::Yes`](crate::tokenizer::ParseSpecial).
    ///
    /// # Errors
    /// [`TemplateError::Refused`] where the template does not take these messages, such as two from the user in a row;
    /// others where it fails or exceeds a limit.
    pub fn render<M: Serialize>(
        &self,
        messages: &[M],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let messages = serde_json::to_value(messages);
        let messages = messages.map_err(|error| TemplateError::Failed { problem: error.to_string() })?;
        let mut variables = serde_json::Map::new();
        variables.insert("tools".to_owned(), serde_json::Value::Null);
        variables.insert("documents".to_owned(), serde_json::Value::Null);
        variables.extend(extra.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables.insert("messages".to_owned(), messages);
        variables.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                variables.insert(name.to_owned(), token.as_str().into());
            }
        }
        sandbox::run(|| self.render_here(&variables))?
    }

    fn render_here(
        &self,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let mut output = Limited::new(MAX_OUTPUT_BYTES);
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| {
            template.render_captured_to(Value::from(Serde(variables)), &mut output)?;
            Ok(())
        });
        match rendered {
            Ok(()) => {
                output.into_text().ok_or_else(|| TemplateError::Failed { problem: "no UTF-8".to_owned() })
            }
            Err(_) if output.is_full() => Err(TemplateError::TooMuchOutput),
            Err(error) => Err(failure(&error)),
        }
    }
}

fn environment() -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax { problem: describe(&error) })?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(MAX_STEPS));
    python::add(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_filter("tojson", |value: &Value, options: Kwargs| -> Result<Value, Error> {
        json::format(value, &Style::of(&options)?).map(Value::from_safe_string)
    });
    Ok(environment)
}

fn failure(error: &Error) -> TemplateError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            return TemplateError::Refused { message: message.clone() };
        }
        cause = current.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::TooManySteps,
        _ => TemplateError::Failed { problem: describe(error) },
    }
}

/// The error in one line, with its place.
fn describe(error: &Error) -> String {
    error.to_string().chars().take(400).collect()
}
