//! Links between machines.

use super::UnknownName;
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
    /// Where the figures are from.
    pub source: String,
}

/// All of them.
pub fn links() -> &'static [CatalogueLink] {
    todo!("helper a")
}

/// The link of that name; case, blanks and dashes do not count.
///
/// # Errors
/// Where there is none, with the nearest ones.
pub fn link(name: &str) -> Result<&'static CatalogueLink, UnknownName> {
    let _ = name;
    todo!("helper a")
}
