//! Links between machines.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{UnknownName, names};
use crate::plan::HopCost;

/// A kind of link.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogueLink {
    /// Such as `Thunderbolt 5` or `10GbE`.
    pub name: String,
    /// Nominal rate.
    pub gbit_per_s: f64,
    /// What a transport in user space can expect: rate and round trip.
    pub hop: HopCost,
    /// Where the figures are from: the nominal rate, and the share of it that is usable.
    pub source: String,
}

/// A link with what it is asked for by.
struct Named {
    link: CatalogueLink,
    also: Vec<String>,
}

/// The file's rows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    link: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    also: Vec<String>,
    gbit_per_s: f64,
    usable: f64,
    rtt_us: f64,
    why: String,
    source: String,
}

static NAMED: LazyLock<Vec<Named>> = LazyLock::new(|| {
    let file: File = toml::from_str(include_str!("../../catalogue/links.toml"))
        .expect("the catalogue of links is part of the program, and a test reads it");
    file.link.into_iter().map(Named::from).collect()
});

static LINKS: LazyLock<Vec<CatalogueLink>> =
    LazyLock::new(|| NAMED.iter().map(|named| named.link.clone()).collect());

impl From<Row> for Named {
    fn from(row: Row) -> Self {
        let Row { name, also, gbit_per_s, usable, rtt_us, why, source } = row;
        let hop = HopCost { rtt_us, bytes_per_s: gbit_per_s * usable * 1e9 / 8.0 };
        let source = format!("{source}; {:.0}% usable: {why}", usable * 100.0);
        Named { link: CatalogueLink { name, gbit_per_s, hop, source }, also }
    }
}

/// All of them.
pub fn links() -> &'static [CatalogueLink] {
    &LINKS
}

/// The link of that name; case, blanks and dashes do not count.
///
/// # Errors
/// Where there is none, with the nearest ones.
pub fn link(name: &str) -> Result<&'static CatalogueLink, UnknownName> {
    let names = |named: &'static Named| -> Vec<&str> {
        std::iter::once(&named.link.name).chain(&named.also).map(String::as_str).collect()
    };
    names::find("link", name, &NAMED, names).map(|named| &named.link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_faster_than_its_name() {
        for link in links() {
            assert!(
                link.hop.bytes_per_s > 0.0 && link.hop.bytes_per_s * 8.0 <= link.gbit_per_s * 1e9,
                "{}",
                link.name
            );
            assert!(link.hop.rtt_us > 0.0 && link.source.contains("% usable"), "{}", link.name);
        }
    }

    #[test]
    fn links_are_found_as_people_write_them() {
        for (name, found) in [
            ("thunderbolt-5", "Thunderbolt 5"),
            ("Thunderbolt 4 bridge", "Thunderbolt 4"),
            ("tb5", "Thunderbolt 5"),
            ("10 GbE", "10GbE"),
            ("2.5gbe", "2.5GbE"),
            ("wifi 6", "Wi-Fi 6"),
            ("Loopback", "loopback"),
        ] {
            assert_eq!(link(name).unwrap().name, found, "{name}");
        }
        let error = link("Thunderbold 5").unwrap_err();
        assert_eq!(error.nearest.first().map(String::as_str), Some("Thunderbolt 5"));
        assert!(
            error.to_string().starts_with("unknown link `Thunderbold 5`: did you mean `Thunderbolt 5`"),
            "{error}"
        );
    }
}
