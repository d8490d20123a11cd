//! A processor's sensors as Linux shows them in `/sys`: temperature, energy, and how often heat held it back.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use super::rates::Energy;

/// Chips whose temperatures are a processor's.
const CHIPS: [&str; 5] = ["coretemp", "k10temp", "zenpower", "cpu_thermal", "via_cputemp"];
/// Beginnings of the names of thermal zones that are a processor's, where no chip tells.
const ZONES: [&str; 4] = ["x86_pkg_temp", "cpu", "soc", "bigcore"];
/// Most files of a kind that are read: a machine has a few packages, and their own counters are read first.
const MOST_FILES: usize = 64;
/// Temperatures that are believed, in degrees: sensors that are not connected say anything.
const BELIEVED: std::ops::Range<f32> = 1.0..150.0;

/// Where a machine's sensors are: found once, as they do not move.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sensors {
    temperatures: Vec<PathBuf>,
    /// With each counter's largest value.
    energy: Vec<(PathBuf, u64)>,
    throttled: Vec<PathBuf>,
}

impl Sensors {
    /// The sensors below `sys`.
    pub(super) fn find(sys: &Path) -> Sensors {
        Sensors { temperatures: temperatures(sys), energy: energy(sys), throttled: throttled(sys) }
    }

    /// The hottest of the processors' sensors.
    pub(super) fn temperature_celsius(&self) -> Option<f32> {
        let read =
            self.temperatures.iter().filter_map(|path| number(path)).map(|milli| milli as f32 / 1000.0);
        read.filter(|celsius| BELIEVED.contains(celsius)).reduce(f32::max)
    }

    /// What each zone has drawn; empty where that is not told, or only to the system's administrator.
    pub(super) fn energy(&self) -> Vec<Energy> {
        let read = self.energy.iter().map(|(path, largest)| {
            let microjoules = u64::try_from(number(path)?).ok()?;
            Some(Energy { microjoules, largest: *largest })
        });
        // A part would look like less power.
        read.collect::<Option<_>>().unwrap_or_default()
    }

    /// How often heat has held processors back since the system's start.
    pub(super) fn throttled(&self) -> Option<u64> {
        let read = self.throttled.iter().filter_map(|path| number(path)).map(|count| count.max(0) as u64);
        read.fold(None, |sum: Option<u64>, count| Some(sum.unwrap_or_default().saturating_add(count)))
    }
}

fn temperatures(sys: &Path) -> Vec<PathBuf> {
    let chips = folder(&sys.join("class/hwmon"))
        .into_iter()
        .filter(|chip| text(&chip.join("name")).is_some_and(|name| CHIPS.contains(&name.as_str())));
    let inputs = chips.flat_map(|chip| folder(&chip)).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("temp") && name.ends_with("_input")
    });
    let inputs: Vec<PathBuf> = inputs.take(MOST_FILES).collect();
    if !inputs.is_empty() {
        return inputs;
    }
    let zones = folder(&sys.join("class/thermal")).into_iter().filter(|zone| {
        text(&zone.join("type")).is_some_and(|kind| ZONES.iter().any(|zone| kind.starts_with(zone)))
    });
    zones.map(|zone| zone.join("temp")).filter(|path| path.is_file()).take(MOST_FILES).collect()
}

/// Zones of whole packages, and of memory where that is beside them. The other zones are parts of a package's.
fn energy(sys: &Path) -> Vec<(PathBuf, u64)> {
    let zones = folder(&sys.join("class/powercap")).into_iter().filter(|zone| {
        // `intel-rapl-mmio` counts the same packages once more.
        let is_zone = zone.file_name().is_some_and(|name| name.to_string_lossy().starts_with("intel-rapl:"));
        let name = text(&zone.join("name")).unwrap_or_default();
        is_zone && (name.starts_with("package-") || name == "dram")
    });
    let counters = zones.filter_map(|zone| {
        let largest = u64::try_from(number(&zone.join("max_energy_range_uj"))?).ok()?;
        Some((zone.join("energy_uj"), largest))
    });
    counters.take(MOST_FILES).collect()
}

