//! Cluster files, sound ones and wrong ones.

use brigade_shard::kernels::Kernels;
use brigade_shard::plan::HopCost;
use brigade_shard::units::Bytes;

use super::*;
use crate::planning::LOOPBACK;

const MAC: &str = "[[device]]\nname = 'mac'\nmemory = '96GiB'\nbandwidth_gbps = 800\ntflops = 27\n";

/// A catalogue with a card, a Mac of which nobody says how fast it computes, and one link.
const SHOP: Names = Names { device: shop_device, link: shop_link };

fn shop_device(name: &str) -> Result<CatalogueDevice, UnknownName> {
    let card = CatalogueDevice {
        name: "Card".to_owned(),
        backend: "cuda".to_owned(),
        kernels: Kernels::CANDLE,
        memory_gib: 32.0,
        unified: false,
        usable: 0.75,
        bandwidth_gb_per_s: 1000.0,
        fp16_tflops: Some(200.0),
        loaded_watts: Some(700.0),
        idle_watts: Some(70.0),
        price_usd: Some(2000.0),
        source: "a data sheet".to_owned(),
        ..catalogue::device("RTX 5090")?
    };
    match name {
        "Card" => Ok(card),
        "Mac" => Ok(CatalogueDevice {
            name: "Mac".to_owned(),
            backend: "metal".to_owned(),
            unified: true,
            fp16_tflops: None,
            price_usd: None,
            ..card
        }),
        _ => catalogue::device(name),
    }
}

fn shop_link(name: &str) -> Result<CatalogueLink, UnknownName> {
    match name {
        "Cable" => Ok(CatalogueLink {
            name: "Cable".to_owned(),
            gbit_per_s: 40.0,
            hop: CABLE,
            ..catalogue::link("10GbE")?.clone()
        }),
        _ => catalogue::link(name).cloned(),
    }
}

const CABLE: HopCost = HopCost { rtt_us: 50.0, bytes_per_s: 4e9 };

