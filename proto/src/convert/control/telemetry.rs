//! What a worker tells of itself with every heartbeat.

use brigade_shard::units::Bytes;

use crate::control::{CardTelemetry, LinkTelemetry, MachineTelemetry, ProcessTelemetry, Telemetry, Throttle};
use crate::convert::InvalidMessage;
use crate::convert::fields::{address, peer, shortened};
use crate::pb;

/// Most links that are listened to: a worker has two neighbours in each deployment, and the coordinator.
const MAX_LINKS: usize = 64;

impl From<Telemetry> for pb::Telemetry {
    fn from(telemetry: Telemetry) -> pb::Telemetry {
        pb::Telemetry {
            resident_bytes: telemetry.resident.0,
            peak_resident_bytes: telemetry.peak_resident.0,
            cache_tokens_used: telemetry.cache_tokens_used,
            sequences: telemetry.sequences,
            fetched_bytes: telemetry.fetched.0,
            given_bytes: telemetry.given.0,
            steps: telemetry.steps,
            frames_fenced: telemetry.frames_fenced,
            computing_ms: telemetry.computing_ms,
            machine: Some(telemetry.machine.into()),
            process: Some(telemetry.process.into()),
            card: telemetry.card.map(Into::into),
            links: telemetry.links.into_iter().take(MAX_LINKS).map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Telemetry> for Telemetry {
    type Error = InvalidMessage;

    fn try_from(telemetry: pb::Telemetry) -> Result<Telemetry, InvalidMessage> {
        let links = telemetry.links.into_iter().take(MAX_LINKS);
        Ok(Telemetry {
            resident: Bytes(telemetry.resident_bytes),
            peak_resident: Bytes(telemetry.peak_resident_bytes),
            cache_tokens_used: telemetry.cache_tokens_used,
            sequences: telemetry.sequences,
            fetched: Bytes(telemetry.fetched_bytes),
            given: Bytes(telemetry.given_bytes),
            steps: telemetry.steps,
            frames_fenced: telemetry.frames_fenced,
            computing_ms: telemetry.computing_ms,
            machine: telemetry.machine.unwrap_or_default().into(),
            process: telemetry.process.unwrap_or_default().into(),
            card: telemetry.card.map(Into::into),
            links: links.map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

/// A measured value, where it is one.
fn measured<T: Into<f64> + Copy>(value: Option<T>) -> Option<T> {
    value.filter(|value| {
        let value: f64 = (*value).into();
        value.is_finite()
    })
}

/// A share from 0 to 1.
fn share(value: Option<f32>) -> Option<f32> {
    measured(value).map(|share| share.clamp(0.0, 1.0))
}

impl From<MachineTelemetry> for pb::MachineTelemetry {
    fn from(machine: MachineTelemetry) -> pb::MachineTelemetry {
        pb::MachineTelemetry {
            memory_bytes: machine.memory.0,
            memory_available_bytes: machine.memory_available.0,
            swap_used_bytes: machine.swap_used.0,
            paged_in_bytes_per_s: machine.paged_in_bytes_per_s,
            processors_busy: machine.processors_busy,
            temperature_celsius: machine.temperature_celsius,
            power_watts: machine.power_watts,
            throttle: pb::Throttle::from(machine.throttle).into(),
        }
    }
}

impl From<pb::MachineTelemetry> for MachineTelemetry {
    fn from(machine: pb::MachineTelemetry) -> MachineTelemetry {
        MachineTelemetry {
            throttle: machine.throttle().into(),
            memory: Bytes(machine.memory_bytes),
            memory_available: Bytes(machine.memory_available_bytes),
            swap_used: Bytes(machine.swap_used_bytes),
            paged_in_bytes_per_s: measured(machine.paged_in_bytes_per_s),
            processors_busy: share(machine.processors_busy),
            temperature_celsius: measured(machine.temperature_celsius),
            power_watts: measured(machine.power_watts),
        }
    }
}

impl From<ProcessTelemetry> for pb::ProcessTelemetry {
    fn from(process: ProcessTelemetry) -> pb::ProcessTelemetry {
        let ProcessTelemetry { processors, read_bytes_per_s, written_bytes_per_s } = process;
        pb::ProcessTelemetry { processors, read_bytes_per_s, written_bytes_per_s }
    }
}

impl From<pb::ProcessTelemetry> for ProcessTelemetry {
    fn from(process: pb::ProcessTelemetry) -> ProcessTelemetry {
        ProcessTelemetry {
            processors: measured(process.processors),
            read_bytes_per_s: measured(process.read_bytes_per_s),
            written_bytes_per_s: measured(process.written_bytes_per_s),
        }
    }
}

impl From<CardTelemetry> for pb::CardTelemetry {
    fn from(card: CardTelemetry) -> pb::CardTelemetry {
        pb::CardTelemetry {
            memory_bytes: card.memory.0,
            memory_free_bytes: card.memory_free.0,
            busy: card.busy,
            temperature_celsius: card.temperature_celsius,
            power_watts: card.power_watts,
            throttle: pb::Throttle::from(card.throttle).into(),
        }
    }
}

impl From<pb::CardTelemetry> for CardTelemetry {
    fn from(card: pb::CardTelemetry) -> CardTelemetry {
        CardTelemetry {
            throttle: card.throttle().into(),
            memory: Bytes(card.memory_bytes),
            memory_free: Bytes(card.memory_free_bytes),
            busy: share(card.busy),
            temperature_celsius: measured(card.temperature_celsius),
            power_watts: measured(card.power_watts),
        }
    }
}

impl From<Throttle> for pb::Throttle {
    fn from(throttle: Throttle) -> pb::Throttle {
        match throttle {
            Throttle::Unknown => pb::Throttle::Unknown,
            Throttle::None => pb::Throttle::None,
            Throttle::Heat => pb::Throttle::Heat,
            Throttle::Power => pb::Throttle::Power,
        }
    }
}

impl From<pb::Throttle> for Throttle {
    fn from(throttle: pb::Throttle) -> Throttle {
        match throttle {
            pb::Throttle::Unknown => Throttle::Unknown,
            pb::Throttle::None => Throttle::None,
            pb::Throttle::Heat => Throttle::Heat,
            pb::Throttle::Power => Throttle::Power,
        }
    }
}

impl From<LinkTelemetry> for pb::LinkTelemetry {
    fn from(link: LinkTelemetry) -> pb::LinkTelemetry {
        pb::LinkTelemetry {
            peer: Some(link.peer.into()),
            address: link.address.to_string(),
            choice: shortened(link.choice),
            rtt_us: link.rtt_us,
            sent_bytes: link.sent_bytes,
            received_bytes: link.received_bytes,
            sent_packets: link.sent_packets,
            lost_packets: link.lost_packets,
            congestion_window_bytes: link.congestion_window,
        }
    }
}

impl TryFrom<pb::LinkTelemetry> for LinkTelemetry {
    type Error = InvalidMessage;

    fn try_from(link: pb::LinkTelemetry) -> Result<LinkTelemetry, InvalidMessage> {
        Ok(LinkTelemetry {
            peer: peer("heartbeat.links.peer", link.peer)?,
            address: address("heartbeat.links.address", &link.address)?,
            choice: shortened(link.choice),
            rtt_us: link.rtt_us,
            sent_bytes: link.sent_bytes,
            received_bytes: link.received_bytes,
            sent_packets: link.sent_packets,
            lost_packets: link.lost_packets,
            congestion_window: link.congestion_window_bytes,
        })
    }
}
