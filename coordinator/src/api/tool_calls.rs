//! Tool calls in what a model writes, in the common syntaxes, however the text is cut:
//!
//! - Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`;
//! - Llama 3.1: an answer that is nothing but `{"name": …, "parameters": {…}}`, or several with `;` between;
//! - Mistral: `[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}}`, or a name, `[ARGS]` and the arguments.
//!
//! What only looks like a call stays text.

use serde_json::{Map, Value};

const HERMES_BEGIN: &str = "<tool_call>";
const HERMES_END: &str = "</tool_call>";
const MISTRAL_BEGIN: &str = "[TOOL_CALLS]";
const MISTRAL_ARGUMENTS: &str = "[ARGS]";

/// Tokens that show where calls stand; they are part of the text that is searched, even where a vocabulary calls them
/// control tokens.
pub(crate) const MARKERS: [&str; 4] = [HERMES_BEGIN, HERMES_END, MISTRAL_BEGIN, MISTRAL_ARGUMENTS];

/// How an answer of Llama's that is a call begins: with one of these keys.
const LLAMA_KEYS: [&str; 3] = ["\"name\"", "\"type\"", "\"function\""];

/// A call that a model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The function.
    pub(crate) name: String,
    /// Its arguments as JSON.
    pub(crate) arguments: String,
}

/// Text and calls that have become certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Text outside of calls.
    pub(crate) text: String,
    /// Calls, in order.
    pub(crate) calls: Vec<Call>,
}

/// Where the text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the answer's beginning: nothing but white space so far.
    Beginning,
    /// In text.
    Text,
    /// After a call: white space up to the next one is not text.
    AfterCall,
    /// In an answer that may be a call of Llama's.
    Llama,
    /// In a call of Hermes' kind.
    Hermes,
    /// After Mistral's marker.
    Mistral,
}

/// Finds calls in a growing text.
#[derive(Clone, Debug)]
pub(crate) struct CallFinder {
    names: Vec<String>,
    place: Place,
    /// Text whose meaning is not certain yet.
    held: String,
}

impl CallFinder {
    /// For an answer to a request whose tools have these names.
    pub(crate) fn new(names: Vec<String>) -> CallFinder {
        CallFinder { names, place: Place::Beginning, held: String::new() }
    }

    /// Adds a piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Found {
        self.held.push_str(piece);
        let mut found = Found::default();
        while self.step(&mut found) {}
        found
    }

    /// The text is whole: what was held back is text, or a call without an end.
    pub(crate) fn finish(&mut self) -> Found {
        let mut found = Found::default();
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Beginning | Place::Text => found.text = held,
            Place::AfterCall => {}
            Place::Llama => match self.llama_calls(&held) {
                Some(calls) => found.calls = calls,
                None => found.text = held,
            },
            Place::Hermes => match call_of_text(&held) {
                Some(call) => found.calls.push(call),
                None => found.text = HERMES_BEGIN.to_owned() + &held,
            },
            Place::Mistral => match mistral_calls(&held) {
                Some(calls) => found.calls = calls,
                None => found.text = MISTRAL_BEGIN.to_owned() + &held,
            },
        }
        self.place = Place::Text;
        found
    }

    /// Takes a part of the held text whose meaning is certain; says whether there may be another.
    fn step(&mut self, found: &mut Found) -> bool {
        match self.place {
            Place::Beginning => {
                let Some(first) = self.held.trim_start().chars().next() else {
                    return false;
                };
                self.place = if first == '{' { Place::Llama } else { Place::Text };
                true
            }
            Place::Llama => {
                if begins_like_llama(&self.held) {
                    return false;
                }
                self.place = Place::Text;
                true
            }
            Place::AfterCall => {
                self.held.drain(..self.held.len() - self.held.trim_start().len());
                let begins = |marker: &&str| marker.starts_with(self.held.as_str());
                if [HERMES_BEGIN, MISTRAL_BEGIN].iter().any(begins) {
                    // Nothing yet, or the beginning of another call.
                    return false;
                }
                self.place = Place::Text;
                true
            }
            Place::Text => self.search(found),
            Place::Hermes => {
                let Some(at) = self.held.find(HERMES_END) else {
                    return false;
                };
                match call_of_text(&self.held[..at]) {
                    Some(call) => {
                        found.calls.push(call);
                        self.place = Place::AfterCall;
                    }
                    None => {
                        found.text.push_str(HERMES_BEGIN);
                        found.text.push_str(&self.held[..at + HERMES_END.len()]);
                        self.place = Place::Text;
                    }
                }
                self.held.drain(..at + HERMES_END.len());
                true
            }
            // The list has no end of its own: the answer's end is its.
            Place::Mistral => false,
        }
    }

    /// Looks for the beginning of a call in text, and holds back no more than could become one.
    fn search(&mut self, found: &mut Found) -> bool {
        let begins = [(HERMES_BEGIN, Place::Hermes), (MISTRAL_BEGIN, Place::Mistral)];
        let first =
            begins.iter().filter_map(|(marker, place)| Some((self.held.find(marker)?, marker, *place)));
        if let Some((at, marker, place)) = first.min_by_key(|(at, _, _)| *at) {
            found.text.push_str(&self.held[..at]);
            self.held.drain(..at + marker.len());
            self.place = place;
            return true;
        }
        let kept = begins.iter().map(|(marker, _)| {
            let longest = marker.len().min(self.held.len());
            (0..=longest).rev().find(|len| self.held.ends_with(&marker[..*len])).unwrap_or(0)
        });
        let kept = kept.max().unwrap_or(0);
        found.text.extend(self.held.drain(..self.held.len() - kept));
        false
    }

    /// The calls of an answer that is nothing else; each must be one of the request's tools.
    fn llama_calls(&self, text: &str) -> Option<Vec<Call>> {
        let mut calls = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let call = call_of(values.next()?.ok()?).filter(|call| self.names.contains(&call.name))?;
            calls.push(call);
            rest = rest[values.byte_offset()..].trim_start().trim_start_matches(';').trim_start();
        }
        Some(calls).filter(|calls| !calls.is_empty())
    }
}