fn read(text: &str) -> Cluster {
    parse(text, &SHOP).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn refused(text: &str, said: &[&str]) {
    match parse(text, &SHOP) {
        Ok(cluster) => panic!("{text} is taken: {cluster:?}"),
        Err(error) => {
            let error = error.to_string();
            for words in said {
                assert!(error.contains(words), "`{words}` in {error}\nof {text}");
            }
        }
    }
}

#[test]
fn own_figures_are_taken_as_they_are() {
    let cluster = read(MAC);
    let device = &cluster.devices[0];
    assert_eq!(device.name, "mac");
    assert_eq!(device.budget, Bytes(96 << 30));
    assert_eq!((device.bandwidth_bytes_per_s, device.flops_per_s), (800e9, 27e12));
    assert_eq!((device.kernels, device.held, device.host), (Kernels::CPU, None, None));
    assert_eq!(cluster.facts[0].price_usd, None, "nobody says it");
    assert_eq!(read(&format!("{MAC}device = 'metal'\n")).devices[0].kernels, Kernels::CANDLE);
}

#[test]
fn a_type_brings_the_catalogues_figures_in_the_share_that_is_planned_with() {
    let cluster = read("[[device]]\ntype = 'Card'\n");
    let (device, facts) = (&cluster.devices[0], &cluster.facts[0]);
    assert_eq!(device.name, "Card");
    assert_eq!(device.budget, Bytes(24 << 30), "three quarters of 32 GiB");
    assert_eq!((device.bandwidth_bytes_per_s, device.flops_per_s), (800e9, 100e12));
    assert_eq!(device.kernels, Kernels::CANDLE);
    assert_eq!(
        (facts.price_usd, facts.idle_watts, facts.loaded_watts),
        (Some(2000.0), Some(70.0), Some(700.0))
    );
    assert!(facts.source.contains("data sheet"), "{}", facts.source);
    assert!(
        cluster.notes.iter().any(|note| note.contains("80%") && note.contains("50%")),
        "{:?}",
        cluster.notes
    );
}

#[test]
fn figures_of_the_file_win_over_the_catalogues() {
    let cluster = read(
        "[[device]]\ntype = 'Card'\nmemory = '30GiB'\nbandwidth_gbps = 900\nprice_usd = 0\nidle_watts = 20\n\
         loaded_watts = 500\noffload = '7GB/s'\n",
    );
    let (device, facts) = (&cluster.devices[0], &cluster.facts[0]);
    assert_eq!((device.budget, device.bandwidth_bytes_per_s), (Bytes(30 << 30), 900e9));
    assert_eq!(device.flops_per_s, 100e12, "what the file does not give stays");
    assert_eq!(device.offload_bytes_per_s, Some(7e9));
    assert_eq!((facts.price_usd, facts.idle_watts, facts.loaded_watts), (Some(0.0), Some(20.0), Some(500.0)));
    assert!(facts.source.contains("cluster file"), "{}", facts.source);
}

#[test]
fn arithmetic_that_nobody_knows_stays_unknown_and_is_said() {
    let cluster = read("[[device]]\ntype = 'Mac'\n");
    assert!(!cluster.facts[0].arithmetic_known);
    assert!(cluster.notes.iter().any(|note| note.contains("Mac can compute")), "{:?}", cluster.notes);
    assert!(read("[[device]]\ntype = 'Mac'\ntflops = 20\n").facts[0].arithmetic_known);
}

#[test]
fn a_count_makes_several_and_a_link_can_name_them_all_or_one() {
    let cluster = read(
        "[[device]]\ntype = 'Card'\nname = 'card'\ncount = 3\n\
         [links]\ngbit_per_s = 8\nrtt_us = 100\ncoordinator = 'Cable'\n\
         [[link]]\nbetween = ['card-1', 'card-3']\ntype = 'Cable'\n",
    );
    let names: Vec<&str> = cluster.devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["card-1", "card-2", "card-3"]);
    let default = HopCost { rtt_us: 100.0, bytes_per_s: 1e9 };
    assert_eq!(cluster.links.between(0, 1), default);
    assert_eq!(cluster.links.between(2, 0), CABLE);
    assert_eq!(cluster.links.to_coordinator(1), CABLE);
    let all = read(
        "[[device]]\ntype = 'Card'\nname = 'card'\ncount = 2\n[[link]]\nbetween = ['card', 'card']\ntype = 'Cable'\n\
         [[link]]\nbetween = ['coordinator', 'card-2']\ntype = 'Cable'\nrtt_us = 90\n",
    );
    assert_eq!(all.links.between(0, 1), CABLE);
    assert_eq!(all.links.to_coordinator(0), HopCost::default());
    assert_eq!(all.links.to_coordinator(1), HopCost { rtt_us: 90.0, ..CABLE }, "an own figure wins");
}

#[test]
fn devices_of_one_host_reach_each_other_without_a_network() {
    let cluster = read(
        "[[device]]\ntype = 'Card'\nname = 'card'\ncount = 2\nhost = 'rig'\n\
         [[device]]\nname = 'mac'\nmemory = '96GiB'\nbandwidth_gbps = 800\ntflops = 27\n\
         [links]\ndefault = 'Cable'\n",
    );
    assert_eq!(cluster.links.between(0, 1), LOOPBACK);
    assert_eq!(cluster.links.between(1, 2), CABLE);
}

#[test]
fn processors_of_one_host_share_its_memory_and_cards_do_not() {
    let cluster = read(
        "[[host]]\nname = 'rig'\nbandwidth_gbps = 100\nprocessors = 16\nprice_usd = 1500\nloaded_watts = 150\nidle_watts = 60\n\
         [[device]]\nname = 'socket'\nmemory = '64GiB'\nbandwidth_gbps = 80\ntflops = 2\ncount = 2\nhost = 'rig'\n\
         [[device]]\ntype = 'Card'\nhost = 'rig'\n",
    );
    assert_eq!(cluster.hosts, [SharedHost { bandwidth_bytes_per_s: 100e9, processors: 16, speedup: 16.0 }]);
    let hosts: Vec<Option<usize>> = cluster.devices.iter().map(|device| device.host).collect();
    assert_eq!(hosts, [Some(0), Some(0), None]);
    assert_eq!(cluster.boxes[0].price_usd, Some(1500.0));
    assert_eq!(
        cluster.facts[2].loaded_watts, None,
        "the catalogue's watts are of a whole system, which is the host"
    );
    assert_eq!(cluster.facts[2].price_usd, Some(2000.0));
}

