//! The catalogues as tables, with what sources say differently.

use std::fmt::Write as _;

use brigade_shard::catalogue::CatalogueDevice;

use super::table::{Align, Table};
use crate::planning::listing::{ListedLink, ListedModel, Listing};

/// What stands for a figure that nobody tells.
const UNKNOWN: &str = "unknown";

/// A catalogue as a table.
pub fn render_listing(listing: &Listing) -> String {
    match listing {
        Listing::Devices(devices) => render_devices(devices),
        Listing::Links(links) => render_links(links),
        Listing::Models(models) => render_models(models),
    }
}

fn render_devices(devices: &[CatalogueDevice]) -> String {
    let mut table = Table::new(&[
        ("DEVICE", Align::Left),
        ("BACKEND", Align::Left),
        ("MEMORY", Align::Right),
        ("USABLE", Align::Right),
        ("BANDWIDTH", Align::Right),
        ("FP16", Align::Right),
        ("IDLE", Align::Right),
        ("LOADED", Align::Right),
        ("PRICE", Align::Right),
        ("SOURCE", Align::Left),
    ]);
    for device in devices {
        let shared = if device.unified { " unified" } else { "" };
        table.row([
            device.name.clone(),
            device.backend.clone(),
            format!("{} GiB{shared}", device.memory_gib),
            format!("{:.0}%", device.usable * 100.0),
            format!("{} GB/s", device.bandwidth_gb_per_s),
            known(device.fp16_tflops, |tflops| format!("{tflops} TFLOPS")),
            known(device.idle_watts, |watts| format!("{watts} W")),
            known(device.loaded_watts, |watts| format!("{watts} W")),
            known(device.price_usd, |usd| format!("{usd} USD")),
            device.source.clone(),
        ]);
    }
    let mut text = table.to_string();
    for device in devices {
        // Writing to a String cannot fail.
        if !device.note.is_empty() {
            let _ = writeln!(text, "note       {}: {}", device.name, device.note);
        }
        for other in &device.others {
            let _ = writeln!(
                text,
                "disagrees  {}: {} is {} according to {}",
                device.name, other.figure, other.value, other.source
            );
        }
    }
    text
}

fn render_links(links: &[ListedLink]) -> String {
    let mut table = Table::new(&[
        ("LINK", Align::Left),
        ("NOMINAL", Align::Right),
        ("EXPECTED", Align::Right),
        ("ROUND TRIP", Align::Right),
        ("SOURCE", Align::Left),
    ]);
    for link in links {
        table.row([
            link.name.clone(),
            format!("{} Gbit/s", link.gbit_per_s),
            format!("{:.0} MB/s", link.bytes_per_s / 1e6),
            format!("{} us", link.rtt_us),
            link.source.clone(),
        ]);
    }
    table.to_string()
}

fn render_models(models: &[ListedModel]) -> String {
    let mixes: Vec<&str> =
        models.first().map(|model| model.sizes.iter().map(|(mix, _)| *mix).collect()).unwrap_or_default();
    let mut columns = vec![("MODEL", Align::Left), ("PARAMETERS", Align::Right)];
    columns.extend(mixes.iter().map(|mix| (*mix, Align::Right)));
    columns.push(("SOURCE", Align::Left));
    let mut table = Table::new(&columns);
    for model in models {
        let mut row = vec![model.name.clone(), format!("{:.2} B", model.parameters as f64 / 1e9)];
        row.extend(model.sizes.iter().map(|(_, bytes)| bytes.to_string()));
        row.push(model.source.clone());
        table.row(row);
    }
    table.to_string()
}

fn known(value: Option<f64>, words: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), words)
}

#[cfg(test)]
mod tests {
    use brigade_shard::catalogue::Other;
    use brigade_shard::kernels::Kernels;
    use brigade_shard::units::Bytes;

    use super::*;

    #[test]
    fn a_device_is_listed_with_its_source_and_with_who_disagrees() {
        let device = CatalogueDevice {
            kernels: Kernels::CANDLE,
            name: "RTX 5090".to_owned(),
            backend: "cuda".to_owned(),
            memory_gib: 32.0,
            unified: false,
            usable: 0.97,
            bandwidth_gb_per_s: 1792.0,
            fp16_tflops: Some(209.0),
            loaded_watts: Some(725.0),
            idle_watts: None,
            price_usd: Some(1999.0),
            source: "B".to_owned(),
            others: vec![Other { figure: "fp16_tflops".to_owned(), value: 380.0, source: "D".to_owned() }],
            note: "575 W for the card".to_owned(),
        };
        assert_eq!(
            render_listing(&Listing::Devices(vec![device])),
            "\
DEVICE     BACKEND   MEMORY   USABLE   BANDWIDTH         FP16      IDLE   LOADED      PRICE   SOURCE
RTX 5090   cuda      32 GiB      97%   1792 GB/s   209 TFLOPS   unknown    725 W   1999 USD   B
note       RTX 5090: 575 W for the card
disagrees  RTX 5090: fp16_tflops is 380 according to D
"
        );
    }

    #[test]
    fn links_and_models_are_listed_with_what_is_planned_with() {
        let link = ListedLink {
            name: "10 GbE".to_owned(),
            gbit_per_s: 10.0,
            bytes_per_s: 1.15e9,
            rtt_us: 80.0,
            source: "DS".to_owned(),
        };
        assert_eq!(
            render_listing(&Listing::Links(vec![link])),
            "LINK       NOMINAL    EXPECTED   ROUND TRIP   SOURCE\n10 GbE   10 Gbit/s   1150 MB/s        80 us   DS\n"
        );
        let model = ListedModel {
            name: "Small".to_owned(),
            parameters: 134_500_000,
            sizes: vec![("Q4_K_M", Bytes::mib(100)), ("F16", Bytes::mib(257))],
            source: "config.json".to_owned(),
        };
        assert_eq!(
            render_listing(&Listing::Models(vec![model])),
            "MODEL   PARAMETERS      Q4_K_M         F16   SOURCE\nSmall       0.13 B   100.0 MiB   257.0 MiB   config.json\n"
        );
    }
}
