//! The catalogues, as `brigade plan --list` shows them.

use brigade_shard::catalogue::{self, CatalogueDevice, CatalogueLink, CatalogueModel, Mix};
use brigade_shard::units::Bytes;
use serde::Serialize;

/// A link.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedLink {
    /// Its name.
    pub name: String,
    /// Nominal rate.
    pub gbit_per_s: f64,
    /// What can be expected, in bytes per second.
    pub bytes_per_s: f64,
    /// Round trip, in microseconds.
    pub rtt_us: f64,
    /// Where the figures are from.
    pub source: String,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedModel {
    /// Its name.
    pub name: String,
    /// Weights, each counted once.
    pub parameters: u64,
    /// Bytes of its tensors in common mixes, by the mix's name.
    pub sizes: Vec<(&'static str, Bytes)>,
    /// Where its hyper-parameters are from.
    pub source: String,
}

/// The mixes whose sizes are listed: the most common one, with the coarsest and the finest beside it.
const LISTED_MIXES: [(&str, Mix); 4] =
    [("Q2_K", Mix::Q2K), ("Q4_K_M", Mix::Q4KM), ("Q8_0", Mix::Q8_0), ("F16", Mix::F16)];

/// One of the catalogues.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listing {
    /// Devices.
    Devices(Vec<CatalogueDevice>),
    /// Links.
    Links(Vec<ListedLink>),
    /// Models.
    Models(Vec<ListedModel>),
}

/// The catalogue of devices.
pub fn devices() -> Listing {
    Listing::Devices(catalogue::devices().to_vec())
}

/// The catalogue of links.
pub fn links() -> Listing {
    Listing::Links(catalogue::links().iter().map(ListedLink::from).collect())
}

/// The catalogue of models.
pub fn models() -> Listing {
    Listing::Models(catalogue::models().iter().map(ListedModel::from).collect())
}

impl From<&CatalogueLink> for ListedLink {
    fn from(link: &CatalogueLink) -> ListedLink {
        ListedLink {
            name: link.name.clone(),
            gbit_per_s: link.gbit_per_s,
            bytes_per_s: link.hop.bytes_per_s,
            rtt_us: link.hop.rtt_us,
            source: link.source.clone(),
        }
    }
}

impl From<&CatalogueModel> for ListedModel {
    fn from(model: &CatalogueModel) -> ListedModel {
        let sizes = LISTED_MIXES.map(|(name, mix)| {
            let cost = model.cost(mix);
            (name, cost.weights(&cost.whole()))
        });
        ListedModel {
            name: model.name.clone(),
            parameters: model.parameters,
            sizes: sizes.to_vec(),
            source: model.source.clone(),
        }
    }
}