#[test]
fn watts_of_whole_systems_in_one_host_are_said_to_count_too_often() {
    let cards = "[[device]]\ntype = 'Card'\nname = 'card'\ncount = 2\nhost = 'rig'\n";
    let says = |text: &str| read(text).notes.iter().any(|note| note.contains("rig counts one for each"));
    assert!(says(cards));
    assert!(!says(&format!("{cards}idle_watts = 20\nloaded_watts = 450\n")), "these are the cards' own");
    assert!(
        !says(&format!("{cards}[[host]]\nname = 'rig'\nloaded_watts = 200\n")),
        "the catalogue's are left out"
    );
    assert!(!says(&cards.replace("count = 2\n", "")), "a single one");
}

#[test]
fn economics_take_hours_or_a_share_of_the_day() {
    let economics = |text: &str| read(&format!("{MAC}[economics]\n{text}")).economics;
    let told = economics(
        "electricity_usd_per_kwh = 0.25\nhours_per_day = 8\napi_usd_per_million_tokens = 2\nstreams = 8\nlife_years = 4\n",
    );
    assert_eq!(
        told,
        EconomicsSettings {
            electricity_usd_per_kwh: Some(0.25),
            hours_per_day: Some(8.0),
            api_usd_per_million_tokens: Some(2.0),
            streams: Some(8),
            life_years: 4.0
        }
    );
    assert_eq!(economics("utilisation = 0.25\n").hours_per_day, Some(6.0));
    assert_eq!(economics("").life_years, DEFAULT_LIFE_YEARS);
}

#[test]
fn a_wrong_file_says_which_entry_what_is_wrong_and_what_to_do() {
    refused("", &["no [[device]]", "write at least one"]);
    refused("device = []", &["no [[device]]"]);
    refused("[[device]\n", &["line 1"]);
    refused(&MAC.replace("tflops", "teraflops"), &["line 5", "teraflops"]);
    refused(&format!("{MAC}device = 'tpu'\n"), &["line 6", "tpu"]);
    refused(&MAC.replace("96GiB", "lots"), &["[[device]] `mac`", "memory", "`lots`", "64MiB"]);
    refused("[[device]]\nname = 'x'\n", &["[[device]] `x`", "memory is missing", "type ="]);
    refused("[[device]]\nmemory = '1GiB'\n", &["[[device]] number 1", "name is missing"]);
    refused(&format!("{MAC}{MAC}"), &["[[device]] `mac`", "taken already"]);
    refused(&format!("{MAC}[[device]]\nname = 'coordinator'\ntype = 'Card'\n"), &["`coordinator` is taken"]);
    refused(
        "[[device]]\nname = 'a-1'\ntype = 'Card'\n[[device]]\nname = 'a'\ntype = 'Card'\ncount = 2\n",
        &["[[device]] `a`", "`a-1`", "rename"],
    );
    refused(&format!("{MAC}count = 0\n"), &["count is 0"]);
    refused(&format!("{MAC}count = 1000000\n"), &["1000000 devices", "at most"]);
    refused(&format!("{MAC}count = -1\n"), &["line 6"]);
    refused(&MAC.replace("mac", "\\u001b[2J").replace('\'', "\""), &["name", "can be shown"]);
    refused(&format!("{MAC}offload = '7'\n"), &["offload", "7GB/s"]);
    refused(&format!("{MAC}offload = '7GB/s'\noffload_gbps = 7\n"), &["one of them"]);
    refused("[[device]]\ntype = 'Card'\ndevice = 'cpu'\n", &["for cuda", "bandwidth_gbps and"]);
}

