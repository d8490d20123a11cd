//! Throughput as others have published it.

use std::sync::LazyLock;

use super::csv;

/// One published figure, and as what it can be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedRow {
    /// Who says it: the letter of an article, or `peers` for measurements of other programs' users.
    pub source: String,
    /// The devices in the source's words.
    pub devices: String,
    /// The model in the source's words.
    pub model: String,
    /// The quantisation in the source's words; may be empty.
    pub quant: String,
    /// The size that the source states, in decimal GB.
    pub size_gb: Option<f64>,
    /// What was counted, such as `decode`.
    pub metric: String,
    /// Tokens per second.
    pub value: f64,
    /// What else is known of it; may be empty.
    pub note: String,
    /// A device of this catalogue; `None` where the source's is not known well enough.
    pub as_device: Option<String>,
    /// How many of them.
    pub as_count: usize,
    /// The link of this catalogue between them; `None` where there is one device.
    pub as_link: Option<String>,
    /// A model of this catalogue and a mix; `None` where the source does not say which.
    pub as_model: Option<String>,
}

static PUBLISHED: LazyLock<Vec<PublishedRow>> = LazyLock::new(|| {
    let rows = csv::rows(include_str!("../../catalogue/published.csv"));
    let rows = rows.and_then(|rows| rows.into_iter().map(PublishedRow::of).collect());
    rows.expect("the published figures are part of the program, and a test reads them")
});

impl PublishedRow {
    fn of(cells: Vec<String>) -> Result<PublishedRow, String> {
        let row = cells.join(",");
        let wrong = |what: &str| format!("`{row}` has {what}");
        let cells: [String; 12] = cells.try_into().map_err(|_| wrong("another number of cells"))?;
        let [source, devices, model, quant, size, metric, value, note, device, count, link, as_model] = cells;
        let filled = |cell: String| (!cell.is_empty()).then_some(cell);
        let number =
            |cell: String| cell.parse::<f64>().map_err(|_| wrong("a size or value that is no number"));
        Ok(PublishedRow {
            size_gb: filled(size).map(number).transpose()?,
            value: number(value)?,
            as_count: count.parse().map_err(|_| wrong("no count of devices"))?,
            as_device: filled(device),
            as_link: filled(link),
            as_model: filled(as_model),
            source,
            devices,
            model,
            quant,
            metric,
            note,
        })
    }
}

/// All of them.
pub fn published() -> &'static [PublishedRow] {
    &PUBLISHED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{device, link, model};

    #[test]
    fn every_row_names_what_the_catalogue_has() {
        assert!(published().len() >= 60, "{}", published().len());
        for row in published() {
            assert!(row.value > 0.0 && row.as_count >= 1 && !row.source.is_empty(), "{row:?}");
            assert!(row.as_device.as_deref().is_none_or(|name| device(name).is_ok()), "{row:?}");
            assert!(row.as_model.as_deref().is_none_or(|name| model(name).is_ok()), "{row:?}");
            assert!(row.as_link.as_deref().is_none_or(|name| link(name).is_ok()), "{row:?}");
            assert_eq!(row.as_link.is_some(), row.as_count > 1, "{row:?}");
        }
    }
}
