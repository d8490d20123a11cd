//! The catalogues, as `brigade plan --list` shows them.

use brigade_shard::catalogue::{self, CatalogueDevice, CatalogueLink, CatalogueModel, Mix};
use brigade_shard::units::Bytes;
use serde::Serialize;

/// A device with all that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedDevice {
    /// Its name.
    pub name: String,
    /// What computes on it.
    pub backend: String,
    /// Memory as the seller names it, in GiB.
    pub memory_gib: f64,
    /// Whether processor and GPU share it.
    pub unified: bool,
    /// The share of it that can be planned with.
    pub usable: f64,
    /// Decimal gigabytes per second.
    pub bandwidth_gb_per_s: f64,
    /// Dense 16-bit operations, in 10^12 per second.
    pub fp16_tflops: Option<f64>,
    /// Under load, in watts.
    pub loaded_watts: Option<f64>,
    /// At rest, in watts.
    pub idle_watts: Option<f64>,
    /// In US dollars.
    pub price_usd: Option<f64>,
    /// Where the figures are from.
    pub source: String,
    /// What others say instead.
    pub others: Vec<ListedFigure>,
    /// What else to know; may be empty.
    pub note: String,
}

/// A figure that was not chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedFigure {
    /// Which.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// Who says so.
    pub source: String,
}

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
    Devices(Vec<ListedDevice>),
    /// Links.
    Links(Vec<ListedLink>),
    /// Models.
    Models(Vec<ListedModel>),
}

/// The catalogue of devices.
pub fn devices() -> Listing {
    Listing::Devices(catalogue::devices().iter().map(ListedDevice::from).collect())
}

/// The catalogue of links.
pub fn links() -> Listing {
    Listing::Links(catalogue::links().iter().map(ListedLink::from).collect())
}

/// The catalogue of models.
pub fn models() -> Listing {
    Listing::Models(catalogue::models().iter().map(ListedModel::from).collect())
}

impl From<&CatalogueDevice> for ListedDevice {
    fn from(device: &CatalogueDevice) -> ListedDevice {
        let others = device.others.iter().map(|other| ListedFigure {
            figure: other.figure.clone(),
            value: other.value,
            source: other.source.clone(),
        });
        ListedDevice {
            name: device.name.clone(),
            backend: device.backend.clone(),
            memory_gib: device.memory_gib,
            unified: device.unified,
            usable: device.usable,
            bandwidth_gb_per_s: device.bandwidth_gb_per_s,
            fp16_tflops: device.fp16_tflops,
            loaded_watts: device.loaded_watts,
            idle_watts: device.idle_watts,
            price_usd: device.price_usd,
            source: device.source.clone(),
            others: others.collect(),
            note: device.note.clone(),
        }
    }
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
