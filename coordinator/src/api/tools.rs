//! The tools of a chat request: which functions the model may call.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, invalid, missing, wrong_type};

/// Most tools in one request; OpenAI's limit.
const MAX_TOOLS: usize = 128;
/// Longest name of a function; OpenAI's limit.
const MAX_NAME_BYTES: usize = 64;

/// The functions that a model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tools {
    /// As the request describes them, for the template; none where it says that none is to be called.
    pub(crate) described: Vec<Value>,
    /// Their names.
    pub(crate) names: Vec<String>,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`, and refuses what they were called before.
    ///
    /// A call cannot be enforced, since nothing constrains what the model writes: of the choices there are `auto` and
    /// `none`, with which the model is told of no tools.
    ///
    /// # Errors
    /// 400 naming what is wrong or not supported.
    pub(crate) fn read(fields: &mut Fields) -> Result<Tools, ApiError> {
        fields.only("functions", |value| value.as_array().is_some_and(Vec::is_empty))?;
        fields.only("function_call", |value| value.as_str() == Some("none"))?;
        let tools = read_tools(fields)?;
        let choice = fields.value("tool_choice");
        match (choice.as_ref().map(Value::as_str), tools.described.is_empty()) {
            (Some(Some("none")), _) => {
                fields.only("parallel_tool_calls", Value::is_boolean)?;
                return Ok(Tools::default());
            }
            (None | Some(Some("auto")), false) | (None, true) => {}
            (Some(Some("auto")), true) => {
                return Err(invalid("tool_choice", "may be given only with `tools`"));
            }
            (Some(_), _) => {
                let message =
                    "`tool_choice` may be \"auto\" or \"none\": this server cannot make a model call a tool";
                return Err(ApiError::bad_param("tool_choice", "unsupported_parameter", message));
            }
        }
        let any = tools.described.is_empty();
        fields
            .only("parallel_tool_calls", |value| *value == Value::Bool(true) || any && value.is_boolean())?;
        Ok(tools)
    }
}

fn read_tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    const NAME: &str = "tools";
    let items = match fields.value(NAME) {
        None => return Ok(Tools::default()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type(NAME, "an array of tools", &other)),
    };
    if items.len() > MAX_TOOLS {
        let found = items.len();
        return Err(invalid(NAME, format_args!("may hold at most {MAX_TOOLS} tools, not {found}")));
    }
    let mut tools = Tools::default();
    for (at, item) in items.into_iter().enumerate() {
        tools.described.push(item.clone());
        tools.names.push(read_tool(Fields::of_value(item, &format!("{NAME}[{at}]"))?)?);
    }
    Ok(tools)
}

/// Checks a tool and gives its function's name. What else describes it is the template's to write.
fn read_tool(mut tool: Fields) -> Result<String, ApiError> {
    read_type(&mut tool)?;
    let path = tool.path("function");
    let mut function = tool.object("function")?.ok_or_else(|| missing(&path))?;
    let name = read_name(&mut function)?;
    function.text("description")?;
    function.object("parameters")?;
    function.flag("strict")?;
    function.finish()?;
    tool.finish()?;
    Ok(name)
}

/// Checks that a tool or a call is of the only type there is.
pub(super) fn read_type(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.text("type")?.as_deref() {
        Some("function") => Ok(()),
        Some(other) => {
            let why = format!("is `{other}`: this server knows tools of type `function` only");
            Err(invalid(&fields.path("type"), why))
        }
        None => Err(missing(&fields.path("type"))),
    }
}

/// The name of a function.
pub(super) fn read_name(function: &mut Fields) -> Result<String, ApiError> {
    let path = function.path("name");
    let name = function.text("name")?.ok_or_else(|| missing(&path))?;
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len());
    if fits && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')) {
        return Ok(name);
    }
    Err(invalid(&path, format_args!("must have 1 to {MAX_NAME_BYTES} letters, digits, `_`, `-` or `.`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOL: &str =
        r#"{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}"#;

    fn read(text: &str) -> Result<Tools, ApiError> {
        let mut fields = Fields::of_body(text.as_bytes())?;
        let tools = Tools::read(&mut fields)?;
        fields.finish()?;
        Ok(tools)
    }

    #[test]
    fn tools_are_taken_as_they_are_described() {
        let tools = read(&format!(r#"{{"tools": [{TOOL}], "tool_choice": "auto"}}"#)).unwrap();
        assert_eq!(tools.names, ["look_up"]);
        assert_eq!(tools.described, [serde_json::from_str::<Value>(TOOL).unwrap()]);
        assert_eq!(read(&format!(r#"{{"tools": [{TOOL}]}}"#)).unwrap(), tools);
        for none in [
            format!(r#"{{"tools": [{TOOL}], "tool_choice": "none", "parallel_tool_calls": false}}"#),
            r#"{"tools": [], "parallel_tool_calls": false}"#.to_owned(),
            r#"{"tool_choice": "none"}"#.to_owned(),
        ] {
            assert_eq!(read(&none).unwrap(), Tools::default(), "{none}");
        }
    }

    #[test]
    fn what_cannot_be_done_with_tools_is_refused_by_its_name() {
        let named = r#"{"type": "function", "function": {"name": "look_up"}}"#;
        for (rest, name) in [
            (r#""tool_choice": "required""#.to_owned(), "tool_choice"),
            (format!(r#""tool_choice": {named}"#), "tool_choice"),
            (r#""parallel_tool_calls": false"#.to_owned(), "parallel_tool_calls"),
            (r#""functions": [{}]"#.to_owned(), "functions"),
        ] {
            let error = read(&format!(r#"{{"tools": [{TOOL}], {rest}}}"#)).unwrap_err();
            assert_eq!(error.to_json()["error"]["param"], name, "{error}");
        }
        for (tools, name) in [
            ("{}", "tools"),
            ("[1]", "tools[0]"),
            (r#"[{"type": "web_search"}]"#, "tools[0].type"),
            (r#"[{"type": "function"}]"#, "tools[0].function"),
            (r#"[{"type": "function", "function": {}}]"#, "tools[0].function.name"),
            (r#"[{"type": "function", "function": {"name": "a b"}}]"#, "tools[0].function.name"),
            (r#"[{"type": "function", "function": {"name": "a", "x": 1}}]"#, "tools[0].function.x"),
        ] {
            let error = read(&format!(r#"{{"tools": {tools}}}"#)).unwrap_err();
            assert_eq!(error.to_json()["error"]["param"], name, "{error}");
        }
        let error = read(r#"{"tool_choice": "auto"}"#).unwrap_err();
        assert!(error.to_string().contains("only with `tools`"), "{error}");
    }
}
