//! What an NVIDIA driver tells of a card. Its library is looked for when the worker starts; where it is not there, the
//! card's state is not told.

use brigade_proto::control::{CardTelemetry, DeviceKind, Throttle};
use brigade_shard::units::Bytes;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

/// A card, and the driver's library.
#[derive(Debug)]
pub(super) struct Card {
    nvml: Nvml,
    name: CardName,
    /// Whether the log has been told that it does not answer.
    told: bool,
}

/// What the driver calls a card.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CardName {
    /// Its number among all.
    Number(u32),
    /// Its own, which begins with `GPU-`.
    Own(String),
}

impl Card {
    /// The card of a device that is one.
    pub(super) fn open(device: DeviceKind) -> Option<Card> {
        let DeviceKind::Cuda(number) = device else {
            return None;
        };
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let opened = match named(visible.as_deref(), number) {
            Some(name) => {
                Nvml::init().map(|nvml| Card { nvml, name, told: false }).map_err(|error| error.to_string())
            }
            None => Err(format!("CUDA_VISIBLE_DEVICES={} does not name it", visible.unwrap_or_default())),
        };
        opened.inspect_err(|reason| tracing::info!("the state of card {number} is not told: {reason}")).ok()
    }

    /// How it is now.
    pub(super) fn read(&mut self) -> Option<CardTelemetry> {
        match self.try_read() {
            Ok(card) => Some(card),
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!("the driver does not tell how the card is: {error}");
                }
                None
            }
        }
    }

    fn try_read(&self) -> Result<CardTelemetry, NvmlError> {
        let device = match &self.name {
            CardName::Number(number) => self.nvml.device_by_index(*number)?,
            CardName::Own(name) => self.nvml.device_by_uuid(name.as_str())?,
        };
        let memory = device.memory_info()?;
        Ok(CardTelemetry {
            memory: Bytes(memory.total),
            memory_free: Bytes(memory.free),
            busy: device.utilization_rates().ok().map(|busy| busy.gpu as f32 / 100.0),
            temperature_celsius: device
                .temperature(TemperatureSensor::Gpu)
                .ok()
                .map(|degrees| degrees as f32),
            power_watts: device.power_usage().ok().map(|milliwatts| milliwatts as f32 / 1000.0),
            throttle: device.current_throttle_reasons().map_or(Throttle::Unknown, throttle),
        })
    }
}

/// What the driver calls the card with this number among those that CUDA shows to this process. CUDA is taken to number
/// cards as the driver does, which is so where they are alike.
fn named(visible: Option<&str>, number: u32) -> Option<CardName> {
    let Some(visible) = visible else {
        return Some(CardName::Number(number));
    };
    let shown = visible.split(',').nth(number as usize)?.trim();
    match shown.parse() {
        Ok(number) => Some(CardName::Number(number)),
        Err(_) => shown.starts_with("GPU-").then(|| CardName::Own(shown.to_owned())),
    }
}

/// Why a card is held back. A slowdown without a reason is heat's more often than not; clocks that are low because nothing
/// is to be done, or because they were set, are none.
fn throttle(reasons: ThrottleReasons) -> Throttle {
    let heat = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
    let power = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    if reasons.intersects(heat) {
        Throttle::Heat
    } else if reasons.intersects(power) {
        Throttle::Power
    } else if reasons.contains(ThrottleReasons::HW_SLOWDOWN) {
        Throttle::Heat
    } else {
        Throttle::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_counted_among_those_that_are_visible() {
        assert_eq!(named(None, 1), Some(CardName::Number(1)));
        assert_eq!(named(Some("2,0"), 1), Some(CardName::Number(0)));
        let own = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
        assert_eq!(named(Some(&format!("3, {own}")), 1), Some(CardName::Own(own.to_owned())));
        assert_eq!(named(Some("2"), 1), None);
        assert_eq!(named(Some("MIG-1"), 0), None);
        assert_eq!(named(Some(""), 0), None);
    }

    #[test]
    fn heat_says_more_than_power_and_idle_clocks_are_no_fault() {
        assert_eq!(throttle(ThrottleReasons::GPU_IDLE), Throttle::None);
        assert_eq!(throttle(ThrottleReasons::empty()), Throttle::None);
        assert_eq!(throttle(ThrottleReasons::SW_POWER_CAP), Throttle::Power);
        let brake = ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
        assert_eq!(throttle(brake), Throttle::Power);
        assert_eq!(throttle(ThrottleReasons::HW_SLOWDOWN), Throttle::Heat);
        let both = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::SW_THERMAL_SLOWDOWN;
        assert_eq!(throttle(both), Throttle::Heat);
    }

    #[test]
    fn processors_have_no_card() {
        assert!(Card::open(DeviceKind::Cpu).is_none());
        assert!(Card::open(DeviceKind::Metal).is_none());
    }

    /// Where a driver is, its own figures; where none is, no error.
    #[test]
    fn a_card_is_told_of_where_there_is_a_driver() {
        let Some(mut card) = Card::open(DeviceKind::Cuda(0)) else {
            println!("no driver here");
            return;
        };
        let told = card.read().expect("a driver has a first card");
        println!("{told:?}");
        assert!(told.memory_free > Bytes::ZERO && told.memory_free <= told.memory, "{told:?}");
    }
}
