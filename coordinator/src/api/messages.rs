//! The messages of a chat request, as templates see them.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, invalid, missing, wrong_type};
use super::tools::{read_name, read_type};

/// Most messages in one request.
const MAX_MESSAGES: usize = 4096;

/// Reads `messages`: at least one.
///
/// # Errors
/// 400 naming the first message and field that is wrong.
pub(crate) fn read_messages(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
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

fn read_message(mut fields: Fields) -> Result<Value, ApiError> {
    let role = fields.text("role")?.ok_or_else(|| missing(&fields.path("role")))?;
    // OpenAI's newer name for the same role, which no template knows.
    let role = if role == "developer" { "system".to_owned() } else { role };
    if !matches!(role.as_str(), "system" | "user" | "assistant" | "tool") {
        let why =
            format_args!("must be system, developer, user, assistant or tool, not `{role}`").to_string();
        return Err(invalid(&fields.path("role"), why));
    }
    let mut message = Map::new();
    let mut texts = vec!["name"];
    let mut calls = Vec::new();
    match role.as_str() {
        "assistant" => {
            calls = read_calls(&mut fields)?;
            texts.push("reasoning_content");
        }
        "tool" => texts.push("tool_call_id"),
        _ => {}
    }
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), read_content(&mut fields, !calls.is_empty())?);
    for name in texts {
        if let Some(text) = fields.text(name)? {
            message.insert(name.to_owned(), text.into());
        }
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
    for name in ["function_call", "audio", "refusal"] {
        fields.only(name, |_| false)?;
    }
    fields.finish()?;
    Ok(Value::Object(message))
}

/// What a message says; `null` where it only calls tools.
fn read_content(fields: &mut Fields, may_be_missing: bool) -> Result<Value, ApiError> {
    let path = fields.path("content");
    match fields.value("content") {
        None if may_be_missing => Ok(Value::Null),
        None => Err(missing(&path)),
        Some(Value::String(text)) => Ok(text.into()),
        Some(Value::Array(parts)) => Ok(join_parts(parts, &path)?.into()),
        Some(other) => Err(wrong_type(&path, "a string or an array of text parts", &other)),
    }
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

/// The calls that an assistant's message made.
fn read_calls(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let path = fields.path("tool_calls");
    let items = match fields.value("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type(&path, "an array of calls", &other)),
    };
    items
        .into_iter()
        .enumerate()
        .map(|(at, item)| read_call(Fields::of_value(item, &format!("{path}[{at}]"))?))
        .collect()
}

/// A call with its arguments as templates want them: as an object, where the text that a request has for them is one.
fn read_call(mut call: Fields) -> Result<Value, ApiError> {
    read_type(&mut call)?;
    let path = call.path("function");
    let mut function = call.object("function")?.ok_or_else(|| missing(&path))?;
    let name = read_name(&mut function)?;
    let path = function.path("arguments");
    let text = function.text("arguments")?.ok_or_else(|| missing(&path))?;
    let arguments = serde_json::from_str(&text).ok().filter(Value::is_object);
    function.finish()?;
    let mut read = Map::new();
    if let Some(id) = call.text("id")? {
        read.insert("id".to_owned(), id.into());
    }
    // Where a part of a stream stood, which some clients send back.
    call.whole("index", 0..=i64::MAX)?;
    call.finish()?;
    read.insert("type".to_owned(), "function".into());
    let mut function = Map::new();
    function.insert("name".to_owned(), name.into());
    function.insert("arguments".to_owned(), arguments.unwrap_or(Value::String(text)));
    read.insert("function".to_owned(), Value::Object(function));
    Ok(Value::Object(read))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: &str) -> Result<Vec<Value>, ApiError> {
        let mut fields = Fields::of_body(format!(r#"{{"messages": {messages}}}"#).as_bytes())?;
        read_messages(&mut fields)
    }

    #[test]
    fn content_is_a_string_or_text_parts() {
        let parts =
            r#"{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
        let developer = r#"{"role": "developer", "content": "rules"}"#;
        let user = r#"{"role": "user", "content": "hi", "name": "Ann"}"#;
        let wanted = json!([
            {"role": "system", "content": "rules"}, {"role": "user", "content": "hi", "name": "Ann"},
            {"role": "user", "content": "a\nb"},
        ]);
        assert_eq!(json!(read(&format!("[{developer}, {user}, {parts}]")).unwrap()), wanted);
    }

    #[test]
    fn calls_and_their_answers_reach_the_template() {
        let call = |arguments: &str| {
            format!(
                r#"{{"id": "c1", "type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}"#
            )
        };
        let messages = format!(
            r#"[{{"role": "assistant", "content": null, "tool_calls": [{}, {}]}},
                {{"role": "tool", "tool_call_id": "c1", "content": "42"}}]"#,
            call(r#""{\"b\": 1, \"a\": [2]}""#),
            call(r#""not JSON""#)
        );
        let called = |arguments: Value| json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let wanted = json!([
            {"role": "assistant", "content": null, "tool_calls": [called(json!({"b": 1, "a": [2]})), called(json!("not JSON"))]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ]);
        assert_eq!(
            json!(read(&messages).unwrap()).to_string(),
            wanted.to_string(),
            "in the order of the request"
        );
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
            (r#"[{"role": "assistant", "tool_calls": []}]"#, "messages[0].content"),
            (r#"[{"role": "assistant", "tool_calls": [{}]}]"#, "messages[0].tool_calls[0].type"),
            (
                r#"[{"role": "assistant", "tool_calls": [{"type": "function"}]}]"#,
                "messages[0].tool_calls[0].function",
            ),
            (r#"[{"role": "user", "content": "", "tool_calls": [{}]}]"#, "messages[0].tool_calls"),
            (r#"[{"role": "user", "content": "", "tool_call_id": "c"}]"#, "messages[0].tool_call_id"),
            (r#"[{"role": "user", "content": "", "x": 1}]"#, "messages[0].x"),
        ] {
            let error = read(messages).unwrap_err();
            assert_eq!(error.to_json()["error"]["param"], place, "{messages}: {error}");
        }
    }
}
