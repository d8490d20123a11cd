//! The body of `POST /v1/chat/completions`.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, invalid, missing, wrong_type};
use super::params::{MAX_LOGPROBS, Shared, Vocabulary};
use crate::template::Rendering;

/// Most messages in one request.
const MAX_MESSAGES: usize = 4096;

/// Names that a template gets from us and that a request must not overwrite.
const TEMPLATE_NAMES: [&str; 5] = ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools"];

/// A chat completion as asked for.
#[derive(Clone, Debug)]
pub(crate) struct ChatRequest {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// What the template gets: at least one message.
    pub(crate) rendering: Rendering,
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
        refuse_unsupported(&mut fields)?;
        let max_tokens = read_max_tokens(&mut fields)?;
        let mut shared = Shared::read(&mut fields, vocabulary, max_tokens)?;
        shared.sampling.logprobs = read_logprobs(&mut fields)?;
        let variables = read_template_kwargs(&mut fields)?;
        fields.finish()?;
        let rendering = Rendering { messages, tools: Vec::new(), variables };
        Ok(ChatRequest { model, rendering, max_tokens, shared })
    }
}

/// Refuses what would change the answer and is not built. Neutral values are accepted: no tools, no choice among them,
/// plain text.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    fields.only("tools", empty)?;
    fields.only("functions", empty)?;
    fields.only("tool_choice", |value| value.as_str() == Some("none"))?;
    fields.only("function_call", |value| value.as_str() == Some("none"))?;
    fields.only("parallel_tool_calls", Value::is_boolean)?;
    fields.only("modalities", |value| *value == Value::from(vec!["text"]))?;
    for name in ["audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"] {
        fields.only(name, |_| false)?;
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

fn read_messages(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    const NAME: &str = "messages";
    let items = match fields.value(NAME).ok_or_else(|| missing(NAME))? {
        Value::Array(items) if items.is_empty() => {
            return Err(invalid(NAME, "is empty; give at least one message"));
        }
        Value::Array(items) => items,
        other => return Err(wrong_type(NAME, "an array of messages", &other)),
    };
    if items.len() > MAX_MESSAGES {
        let found = items.len();
        return Err(invalid(NAME, format_args!("may hold at most {MAX_MESSAGES} messages, not {found}")));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(at, item)| read_message(Fields::of_value(item, &format!("{NAME}[{at}]"))?))
        .collect()
}

/// A message as the template sees it.
fn read_message(mut fields: Fields) -> Result<Value, ApiError> {
    let role = fields.text("role")?.ok_or_else(|| missing(&fields.path("role")))?;
    // OpenAI's newer name for the same role, which no template knows.
    let role = if role == "developer" { "system".to_owned() } else { role };
    if !matches!(role.as_str(), "system" | "user" | "assistant" | "tool") {
        let why =
            format_args!("must be system, developer, user, assistant or tool, not `{role}`").to_string();
        return Err(invalid(&fields.path("role"), why));
    }
    let path = fields.path("content");
    let content = match fields.value("content").ok_or_else(|| missing(&path))? {
        Value::String(text) => text,
        Value::Array(parts) => join_parts(parts, &path)?,
        other => return Err(wrong_type(&path, "a string or an array of text parts", &other)),
    };
    fields.only("tool_calls", |value| value.as_array().is_some_and(Vec::is_empty))?;
    for name in ["function_call", "audio", "refusal"] {
        fields.only(name, |_| false)?;
    }
    let mut message = Map::new();
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), content.into());
    for name in ["name", "tool_call_id"] {
        if let Some(text) = fields.text(name)? {
            message.insert(name.to_owned(), text.into());
        }
    }
    fields.finish()?;
    Ok(Value::Object(message))
}

/// The text of content given in parts, one part a line.
fn join_parts(parts: Vec<Value>, path: &str) -> Result<String, ApiError> {
    let texts = parts.into_iter().enumerate().map(|(at, part)| {
        let mut part = Fields::of_value(part, &format!("{path}[{at}]"))?;
        match part.text("type")?.as_deref() {
            Some("text") => {}
            Some(other) => {
                let why =
                    format_args!("is `{other}`: this server takes parts of type `text` only").to_string();
                return Err(invalid(&part.path("type"), why));
            }
            None => return Err(missing(&part.path("type"))),
        }
        let text = part.text("text")?.ok_or_else(|| missing(&part.path("text")))?;
        part.finish()?;
        Ok(text)
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
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
    fn content_is_a_string_or_text_parts() {
        let parts =
            r#"{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
        let developer = r#"{"role": "developer", "content": "rules"}"#;
        let request = parse(&format!(r#"{{"messages": [{developer}, {USER}, {parts}]}}"#)).unwrap();
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let wanted = [message("system", "rules"), message("user", "hi"), message("user", "a\nb")];
        assert_eq!(request.rendering.messages, wanted);
        assert_eq!((request.max_tokens, request.shared.sampling.logprobs), (None, None));
    }

    #[test]
    fn a_wrong_message_is_refused_by_its_place() {
        for (messages, place) in [
            ("[]", "messages"),
            ("\"hi\"", "messages"),
            ("[1]", "messages[0]"),
            (r#"[{"content": "hi"}]"#, "messages[0].role"),
            (r#"[{"role": "robot", "content": "hi"}]"#, "messages[0].role"),
            (r#"[{"role": "user"}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": 3}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": [{"type": "text"}]}]"#, "messages[0].content[0].text"),
            (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "messages[0].content[0].type"),
            (r#"[{"role": "assistant", "content": "", "tool_calls": [{}]}]"#, "messages[0].tool_calls"),
            (r#"[{"role": "user", "content": "", "x": 1}]"#, "messages[0].x"),
        ] {
            let error = parse(&format!(r#"{{"messages": {messages}}}"#)).unwrap_err();
            assert_eq!(error.to_json()["error"]["param"], place, "{messages}: {error}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_name_and_its_neutral_value_accepted() {
        for (name, refused, neutral) in [
            ("tools", r#"[{"type": "function"}]"#, "[]"),
            ("functions", "[{}]", "null"),
            ("tool_choice", "\"auto\"", "\"none\""),
            ("response_format", r#"{"type": "json_object"}"#, r#"{"type": "text"}"#),
            ("n", "2", "1"),
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