/// One counter for each package, and one for each processor as far as there is room.
fn throttled(sys: &Path) -> Vec<PathBuf> {
    let mut packages = BTreeSet::new();
    let (mut found, mut cores) = (Vec::new(), Vec::new());
    for processor in folder(&sys.join("devices/system/cpu")) {
        let counters = processor.join("thermal_throttle");
        let package = counters.join("package_throttle_count");
        if package.is_file() && packages.insert(text(&processor.join("topology/physical_package_id"))) {
            found.push(package);
        }
        cores.push(counters.join("core_throttle_count"));
    }
    found.extend(cores.into_iter().filter(|path| path.is_file()));
    found.truncate(MOST_FILES);
    found
}

/// What is in a folder, in the order of names.
fn folder(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}

fn text(path: &Path) -> Option<String> {
    Some(read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<i64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    #[test]
    fn the_hottest_sensor_of_the_processor_counts_and_no_other_chips() {
        let root = sys(&[
            ("class/hwmon/hwmon0/name", "nvme"),
            ("class/hwmon/hwmon0/temp1_input", "91000"),
            ("class/hwmon/hwmon1/name", "coretemp"),
            ("class/hwmon/hwmon1/temp1_input", "61000"),
            ("class/hwmon/hwmon1/temp1_max", "100000"),
            ("class/hwmon/hwmon1/temp2_input", "64500"),
            ("class/hwmon/hwmon1/temp3_input", "-128000"),
            ("class/thermal/thermal_zone0/type", "x86_pkg_temp"),
            ("class/thermal/thermal_zone0/temp", "99000"),
        ]);
        assert_eq!(Sensors::find(root.path()).temperature_celsius(), Some(64.5));
    }

    #[test]
    fn thermal_zones_tell_where_no_chip_does() {
        let root = sys(&[
            ("class/thermal/thermal_zone0/type", "acpitz"),
            ("class/thermal/thermal_zone0/temp", "27800"),
            ("class/thermal/thermal_zone1/type", "cpu-thermal"),
            ("class/thermal/thermal_zone1/temp", "48312"),
        ]);
        assert_eq!(Sensors::find(root.path()).temperature_celsius(), Some(48.312));
    }

    #[test]
    fn packages_and_memory_draw_and_their_parts_are_not_counted_again() {
        let zone = |zone: &str, name: &str, energy: &str| {
            [("name", name), ("energy_uj", energy), ("max_energy_range_uj", "262143328850")]
                .map(|(file, text)| (format!("class/powercap/{zone}/{file}"), text.to_owned()))
        };
        let files = [
            zone("intel-rapl:0", "package-0", "100"),
            zone("intel-rapl:0:0", "core", "60"),
            zone("intel-rapl:0:1", "dram", "30"),
            zone("intel-rapl:1", "psys", "500"),
            zone("intel-rapl-mmio:0", "package-0", "100"),
        ]
        .concat();
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let root = sys(&files);
        let sensors = Sensors::find(root.path());
        let drawn: Vec<u64> = sensors.energy().iter().map(|energy| energy.microjoules).collect();
        assert_eq!(drawn, [100, 30]);
        assert_eq!(sensors.energy()[0].largest, 262_143_328_850);
        // As if only an administrator could read one of them.
        std::fs::remove_file(root.path().join("class/powercap/intel-rapl:0:1/energy_uj")).unwrap();
        assert_eq!(sensors.energy(), []);
    }

    #[test]
    fn heat_is_counted_once_a_package_and_once_a_processor() {
        let cpu = |number: usize, package: &str| {
            [
                ("thermal_throttle/core_throttle_count", number.to_string()),
                ("thermal_throttle/package_throttle_count", "100".to_owned()),
                ("topology/physical_package_id", package.to_owned()),
            ]
            .map(|(file, text)| (format!("devices/system/cpu/cpu{number}/{file}"), text))
        };
        let files = [cpu(0, "0"), cpu(1, "0"), cpu(2, "1")].concat();
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let root = sys(&files);
        assert_eq!(Sensors::find(root.path()).throttled(), Some(203));
    }

    #[test]
    fn a_system_that_tells_nothing_is_no_error() {
        let root = sys(&[]);
        let sensors = Sensors::find(root.path());
        assert_eq!(sensors, Sensors::default());
        assert_eq!((sensors.temperature_celsius(), sensors.throttled()), (None, None));
        assert_eq!(sensors.energy(), []);
    }
}
