//! Devices.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{UnknownName, names};
use crate::kernels::Kernels;
use crate::units::Bytes;

/// The share of a machine's memory that its GPU may use where both share it: what macOS allows unless it is told
/// otherwise.
const USABLE_OF_UNIFIED: f64 = 0.75;
/// What driver and screen keep of a card's own memory, in GiB.
const KEPT_OF_CARD_GIB: f64 = 1.0;

/// A device as it is sold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CatalogueDevice {
    /// Such as `RTX 5090`.
    pub name: String,
    /// Which backend computes on it: `cuda`, `metal` or `cpu`.
    pub backend: String,
    /// What can be computed on it.
    #[serde(skip)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Other {
    /// Which figure, such as `bandwidth_gb_per_s`.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// Who says so.
    pub source: String,
}

impl CatalogueDevice {
    /// What weights, cache and workspace may take.
    pub fn budget(&self) -> Bytes {
        Bytes((self.memory_gib * self.usable * (1u64 << 30) as f64) as u64)
    }

    /// The same device with other memory, in GiB; its name says so. The price is left out, which is that of the usual
    /// memory.
    fn with_memory(&self, memory_gib: f64) -> CatalogueDevice {
        if memory_gib == self.memory_gib {
            return self.clone();
        }
        CatalogueDevice {
            name: format!("{} {memory_gib}GB", self.name),
            memory_gib,
            usable: usable(memory_gib, self.unified),
            price_usd: None,
            ..self.clone()
        }
    }
}

/// A device with what it is asked for by.
struct Sold {
    device: CatalogueDevice,
    /// Other names that it is found by.
    also: Vec<String>,
    /// Every size of memory that it is sold with, in GiB.
    memory_gib: Vec<f64>,
}

impl Sold {
    fn names(&self) -> Vec<&str> {
        std::iter::once(&self.device.name).chain(&self.also).map(String::as_str).collect()
    }

    /// Sizes of memory that it is asked for with: those that it is sold with, and those that other sources name.
    fn named_memory(&self) -> impl Iterator<Item = f64> {
        let others = self.device.others.iter().filter(|other| other.figure == "memory_gib");
        self.memory_gib.iter().copied().chain(others.map(|other| other.value))
    }
}

/// The file's rows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    device: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    also: Vec<String>,
    backend: Backend,
    memory_gib: Vec<f64>,
    unified: bool,
    bandwidth_gb_per_s: f64,
    fp16_tflops: Option<f64>,
    loaded_watts: Option<f64>,
    idle_watts: Option<f64>,
    price_usd: Option<f64>,
    source: String,
    #[serde(default)]
    others: Vec<Other>,
    #[serde(default)]
    note: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Cuda,
    Metal,
    Cpu,
}

static SOLD: LazyLock<Vec<Sold>> = LazyLock::new(|| {
    let file: File = toml::from_str(include_str!("../../catalogue/devices.toml"))
        .expect("the catalogue of devices is part of the program, and a test reads it");
    file.device.into_iter().map(Sold::from).collect()
});

static DEVICES: LazyLock<Vec<CatalogueDevice>> =
    LazyLock::new(|| SOLD.iter().map(|sold| sold.device.clone()).collect());

impl From<Row> for Sold {
    fn from(row: Row) -> Self {
        let (backend, kernels) = match row.backend {
            Backend::Cuda => ("cuda", Kernels::CANDLE),
            Backend::Metal => ("metal", Kernels::CANDLE),
            Backend::Cpu => ("cpu", Kernels::CPU),
        };
        let memory_gib = row.memory_gib.first().copied().unwrap_or(0.0);
        let device = CatalogueDevice {
            name: row.name,
            backend: backend.to_owned(),
            kernels,
            memory_gib,
            unified: row.unified,
            usable: usable(memory_gib, row.unified),
            bandwidth_gb_per_s: row.bandwidth_gb_per_s,
            fp16_tflops: row.fp16_tflops,
            loaded_watts: row.loaded_watts,
            idle_watts: row.idle_watts,
            price_usd: row.price_usd,
            source: row.source,
            others: row.others,
            note: row.note,
        };
        Sold { device, also: row.also, memory_gib: row.memory_gib }
    }
}

fn usable(memory_gib: f64, unified: bool) -> f64 {
    if unified { USABLE_OF_UNIFIED } else { ((memory_gib - KEPT_OF_CARD_GIB) / memory_gib).max(0.0) }
}

/// All of them.
pub fn devices() -> &'static [CatalogueDevice] {
    &DEVICES
}

