//! The entries of a cluster file as they are written, and the limits of their figures.

use serde::Deserialize;

use super::ClusterFileError;

/// Gigabytes per second of memory; the fastest accelerators have less than a tenth.
const MAX_BANDWIDTH_GBPS: f64 = 100e3;
/// 10^12 floating-point operations per second: a thousand of the fastest accelerators.
const MAX_TFLOPS: f64 = 1e6;
/// Bytes of memory: 100 TiB.
pub(super) const MAX_MEMORY_BYTES: u64 = 100 << 40;
/// Watts: a whole rack.
const MAX_WATTS: f64 = 100e3;
/// US dollars.
const MAX_USD: f64 = 1e9;
/// Gigabits per second of a link.
const MAX_GBIT_PER_S: f64 = 100e3;
/// Microseconds of a round trip: ten seconds.
const MAX_RTT_US: f64 = 10e6;
/// Processors of a machine.
const MAX_PROCESSORS: u32 = 65536;
/// Years that hardware is used.
const MAX_LIFE_YEARS: f64 = 100.0;
/// Streams at a time, as many as `--parallel` takes.
const MAX_STREAMS: u32 = 1024;
/// Characters of a name.
const MAX_NAME_CHARACTERS: usize = 64;

/// A cluster file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntries {
    #[serde(default)]
    pub(super) device: Vec<DeviceEntry>,
    #[serde(default)]
    pub(super) host: Vec<HostEntry>,
    #[serde(default)]
    pub(super) links: LinksEntry,
    #[serde(default)]
    pub(super) link: Vec<LinkEntry>,
    #[serde(default)]
    pub(super) economics: EconomicsEntry,
}

/// One device, or several that are alike.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceEntry {
    pub(super) name: Option<String>,
    /// The catalogue's name.
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) count: Option<u64>,
    /// What weights, cache and workspace may take.
    pub(super) memory: Option<String>,
    /// Decimal gigabytes per second.
    pub(super) bandwidth_gbps: Option<f64>,
    /// 10^12 floating-point operations per second.
    pub(super) tflops: Option<f64>,
    pub(super) device: Option<Backend>,
    /// The machine it is in.
    pub(super) host: Option<String>,
    pub(super) price_usd: Option<f64>,
    pub(super) idle_watts: Option<f64>,
    pub(super) loaded_watts: Option<f64>,
    /// A rate such as `7GB/s`.
    pub(super) offload: Option<String>,
    /// The same in decimal gigabytes per second.
    pub(super) offload_gbps: Option<f64>,
}

/// What computes on a device: `--device` of its worker, without the card's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA's cards.
    Cuda,
    /// Apple's GPUs.
    Metal,
}

/// A machine around devices.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostEntry {
    pub(super) name: String,
    /// Decimal gigabytes per second that all its processors read together.
    pub(super) bandwidth_gbps: Option<f64>,
    pub(super) processors: Option<u32>,
    pub(super) price_usd: Option<f64>,
    pub(super) idle_watts: Option<f64>,
    pub(super) loaded_watts: Option<f64>,
}

/// Links of which nothing else is said.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinksEntry {
    /// The catalogue's name of the link between any two machines.
    pub(super) default: Option<String>,
    /// Own figures of it.
    pub(super) gbit_per_s: Option<f64>,
    pub(super) rtt_us: Option<f64>,
    /// The catalogue's name of the link between the coordinator and any machine.
    pub(super) coordinator: Option<String>,
}

/// The link between two machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkEntry {
    /// Names of devices or hosts, or `coordinator`.
    pub(super) between: [String; 2],
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) gbit_per_s: Option<f64>,
    pub(super) rtt_us: Option<f64>,
}

/// Money.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EconomicsEntry {
    pub(super) electricity_usd_per_kwh: Option<f64>,
    /// Hours a day of decoding.
    pub(super) hours_per_day: Option<f64>,
    /// The same as a share of the day.
    pub(super) utilisation: Option<f64>,
    pub(super) api_usd_per_million_tokens: Option<f64>,
    /// Streams at a time while it decodes.
    pub(super) streams: Option<u32>,
    pub(super) life_years: Option<f64>,
}

impl FileEntries {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// With the line, where it is not TOML or has an unknown field.
    pub(super) fn read(text: &str) -> Result<FileEntries, ClusterFileError> {
        let syntax = |error: toml::de::Error| ClusterFileError::Syntax(on_its_line(text, &error));
        let table: toml::Table = text.parse().map_err(syntax)?;
        if table.get("link").is_some_and(toml::Value::is_table) {
            let problem = "a pair's link is written as [[link]], and what holds for all of them as [links]";
            return Err(ClusterFileError::Entry { entry: "[link]".to_owned(), problem: problem.to_owned() });
        }
        toml::from_str(text).map_err(syntax)
    }
}

/// What is wrong, in one line that begins with the number of its own.
fn on_its_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim_end().replace('\n', ", ");
    match error.span() {
        Some(span) => {
            let before = text.as_bytes().get(..span.start).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            format!("line {line}: {message}")
        }
        None => message,
    }
}

