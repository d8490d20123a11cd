//! Prompts to token ids, off the threads that serve connections.

use brigade_shard::tokenizer::{ParseSpecial, Tokenizer};

use super::echo::Echo;
use super::engine::Engine;
use super::error::ApiError;
use super::fields::invalid;
use super::state::Api;
use crate::cluster::ModelInfo;
use crate::template::{RenderError, Rendering};

/// A prompt as the client wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// Text; names of special tokens in it count as such.
    Text(String),
    /// Token ids, taken as they are; all below the vocabulary's size, at least one.
    Tokens(Vec<u32>),
}

/// A prompt ready for the cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Encoded {
    /// At least one token id.
    pub(crate) tokens: Vec<u32>,
    /// Whether the first one was put before the client's text.
    pub(crate) bos_added: bool,
    /// The client's text, where it wrote text.
    pub(crate) text: Option<String>,
}

impl Encoded {
    /// The prompt as the beginning of the answer.
    pub(crate) fn echo(self, scored: bool) -> Echo {
        Echo { tokens: self.tokens, text: self.text, bos_added: self.bos_added, scored }
    }
}

/// Encodes the prompts of a completion.
///
/// # Errors
/// 400 where a prompt has no token at all or holds what the tokenizer cannot write.
pub(crate) async fn encode<E: Engine>(api: &Api<E>, prompts: Vec<Prompt>) -> Result<Vec<Encoded>, ApiError> {
    on_text_thread(api, move |model| {
        let tokenizer = &model.tokenizer;
        let bos = tokenizer.bos_to_add();
        prompts.into_iter().map(|prompt| encode_one(tokenizer, prompt, bos, "prompt")).collect()
    })
    .await
}

/// Writes messages with the model's own template, up to the beginning of the assistant's answer, and encodes them.
///
/// # Errors
/// 400 where the model has no template, its template refuses the messages or exceeds a limit, or it knows no tools and
/// some are given.
pub(crate) async fn encode_chat<E: Engine>(api: &Api<E>, rendering: Rendering) -> Result<Encoded, ApiError> {
    let Some(template) = &api.engine().model().template else {
        let message = "this model has no chat template; use /v1/completions with a prompt written for it";
        return Err(ApiError::bad_request("no_chat_template", message));
    };
    let text = template.render(rendering).await.map_err(|error| match error {
        RenderError::Process(_) => ApiError::internal(error.to_string()),
        RenderError::NoTools => {
            let message = "this model's chat template has no tools: the model was not trained to call any; leave out `tools`, \
                           or describe them in a message of your own";
            ApiError::bad_param("tools", "tools_not_supported", message)
        }
        RenderError::Template(error) => {
            let message = format!("the model's chat template does not take these `messages`: {error}");
            ApiError::bad_param("messages", "template_error", message)
        }
    })?;
    on_text_thread(api, move |model| {
        let bos = model.tokenizer.bos_to_add_to_chat();
        encode_one(&model.tokenizer, Prompt::Text(text), bos, "messages")
    })
    .await
}

/// Encodes what the parameter `param` gave, with the token `bos` before a text that does not begin with it.
fn encode_one(
    tokenizer: &Tokenizer,
    prompt: Prompt,
    bos: Option<u32>,
    param: &str,
) -> Result<Encoded, ApiError> {
    let (mut tokens, text) = match prompt {
        Prompt::Tokens(tokens) => {
            return Ok(Encoded { tokens, bos_added: false, text: None });
        }
        Prompt::Text(text) => {
            let tokens = tokenizer.encode(&text, ParseSpecial::Yes).map_err(|error| {
                ApiError::bad_param(param, "invalid_value", format!("`{param}` cannot be encoded: {error}"))
            })?;
            (tokens, text)
        }
    };
    let bos = bos.filter(|bos| tokens.first() != Some(bos));
    if let Some(bos) = bos {
        tokens.insert(0, bos);
    }
    if tokens.is_empty() {
        return Err(invalid(param, "is empty, and this model has no token to begin with; write some text"));
    }
    Ok(Encoded { tokens, bos_added: bos.is_some(), text: Some(text) })
}

/// Runs `work` on a thread that may block; a bounded number of them at a time, so that a flood of long prompts cannot
/// take every core from the streams that run.
async fn on_text_thread<E: Engine, T: Send + 'static>(
    api: &Api<E>,
    work: impl FnOnce(&ModelInfo) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let stopped = |what: String| ApiError::internal(format!("the prompt was not encoded: {what}"));
    let permit = api.text_permit().await.map_err(|error| stopped(error.to_string()))?;
    let engine = api.engine().clone();
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(engine.model())
    });
    task.await.map_err(|error| stopped(error.to_string()))?
}
