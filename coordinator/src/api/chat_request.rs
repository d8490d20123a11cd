//! The body of `POST /v1/chat/completions`.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, invalid};
use super::messages::read_messages;
use super::params::{MAX_LOGPROBS, Shared, Vocabulary};
use super::tools::Tools;
use crate::template::Rendering;

/// Names that a template gets from us and that a request must not overwrite.
const TEMPLATE_NAMES: [&str; 5] = ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools"];

/// A chat completion as asked for.
#[derive(Clone, Debug)]
pub(crate) struct ChatRequest {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// What the template gets: at least one message.
    pub(crate) rendering: Rendering,
    /// The names of the functions that the model may call.
    pub(crate) tools: Vec<String>,
    /// Most tokens to generate; `None` for the rest of the context.
    pub(crate) max_tokens: Option<u32>,
    /// Parameters shared with completions; `sampling.logprobs` is set.
    pub(crate) shared: Shared,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming the first parameter that is wrong, not supported or not known.
    pub(crate) fn parse(body: &[u8], vocabulary: Vocabulary<'_>) -> Result<ChatRequest, ApiError> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.text("model")?;
        let messages = read_messages(&mut fields)?;
        let tools = Tools::read(&mut fields)?;
        refuse_unsupported(&mut fields)?;
        let max_tokens = read_max_tokens(&mut fields)?;
        let mut shared = Shared::read(&mut fields, vocabulary, max_tokens)?;
        shared.sampling.logprobs = read_logprobs(&mut fields)?;
        let variables = read_template_kwargs(&mut fields)?;
        fields.finish()?;
        let rendering = Rendering { messages, tools: tools.described, variables };
        Ok(ChatRequest { model, rendering, tools: tools.names, max_tokens, shared })
    }
}

/// Refuses what would change the answer and is not built. Neutral values are accepted: plain text.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("modalities", |value| *value == Value::from(vec!["text"]))?;
    for name in ["audio", "prediction", "verbosity", "web_search_options"] {
        fields.only(name, |_| false)?;
    }
    if fields.value("reasoning_effort").is_some() {
        let message = "`reasoning_effort` is not supported by this server; where the model's template knows it, pass it \
                       in `chat_template_kwargs`";
        return Err(ApiError::bad_param("reasoning_effort", "unsupported_parameter", message));
    }
    if let Some(mut format) = fields.object("response_format")? {
        if format.text("type")?.as_deref() != Some("text") {
            return Err(ApiError::unsupported("response_format"));
        }
        format.finish()?;
    }
    Ok(())
}

fn read_max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let old = fields.whole("max_tokens", 1..=i64::from(u32::MAX))?;
    let new = fields.whole("max_completion_tokens", 1..=i64::from(u32::MAX))?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let why = format!("is {old}, but `max_completion_tokens` is {new}; give one of them");
            Err(invalid("max_tokens", why))
        }
        _ => Ok(new.or(old).map(|wanted| wanted as u32)),
    }
}

fn read_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.whole("top_logprobs", 0..=MAX_LOGPROBS)?;
    match top {
        Some(top) if !wanted && top > 0 => {
            Err(invalid("top_logprobs", "may be given only with `logprobs`: true"))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0) as u32)),
    }
}

fn read_template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let kwargs = fields.object(NAME)?.map(Fields::rest).unwrap_or_default();
    match TEMPLATE_NAMES.into_iter().find(|name| kwargs.contains_key(*name)) {
        Some(name) => Err(invalid(&format!("{NAME}.{name}"), "is set by the server; leave it out")),
        None => Ok(kwargs),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const USER: &str = r#"{"role": "user", "content": "hi"}"#;

    fn parse(text: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(text.as_bytes(), Vocabulary { size: 100, end_ids: &[2] })
    }

    #[test]
    fn messages_tools_and_variables_are_the_template_s() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let kwargs = r#""chat_template_kwargs": {"enable_thinking": false}"#;
        let request = parse(&format!(r#"{{"messages": [{USER}], "tools": [{tool}], {kwargs}}}"#)).unwrap();
        let variables = [("enable_thinking".to_owned(), json!(false))].into_iter().collect();
        let messages = vec![json!({"role": "user", "content": "hi"})];
        assert_eq!(request.rendering, Rendering { messages, tools: vec![tool], variables });
        assert_eq!(request.tools, ["f"]);
        assert_eq!((request.max_tokens, request.shared.sampling.logprobs), (None, None));
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_name_and_its_neutral_value_accepted() {
        for (name, refused, neutral) in [
            ("functions", "[{}]", "null"),
            ("tool_choice", "\"auto\"", "\"none\""),
            ("response_format", r#"{"type": "json_object"}"#, r#"{"type": "text"}"#),
            ("modalities", r#"["text", "audio"]"#, r#"["text"]"#),
            ("audio", "{}", "null"),
            ("reasoning_effort", "\"low\"", "null"),
            ("top_logprobs", "3", "0"),
            ("no_such_parameter", "1", "null"),
        ] {
            let error = parse(&format!(r#"{{"messages": [{USER}], "{name}": {refused}}}"#)).unwrap_err();
            assert_eq!(error.to_json()["error"]["param"], name, "{error}");
            parse(&format!(r#"{{"messages": [{USER}], "{name}": {neutral}}}"#)).unwrap();
        }
    }

    #[test]
    fn both_names_of_the_limit_must_agree() {
        let limits = |text: &str| parse(&format!(r#"{{"messages": [{USER}], {text}}}"#));
        assert_eq!(limits(r#""max_completion_tokens": 5"#).unwrap().max_tokens, Some(5));
        assert_eq!(limits(r#""max_tokens": 5, "max_completion_tokens": 5"#).unwrap().max_tokens, Some(5));
        assert!(limits(r#""max_tokens": 5, "max_completion_tokens": 6"#).is_err());
        assert!(limits(r#""max_tokens": 0"#).is_err());
        assert!(limits(r#""chat_template_kwargs": {"messages": []}"#).is_err());
        let kwargs =
            limits(r#""chat_template_kwargs": {"enable_thinking": false}"#).unwrap().rendering.variables;
        assert_eq!(kwargs["enable_thinking"], false);
    }
}