impl DeviceEntry {
    /// The entry, for people; `number` counts them from 0.
    pub(super) fn words(&self, number: usize) -> String {
        match self.name.as_ref().or(self.kind.as_ref()) {
            Some(name) => format!("[[device]] `{name}`"),
            None => format!("[[device]] number {}", number + 1),
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.name.as_deref().map_or(Ok(()), |name| check_name("name", name))?;
        self.host.as_deref().map_or(Ok(()), |host| check_name("host", host))?;
        positive("bandwidth_gbps", self.bandwidth_gbps, MAX_BANDWIDTH_GBPS)?;
        positive("tflops", self.tflops, MAX_TFLOPS)?;
        positive("offload_gbps", self.offload_gbps, MAX_BANDWIDTH_GBPS)?;
        check_price(self.price_usd)?;
        check_watts(self.idle_watts, self.loaded_watts)
    }
}

impl HostEntry {
    pub(super) fn words(&self) -> String {
        format!("[[host]] `{}`", self.name)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        positive("bandwidth_gbps", self.bandwidth_gbps, MAX_BANDWIDTH_GBPS)?;
        if self.processors.is_some_and(|n| !(1..=MAX_PROCESSORS).contains(&n)) {
            return Err(format!("processors must be a number from 1 to {MAX_PROCESSORS}"));
        }
        if self.bandwidth_gbps.is_some() != self.processors.is_some() {
            return Err("bandwidth_gbps and processors belong together; write both or neither".to_owned());
        }
        check_price(self.price_usd)?;
        check_watts(self.idle_watts, self.loaded_watts)
    }
}

impl LinksEntry {
    pub(super) fn check(&self) -> Result<(), String> {
        check_hop(self.default.as_ref(), "default", self.gbit_per_s, self.rtt_us)
    }
}

impl LinkEntry {
    pub(super) fn words(&self) -> String {
        format!("[[link]] between `{}` and `{}`", self.between[0], self.between[1])
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.kind.is_none() && self.gbit_per_s.is_none() && self.rtt_us.is_none() {
            return Err("it says nothing: write type = \"10 GbE\", or gbit_per_s and rtt_us".to_owned());
        }
        check_hop(self.kind.as_ref(), "type", self.gbit_per_s, self.rtt_us)
    }
}

impl EconomicsEntry {
    pub(super) fn check(&self) -> Result<(), String> {
        positive("electricity_usd_per_kwh", self.electricity_usd_per_kwh, MAX_USD)?;
        positive("hours_per_day", self.hours_per_day, 24.0)?;
        positive("utilisation", self.utilisation, 1.0)?;
        positive("api_usd_per_million_tokens", self.api_usd_per_million_tokens, MAX_USD)?;
        positive("life_years", self.life_years, MAX_LIFE_YEARS)?;
        if self.hours_per_day.is_some() && self.utilisation.is_some() {
            return Err("hours_per_day and utilisation say the same; write one of them".to_owned());
        }
        if self.streams.is_some_and(|n| !(1..=MAX_STREAMS).contains(&n)) {
            return Err(format!("streams must be a number from 1 to {MAX_STREAMS}"));
        }
        Ok(())
    }
}

/// A link is of a type, or has figures of its own.
fn check_hop(
    kind: Option<&String>,
    key: &str,
    gbit_per_s: Option<f64>,
    rtt_us: Option<f64>,
) -> Result<(), String> {
    positive("gbit_per_s", gbit_per_s, MAX_GBIT_PER_S)?;
    positive("rtt_us", rtt_us, MAX_RTT_US)?;
    if kind.is_none() && gbit_per_s.is_some() != rtt_us.is_some() {
        return Err(format!("gbit_per_s and rtt_us belong together; write both, or {key} = \"10 GbE\""));
    }
    Ok(())
}

/// Hardware that is there already may cost nothing.
fn check_price(price_usd: Option<f64>) -> Result<(), String> {
    match price_usd {
        Some(price) if !(0.0..=MAX_USD).contains(&price) => {
            Err(format!("price_usd is {price}; write a number of US dollars from 0 to {MAX_USD:e}"))
        }
        _ => Ok(()),
    }
}

fn check_watts(idle: Option<f64>, loaded: Option<f64>) -> Result<(), String> {
    positive("idle_watts", idle, MAX_WATTS)?;
    positive("loaded_watts", loaded, MAX_WATTS)?;
    match (idle, loaded) {
        (Some(idle), Some(loaded)) if idle > loaded => {
            Err(format!("idle_watts is {idle}, more than loaded_watts, {loaded}; exchange them"))
        }
        _ => Ok(()),
    }
}

/// Checks that a figure, where it is given, is above 0 and at most `most`.
pub(super) fn positive(key: &str, value: Option<f64>, most: f64) -> Result<(), String> {
    match value {
        Some(value) if !(value > 0.0 && value <= most) => {
            Err(format!("{key} is {value}; write a number above 0, at most {most}"))
        }
        _ => Ok(()),
    }
}

/// Names stand in tables and in other entries.
pub(super) fn check_name(key: &str, name: &str) -> Result<(), String> {
    let fits = !name.trim().is_empty() && name.chars().count() <= MAX_NAME_CHARACTERS;
    if fits && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{key} must have 1 to {MAX_NAME_CHARACTERS} characters that can be shown"))
}