#[test]
fn figures_that_cannot_be_are_refused() {
    for wrong in ["0", "-5", "nan", "inf", "-inf", "1e9"] {
        refused(&MAC.replace("800", wrong), &["[[device]] `mac`", "bandwidth_gbps is", "above 0"]);
        refused(&MAC.replace("= 27", &format!("= {wrong}")), &["tflops is", "above 0"]);
        for key in ["idle_watts", "loaded_watts", "offload_gbps"] {
            refused(&format!("{MAC}{key} = {wrong}\n"), &["[[device]] `mac`", key, "above 0"]);
        }
        for key in ["hours_per_day", "utilisation", "life_years"] {
            refused(&format!("{MAC}[economics]\n{key} = {wrong}\n"), &["[economics]", key, "above 0"]);
        }
        refused(&format!("{MAC}[links]\ngbit_per_s = {wrong}\nrtt_us = 1\n"), &["[links]", "gbit_per_s is"]);
        refused(&format!("{MAC}[links]\nrtt_us = {wrong}\ngbit_per_s = 1\n"), &["[links]", "rtt_us is"]);
    }
    for wrong in ["-1", "nan", "1e10"] {
        refused(&format!("{MAC}price_usd = {wrong}\n"), &["price_usd is", "from 0"]);
        let key = "electricity_usd_per_kwh";
        refused(&format!("{MAC}[economics]\n{key} = {wrong}\n"), &[key, "above 0"]);
    }
    for wrong in ["0", "0GiB", "101TiB", "1000TB"] {
        refused(&MAC.replace("96GiB", wrong), &["memory is", "at most 100.0 TiB"]);
    }
    refused(&MAC.replace("96GiB", "-1GiB"), &["memory", "`-1GiB`"]);
    refused(&format!("{MAC}idle_watts = 300\nloaded_watts = 200\n"), &["more than loaded_watts"]);
    refused(&format!("{MAC}[economics]\nstreams = 0\n"), &["streams must be"]);
    refused(&format!("{MAC}[economics]\nhours_per_day = 3\nutilisation = 0.5\n"), &["one of them"]);
    refused(&format!("{MAC}offload = '101TB/s'\n"), &["offload", "at most 100TB/s"]);
    refused(&format!("{MAC}offload = '0GB/s'\n"), &["offload", "above 0"]);
}

#[test]
fn a_wrong_link_or_host_says_what_there_is() {
    let pair = |text: &str| format!("{MAC}{}[[link]]\n{text}", MAC.replace("mac", "mini"));
    refused(&pair("between = ['mac', 'mini']\n"), &["[[link]] between `mac` and `mini`", "it says nothing"]);
    refused(&pair("between = ['mac', 'pc']\ntype = 'Cable'\n"), &["no device or host `pc`", "mac, mini"]);
    refused(&pair("between = ['mac', 'mac']\ntype = 'Cable'\n"), &["between two devices"]);
    refused(&pair("between = ['mac']\ntype = 'Cable'\n"), &["line"]);
    refused(&pair("between = ['mac', 'mini']\ngbit_per_s = 10\n"), &["belong together"]);
    let twice =
        "between = ['mac', 'mini']\ntype = 'Cable'\n[[link]]\nbetween = ['mini', 'mac']\ntype = 'Cable'\n";
    refused(&pair(twice), &["the same two"]);
    refused(&format!("{MAC}[link]\ndefault = 'Cable'\n"), &["[link]", "[[link]]", "[links]"]);
    refused(&format!("{MAC}[links]\ngbit_per_s = 1\n"), &["[links]", "belong together"]);
    refused(&format!("{MAC}[[host]]\nname = 'rig'\n"), &["[[host]] `rig`", "no [[device]] is in it"]);
    let two = format!("{MAC}host = 'rig'\n{}host = 'rig'\n", MAC.replace("mac", "mini"));
    refused(&two, &["[[device]] `mini`", "shares the memory", "`mac`", "[[host]]", "bandwidth_gbps"]);
    let host = "host = 'rig'\n[[host]]\nname = 'rig'\n";
    refused(&format!("{MAC}{host}processors = 4\n"), &["[[host]] `rig`", "belong together"]);
    refused(&format!("{MAC}{host}{}", "[[host]]\nname = 'rig'\n"), &["taken already"]);
}

#[test]
fn unknown_types_come_with_the_nearest_names() {
    refused("[[device]]\ntype = 'RTX 509'\n", &["[[device]] `RTX 509`", "RTX 5090", "--list devices"]);
    refused(&format!("{MAC}[links]\ndefault = '10GbR'\n"), &["[links]", "10GbE", "--list links"]);
}

#[test]
fn rates_are_read_as_users_write_them() {
    for (text, rate) in [("7GB/s", 7e9), ("1.5 GiB/s", 1.5 * 1073741824.0), ("500MB/s", 5e8)] {
        assert_eq!(parse_rate(text), Ok(rate), "{text}");
    }
    for text in ["", "7", "7GB", "GB/s", "-1GB/s", "0GB/s", "1000TB/s", "7GB/h"] {
        assert!(parse_rate(text).is_err(), "{text}");
    }
}
