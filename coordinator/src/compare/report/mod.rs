//! How a comparison is written down: for a terminal, as Markdown, as JSON, as a picture and as a page.
//!
//! `facts` works out once what all of them say; each form only lays it out. In pictures and pages every text goes through
//! `markup`, which escapes it: names come from users and from other machines.

mod chart;
mod facts;
mod history;
mod html;
mod markdown;
mod markup;
mod svg;
mod table;

#[cfg(test)]
pub(crate) mod sample;

pub use history::{history_json, history_table};
pub use html::html;
pub use markdown::markdown;
pub use svg::svg;
pub use table::table;

pub(crate) use facts::{figure_of, plural, prediction_error};

use super::Comparison;

/// The comparison as JSON, from which it can be read again.
///
/// # Errors
/// Where a figure cannot be written.
pub fn json(comparison: &Comparison) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(comparison).map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_again_as_it_was_written() {
        let comparison = sample::comparison();
        let text = json(&comparison).unwrap();
        assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), comparison);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let figure = &document["sides"][1]["figures"][4];
        assert_eq!((&figure["what"], &figure["streams"]), (&"decode".into(), &16.into()), "{figure}");
    }
}