/// The device of that name; case, blanks and dashes do not count, and `M4 Max 64GB` is an M4 Max with that memory.
///
/// # Errors
/// Where there is none, with the nearest ones; also where it is not sold with that memory, with the sizes that it is
/// sold with.
pub fn device(name: &str) -> Result<CatalogueDevice, UnknownName> {
    let error = match names::find("device", name, &SOLD, Sold::names) {
        Ok(sold) => return Ok(sold.device.clone()),
        Err(error) => error,
    };
    let Some((base, memory_gib)) = split_memory(name) else {
        return Err(error);
    };
    let Ok(sold) = names::find("device", base, &SOLD, Sold::names) else {
        return Err(error);
    };
    if sold.named_memory().any(|size| size == memory_gib) {
        return Ok(sold.device.with_memory(memory_gib));
    }
    let nearest = sold.memory_gib.iter().map(|size| format!("{} {size}GB", sold.device.name)).collect();
    Err(UnknownName { nearest, ..error })
}

/// A name that ends with an amount of memory, such as `M4 Max 64GB`, without it, and the amount.
fn split_memory(name: &str) -> Option<(&str, f64)> {
    let trimmed = name.trim_end();
    let lower = trimmed.to_ascii_lowercase();
    let unit = ["gib", "gb", "g"].into_iter().find(|unit| lower.ends_with(unit))?;
    // Only ASCII letters were lowered, so that places in both texts are the same.
    let rest = trimmed[..trimmed.len() - unit.len()].trim_end();
    let digits = rest.len() - rest.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (base, amount) = rest.split_at(rest.len() - digits);
    Some((base.trim_end_matches([' ', '-', '_']), amount.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_possible_and_has_its_source() {
        assert!(devices().len() >= 15, "{}", devices().len());
        for device in devices() {
            let name = &device.name;
            assert!(!device.source.is_empty(), "{name}");
            assert!(device.memory_gib >= 8.0 && device.bandwidth_gb_per_s >= 50.0, "{name}");
            assert!(device.usable > 0.7 && device.usable < 1.0, "{name}: {}", device.usable);
            for figure in [device.fp16_tflops, device.loaded_watts, device.idle_watts, device.price_usd] {
                assert!(figure.is_none_or(|figure| figure > 0.0), "{name}");
            }
            let known = [
                "bandwidth_gb_per_s",
                "fp16_tflops",
                "loaded_watts",
                "idle_watts",
                "price_usd",
                "memory_gib",
            ];
            for other in &device.others {
                assert!(
                    known.contains(&other.figure.as_str()) && !other.source.is_empty(),
                    "{name} {other:?}"
                );
            }
            assert_eq!(super::device(name).unwrap(), *device);
        }
    }

    #[test]
    fn a_sparse_figure_is_kept_beside_the_dense_one() {
        let h100 = device("h100").unwrap();
        assert_eq!(h100.fp16_tflops, Some(989.0));
        assert!(h100.others.iter().any(|other| other.value == 1979.0));
    }

    #[test]
    fn devices_are_found_as_people_write_them() {
        for (name, found, memory_gib) in [
            ("rtx5090", "RTX 5090", 32.0),
            ("GeForce RTX-4090", "RTX 4090", 24.0),
            ("m4 max", "M4 Max", 128.0),
            ("M4 Max 64GB", "M4 Max 64GB", 64.0),
            ("m4-max-64gb", "M4 Max 64GB", 64.0),
            ("M4 Max 128 GB", "M4 Max", 128.0),
            ("M4 Max 36GB", "M4 Max 36GB", 36.0),
            ("Mac Studio M3 Ultra 256GiB", "M3 Ultra 256GB", 256.0),
            ("M5 Max 256GB", "M5 Max 256GB", 256.0),
            ("M3 Ultra 192 GB", "M3 Ultra 192GB", 192.0),
        ] {
            let device = device(name).unwrap();
            assert_eq!((device.name.as_str(), device.memory_gib), (found, memory_gib), "{name}");
        }
        assert_eq!(device("RTX 5090").unwrap().budget(), Bytes(31 << 30));
        assert_eq!(device("M4 Max 64GB").unwrap().budget(), Bytes(48 << 30));
        assert_eq!(device("M4 Max 64GB").unwrap().price_usd, None);
    }

    #[test]
    fn an_unknown_device_is_told_with_the_nearest() {
        let error = device("RTX 5080").unwrap_err();
        assert_eq!((error.what, error.nearest[0].as_str()), ("device", "RTX 5090"));
        let error = device("M4 Max 57GB").unwrap_err();
        assert_eq!(error.nearest, ["M4 Max 128GB", "M4 Max 64GB", "M4 Max 48GB"]);
        assert_eq!(device("a toaster with wheels").unwrap_err().nearest, Vec::<String>::new());
    }
}
