//! The body of `POST /v1/completions`.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, invalid, missing, wrong_type};
use super::params::{MAX_LOGPROBS, Shared, Vocabulary};
use super::prompts::Prompt;

/// Tokens generated unless told otherwise; OpenAI's default.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most prompts in one request: more than the batches of evaluation harnesses, and few enough that their answers fit
/// into memory.
const MAX_PROMPTS: usize = 256;

/// A completion as asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CompletionRequest {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// At least one; each makes one choice.
    pub(crate) prompts: Vec<Prompt>,
    /// Most tokens to generate; 0 only with `echo`.
    pub(crate) max_tokens: u32,
    /// Whether the text begins with the prompt.
    pub(crate) echo: bool,
    /// Parameters shared with chat; `sampling.logprobs` is set.
    pub(crate) shared: Shared,
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming the first parameter that is wrong, not supported or not known.
    pub(crate) fn parse(body: &[u8], vocabulary: Vocabulary<'_>) -> Result<CompletionRequest, ApiError> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.text("model")?;
        let prompts = read_prompts(&mut fields, vocabulary.size)?;
        let echo = fields.flag("echo")?;
        let max_tokens = fields.whole("max_tokens", 0..=i64::from(u32::MAX))?;
        let max_tokens = max_tokens.map_or(DEFAULT_MAX_TOKENS, |wanted| wanted as u32);
        if max_tokens == 0 && !echo {
            return Err(invalid("max_tokens", "may be 0 only with `echo`: true; ask for at least 1"));
        }
        let mut shared = Shared::read(&mut fields, vocabulary, Some(max_tokens))?;
        shared.sampling.logprobs = fields.whole("logprobs", 0..=MAX_LOGPROBS)?.map(|count| count as u32);
        fields.only("best_of", |value| value.as_f64() == Some(1.0))?;
        fields.only("suffix", |value| value.as_str() == Some(""))?;
        fields.finish()?;
        Ok(CompletionRequest { model, prompts, max_tokens, echo, shared })
    }
}

fn read_prompts(fields: &mut Fields, vocabulary: usize) -> Result<Vec<Prompt>, ApiError> {
    const NAME: &str = "prompt";
    const WANTED: &str = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let prompts = match fields.value(NAME).ok_or_else(|| missing(NAME))? {
        Value::String(text) => vec![Prompt::Text(text)],
        Value::Array(items) => match items.first() {
            None => return Err(invalid(NAME, "is empty; give at least one token or text")),
            Some(Value::String(_)) => items
                .into_iter()
                .enumerate()
                .map(|(at, item)| match item {
                    Value::String(text) => Ok(Prompt::Text(text)),
                    other => Err(wrong_type(&format!("{NAME}[{at}]"), "a string like the first", &other)),
                })
                .collect::<Result<_, _>>()?,
            Some(Value::Number(_)) => vec![Prompt::Tokens(token_ids(&items, NAME, vocabulary)?)],
            Some(Value::Array(_)) => items
                .iter()
                .enumerate()
                .map(|(at, item)| match item {
                    Value::Array(ids) => {
                        Ok(Prompt::Tokens(token_ids(ids, &format!("{NAME}[{at}]"), vocabulary)?))
                    }
                    other => Err(wrong_type(&format!("{NAME}[{at}]"), "an array like the first", other)),
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(wrong_type(&format!("{NAME}[0]"), WANTED, other)),
        },
        other => return Err(wrong_type(NAME, WANTED, &other)),
    };
    if prompts.len() > MAX_PROMPTS {
        let found = prompts.len();
        return Err(invalid(NAME, format_args!("may hold at most {MAX_PROMPTS} prompts, not {found}")));
    }
    Ok(prompts)
}

fn token_ids(items: &[Value], path: &str, vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    if items.is_empty() {
        return Err(invalid(path, "is empty; give at least one token id"));
    }
    let last = vocabulary.saturating_sub(1);
    items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            let id = item.as_u64().filter(|id| *id <= last as u64);
            id.map(|id| id as u32).ok_or_else(|| match item {
                Value::Number(number) => {
                    let why = format_args!("must be a token id from 0 to {last}, not {number}").to_string();
                    invalid(&format!("{path}[{at}]"), why)
                }
                other => wrong_type(&format!("{path}[{at}]"), "a token id", other),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(text.as_bytes(), Vocabulary { size: 100, end_ids: &[2] })
    }

    #[test]
    fn a_prompt_comes_in_four_shapes() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (shape, expected) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a", "b"]"#, vec![text("a"), text("b")]),
            ("[1, 99]", vec![Prompt::Tokens(vec![1, 99])]),
            ("[[1], [2, 3]]", vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
        ] {
            assert_eq!(parse(&format!(r#"{{"prompt": {shape}}}"#)).unwrap().prompts, expected, "{shape}");
        }
    }

    #[test]
    fn a_wrong_prompt_is_refused_by_its_place() {
        for (shape, place) in [
            ("[]", "prompt"),
            ("{}", "prompt"),
            ("7", "prompt"),
            ("[true]", "prompt[0]"),
            (r#"["a", 1]"#, "prompt[1]"),
            (r#"[1, "a"]"#, "prompt[1]"),
            ("[1, -1]", "prompt[1]"),
            ("[100]", "prompt[0]"),
            ("[1.5]", "prompt[0]"),
            ("[[1], 2]", "prompt[1]"),
            ("[[1], []]", "prompt[1]"),
            ("[[1], [1, 100]]", "prompt[1][1]"),
        ] {
            let error = parse(&format!(r#"{{"prompt": {shape}}}"#)).unwrap_err();
            assert_eq!(error.to_json()["error"]["param"], place, "{shape}: {error}");
        }
        assert!(parse("{}").unwrap_err().to_string().contains("`prompt` is missing"));
        let many = format!(r#"{{"prompt": [{}"a"]}}"#, r#""a", "#.repeat(MAX_PROMPTS));
        assert!(parse(&many).unwrap_err().to_string().contains("at most 256"));
    }

    #[test]
    fn defaults_are_openai_s() {
        let request = parse(r#"{"prompt": "a"}"#).unwrap();
        assert_eq!((request.max_tokens, request.echo, request.shared.sampling.logprobs), (16, false, None));
        let request = parse(r#"{"prompt": "a", "echo": true, "max_tokens": 0, "logprobs": 0, "best_of": 1}"#);
        assert_eq!(request.unwrap().shared.sampling.logprobs, Some(0));
        for refused in
            ["\"max_tokens\": 0", "\"logprobs\": 21", "\"best_of\": 2", "\"suffix\": \"x\"", "\"x\": 1"]
        {
            assert!(parse(&format!(r#"{{"prompt": "a", {refused}}}"#)).is_err(), "{refused}");
        }
    }
}