/// Whether a text that begins with `{` may still become a call of Llama's.
fn begins_like_llama(text: &str) -> bool {
    let inside = text.trim_start().trim_start_matches('{').trim_start();
    LLAMA_KEYS.iter().any(|key| inside.starts_with(key) || key.starts_with(inside))
}

fn call_of_text(text: &str) -> Option<Call> {
    call_of(serde_json::from_str(text.trim()).ok()?)
}

/// The call that an object describes; its arguments may be missing, or be the text of an object.
fn call_of(value: Value) -> Option<Call> {
    let Value::Object(mut object) = value else {
        return None;
    };
    // Some answers put the call into a field of its own, as requests do.
    if let Some(Value::Object(inner)) = object.get_mut("function") {
        object = std::mem::take(inner);
    }
    let name = match object.remove("name").or_else(|| object.remove("function"))? {
        Value::String(name) if !name.is_empty() => name,
        _ => return None,
    };
    let arguments = object.remove("arguments").or_else(|| object.remove("parameters"));
    let arguments = match arguments.unwrap_or(Value::Object(Map::new())) {
        Value::String(text) => serde_json::from_str::<Map<String, Value>>(&text).ok().map(|_| text)?,
        object @ Value::Object(_) => object.to_string(),
        _ => return None,
    };
    Some(Call { name, arguments })
}

fn mistral_calls(text: &str) -> Option<Vec<Call>> {
    let text = text.trim();
    if let Ok(Value::Array(items)) = serde_json::from_str(text) {
        return items.into_iter().map(call_of).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty());
    }
    let calls = text.split(MISTRAL_BEGIN).map(|call| {
        let (name, arguments) = call.split_once(MISTRAL_ARGUMENTS)?;
        let arguments: Map<String, Value> = serde_json::from_str(arguments.trim()).ok()?;
        let name = name.trim().to_owned();
        (!name.is_empty()).then(|| Call { name, arguments: Value::Object(arguments).to_string() })
    });
    calls.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    fn find(pieces: &[&str]) -> (String, Vec<Call>) {
        let mut finder = CallFinder::new(vec!["f".to_owned(), "g".to_owned()]);
        let mut all = Found::default();
        let mut add = |found: Found| {
            all.text.push_str(&found.text);
            all.calls.extend(found.calls);
        };
        for piece in pieces {
            add(finder.push(piece));
        }
        add(finder.finish());
        (all.text, all.calls)
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let f = || call("f", r#"{"x":1}"#);
        for (text, wanted, calls) in [
            (
                r#"<tool_call>
{"name": "f", "arguments": {"x": 1}}
</tool_call>"#,
                "",
                vec![f()],
            ),
            (
                r#"Let me see. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
<tool_call>{"name": "unknown", "arguments": {}}</tool_call>
"#,
                "Let me see. ",
                vec![f(), call("unknown", "{}")],
            ),
            (r#"<tool_call>{"name": "f", "arguments": {"x": 1}}"#, "", vec![f()]),
            (r#"<tool_call>{"name": "f"}</tool_call> and more"#, "and more", vec![call("f", "{}")]),
            (r#"{"name": "f", "parameters": {"x": 1}}"#, "", vec![f()]),
            (r#" {"type": "function", "name": "f", "parameters": "{\"x\":1}"} "#, "", vec![f()]),
            (r#"{"name": "f", "parameters": {"x": 1}}; {"name": "g"}"#, "", vec![f(), call("g", "{}")]),
            (r#"{"function": {"name": "f", "arguments": {"x": 1}}}"#, "", vec![f()]),
            (
                r#"[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]"#,
                "",
                vec![f(), call("g", "{}")],
            ),
            (
                r#"Wait. [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}"#,
                "Wait. ",
                vec![f(), call("g", "{}")],
            ),
        ] {
            let wanted = (wanted.to_owned(), calls);
            assert_eq!(find(&[text]), wanted, "{text}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(find(&chars), wanted, "{text}, char by char");
        }
    }

    #[test]
    fn what_only_looks_like_a_call_stays_text() {
        for text in [
            "",
            "  \n",
            "plain text with < and [ and <tool and [TOOL",
            "<tool_call>not JSON</tool_call> after",
            r#"<tool_call>{"name": "f", "arguments": {"x""#,
            r#"<tool_call>{"name": 3}</tool_call>"#,
            r#"{"answer": 42}"#,
            r#"{"name": "Ann", "age": 3}"#,
            r#"{"name": "f", "parameters": {"x": 1}} is what I would call"#,
            r#"{"name": "f", "parameters": {"#,
            "[TOOL_CALLS] none",
            r#"[TOOL_CALLS][{"name": "f", "arg"#,
            "[1, 2]",
            "ünï <tööl_call>",
        ] {
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(find(&[text]), (text.to_owned(), Vec::new()));
            assert_eq!(find(&chars), (text.to_owned(), Vec::new()), "char by char");
        }
    }

    #[test]
    fn text_is_held_back_no_longer_than_it_may_be_a_call() {
        let mut finder = CallFinder::new(vec!["f".to_owned()]);
        assert_eq!(finder.push("{\"n"), Found::default());
        assert_eq!(finder.push("umber\": 3").text, "{\"number\": 3");
        assert_eq!(finder.push(" <").text, " ");
        assert_eq!(finder.push("b>").text, "<b>");
    }
}
