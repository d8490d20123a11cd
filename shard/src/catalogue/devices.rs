//! Devices.

use super::UnknownName;
use crate::kernels::Kernels;

/// A device as it is sold.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogueDevice {
    /// Such as `RTX 5090`.
    pub name: String,
    /// Which backend computes on it: `cuda`, `metal` or `cpu`.
    pub backend: String,
    /// What can be computed on it.
    pub kernels: Kernels,
    /// Memory as the seller names it, in GiB.
    pub memory_gib: f64,
    /// Whether processor and GPU share the memory.
    pub unified: bool,
    /// The share of the memory that weights, cache and workspace may take.
    pub usable: f64,
    /// Decimal gigabytes per second of its memory.
    pub bandwidth_gb_per_s: f64,
    /// Dense 16-bit floating-point operations, in 10^12 per second; `None` where nobody says.
    pub fp16_tflops: Option<f64>,
    /// Of the whole system under load, in watts.
    pub loaded_watts: Option<f64>,
    /// Of the whole system at rest, in watts.
    pub idle_watts: Option<f64>,
    /// In US dollars.
    pub price_usd: Option<f64>,
    /// Where the figures are from.
    pub source: String,
    /// What other sources say instead.
    pub others: Vec<Other>,
    /// What else to know, for people; may be empty.
    pub note: String,
}

/// A figure that was not chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Other {
    /// Which figure, such as `bandwidth_gb_per_s`.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// Who says so.
    pub source: String,
}

/// All of them.
pub fn devices() -> &'static [CatalogueDevice] {
    todo!("helper a")
}

/// The device of that name; case, blanks and dashes do not count, and `M4 Max 64GB` is an M4 Max with that memory.
///
/// # Errors
/// Where there is none, with the nearest ones.
pub fn device(name: &str) -> Result<CatalogueDevice, UnknownName> {
    let _ = name;
    todo!("helper a")
}
