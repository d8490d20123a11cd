//! Messages from the coordinator to a worker.

use brigade_shard::layers::{LayerRange, Shard};

use crate::control::{CacheDtype, ConnectStage, LoadStage, ShortWayEnd, StageRoom, ToWorker, Welcome};
use crate::convert::InvalidMessage;
use crate::convert::fields::{MAX_NAME_BYTES, addresses, peer, positive, reason, required, shortened, text};
use crate::convert::step::wire_dtype;
use crate::delivery::Edition;
use crate::ids::{DeploymentId, Epoch, Incarnation};
use crate::pb;

use pb::to_worker::Message;

/// Most layers of a model, and so most stages: thirty times what the deepest models have.
const MAX_LAYERS: u32 = 4096;
/// Longest fingerprint in hexadecimal digits: a 512-bit hash.
const MAX_FINGERPRINT_BYTES: usize = 128;

impl From<ToWorker> for pb::ToWorker {
    fn from(message: ToWorker) -> pb::ToWorker {
        let message = match message {
            ToWorker::Welcome(welcome) => Message::Welcome(pb::Welcome {
                incarnation: welcome.incarnation.0,
                data_port: welcome.data_port.into(),
                heartbeat_ms: welcome.heartbeat_ms,
            }),
            ToWorker::Load(load) => Message::Load(load.into()),
            ToWorker::Connect(connect) => Message::Connect(connect.into()),
            ToWorker::Activate { deployment, fence } => {
                Message::Activate(pb::Activate { deployment: deployment.0, fence: Some(fence.into()) })
            }
            ToWorker::Retire { deployment } => Message::Retire(pb::Retire { deployment: deployment.0 }),
            ToWorker::Prepare(load) => Message::Prepare(load.into()),
            ToWorker::Unprepare { deployment } => {
                Message::Unprepare(pb::Unprepare { deployment: deployment.0 })
            }
            ToWorker::Probe { nonce } => Message::Probe(pb::Probe { nonce }),
            ToWorker::ProbeLink { nonce, peer, addresses } => Message::ProbeLink(pb::ProbeLink {
                nonce,
                peer: Some(peer.into()),
                addresses: addresses.iter().map(ToString::to_string).collect(),
            }),
            ToWorker::Shutdown { reason } => Message::Shutdown(pb::Shutdown { reason: shortened(reason) }),
        };
        pb::ToWorker { message: Some(message) }
    }
}

impl TryFrom<pb::ToWorker> for ToWorker {
    type Error = InvalidMessage;

    fn try_from(message: pb::ToWorker) -> Result<ToWorker, InvalidMessage> {
        Ok(match required("message", message.message)? {
            Message::Welcome(welcome) => ToWorker::Welcome(Welcome {
                incarnation: Incarnation(welcome.incarnation),
                data_port: port("welcome.data_port", welcome.data_port)?,
                heartbeat_ms: positive("welcome.heartbeat_ms", welcome.heartbeat_ms)?,
            }),
            Message::Load(load) => ToWorker::Load(load.try_into()?),
            Message::Connect(connect) => ToWorker::Connect(connect.try_into()?),
            Message::Activate(activate) => ToWorker::Activate {
                deployment: DeploymentId(activate.deployment),
                fence: required("activate.fence", activate.fence)?.into(),
            },
            Message::Retire(retire) => ToWorker::Retire { deployment: DeploymentId(retire.deployment) },
            Message::Prepare(load) => ToWorker::Prepare(load.try_into()?),
            Message::Unprepare(unprepare) => {
                ToWorker::Unprepare { deployment: DeploymentId(unprepare.deployment) }
            }
            Message::Probe(probe) => ToWorker::Probe { nonce: probe.nonce },
            Message::ProbeLink(probe) => ToWorker::ProbeLink {
                nonce: probe.nonce,
                peer: peer("probe_link.peer", probe.peer)?,
                addresses: addresses("probe_link.addresses", probe.addresses)?,
            },
            Message::Shutdown(shutdown) => {
                ToWorker::Shutdown { reason: reason("shutdown.reason", shutdown.reason)? }
            }
        })
    }
}

fn port(field: &'static str, value: u32) -> Result<u16, InvalidMessage> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidMessage::new(field, format!("is {value}, not a port"))),
    }
}

impl From<LoadStage> for pb::LoadStage {
    fn from(load: LoadStage) -> pb::LoadStage {
        let layer = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        pb::LoadStage {
            deployment: load.deployment.0,
            epoch: load.epoch.0,
            fingerprint: load.fingerprint,
            edition: load.edition.0,
            file_hint: load.file_hint,
            shard: Some(pb::Shard {
                start: layer(load.shard.layers.start),
                end: layer(load.shard.layers.end),
                embedding: load.shard.embedding,
                head: load.shard.head,
            }),
            stage: load.stage,
            stages: load.stages,
            room: Some(load.room.into()),
            streamed_layers: load.streamed_layers,
        }
    }
}

impl TryFrom<pb::LoadStage> for LoadStage {
    type Error = InvalidMessage;

    fn try_from(load: pb::LoadStage) -> Result<LoadStage, InvalidMessage> {
        if load.stages == 0 || load.stages > MAX_LAYERS {
            let problem = format!("is {}, outside of 1 to {MAX_LAYERS}", load.stages);
            return Err(InvalidMessage::new("load.stages", problem));
        }
        if load.stage >= load.stages {
            let problem = format!("is {} of only {} stages", load.stage, load.stages);
            return Err(InvalidMessage::new("load.stage", problem));
        }
        let shard: Shard = required("load.shard", load.shard)?.try_into()?;
        if shard.embedding != (load.stage == 0) || shard.head != (load.stage + 1 == load.stages) {
            let problem = format!("`{shard}` does not fit stage {} of {}", load.stage, load.stages);
            return Err(InvalidMessage::new("load.shard", problem));
        }
        if load.streamed_layers as usize > shard.layers.len() {
            let problem = format!("streams {} layers of `{shard}`", load.streamed_layers);
            return Err(InvalidMessage::new("load.streamed_layers", problem));
        }
        Ok(LoadStage {
            deployment: DeploymentId(load.deployment),
            epoch: Epoch(load.epoch),
            fingerprint: fingerprint(load.fingerprint)?,
            edition: Edition(load.edition),
            file_hint: base_name(load.file_hint)?,
            shard,
            stage: load.stage,
            stages: load.stages,
            room: required("load.room", load.room)?.try_into()?,
            streamed_layers: load.streamed_layers,
        })
    }
}

fn fingerprint(value: String) -> Result<String, InvalidMessage> {
    let value = text("load.fingerprint", value, MAX_FINGERPRINT_BYTES)?;
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(InvalidMessage::new("load.fingerprint", "is not a hexadecimal number"));
    }
    Ok(value)
}

/// A file's name without any directory: what a worker may look for among its own files.
fn base_name(value: String) -> Result<String, InvalidMessage> {
    let value = text("load.file_hint", value, MAX_NAME_BYTES)?;
    if value == "." || value == ".." || value.contains(['/', '\\', '\0']) {
        return Err(InvalidMessage::new("load.file_hint", "is a path, not a file's name"));
    }
    Ok(value)
}

impl TryFrom<pb::Shard> for Shard {
    type Error = InvalidMessage;

    fn try_from(shard: pb::Shard) -> Result<Shard, InvalidMessage> {
        let range = LayerRange::new(shard.start as usize, shard.end as usize);
        match range {
            Some(layers) if shard.end <= MAX_LAYERS => {
                Ok(Shard { layers, embedding: shard.embedding, head: shard.head })
            }
            _ => {
                let problem = format!("holds layers {}..{}, which is no range", shard.start, shard.end);
                Err(InvalidMessage::new("load.shard", problem))
            }
        }
    }
}

impl From<StageRoom> for pb::StageRoom {
    fn from(room: StageRoom) -> pb::StageRoom {
        let dtype = match room.cache_dtype {
            CacheDtype::F16 => pb::CacheDtype::F16,
            CacheDtype::F32 => pb::CacheDtype::F32,
        };
        pb::StageRoom {
            cache_tokens: room.cache_tokens,
            context_tokens: room.context,
            step_rows: room.step_rows,
            sequences: room.sequences,
            cache_dtype: dtype.into(),
        }
    }
}

impl TryFrom<pb::StageRoom> for StageRoom {
    type Error = InvalidMessage;

    fn try_from(room: pb::StageRoom) -> Result<StageRoom, InvalidMessage> {
        let cache_dtype = match pb::CacheDtype::try_from(room.cache_dtype) {
            Ok(pb::CacheDtype::F16) => CacheDtype::F16,
            Ok(pb::CacheDtype::F32) => CacheDtype::F32,
            Ok(pb::CacheDtype::Unspecified) | Err(_) => {
                let problem = format!("is {}, not a cache dtype known here", room.cache_dtype);
                return Err(InvalidMessage::new("load.room.cache_dtype", problem));
            }
        };
        Ok(StageRoom {
            cache_tokens: positive("load.room.cache_tokens", room.cache_tokens)?,
            context: positive("load.room.context_tokens", room.context_tokens)?,
            step_rows: positive("load.room.step_rows", room.step_rows)?,
            sequences: positive("load.room.sequences", room.sequences)?,
            cache_dtype,
        })
    }
}

impl From<ConnectStage> for pb::ConnectStage {
    fn from(connect: ConnectStage) -> pb::ConnectStage {
        let (first, first_addresses, last) = match connect.short_way {
            None => (None, Vec::new(), None),
            Some(ShortWayEnd::To(first, addresses)) => (Some(first), addresses, None),
            Some(ShortWayEnd::From(last)) => (None, Vec::new(), Some(last)),
        };
        pb::ConnectStage {
            deployment: connect.deployment.0,
            epoch: connect.epoch.0,
            previous: Some(connect.previous.into()),
            next: Some(connect.next.into()),
            next_addresses: connect.next_addresses.iter().map(ToString::to_string).collect(),
            wire: pb::WireDtype::from(connect.wire).into(),
            first: first.map(Into::into),
            first_addresses: first_addresses.iter().map(ToString::to_string).collect(),
            last: last.map(Into::into),
        }
    }
}

impl TryFrom<pb::ConnectStage> for ConnectStage {
    type Error = InvalidMessage;

    fn try_from(connect: pb::ConnectStage) -> Result<ConnectStage, InvalidMessage> {
        let short_way = match (connect.first, connect.last) {
            (None, None) => None,
            (Some(first), None) => Some(ShortWayEnd::To(
                peer("connect.first", Some(first))?,
                addresses("connect.first_addresses", connect.first_addresses)?,
            )),
            (None, Some(last)) => Some(ShortWayEnd::From(peer("connect.last", Some(last))?)),
            (Some(_), Some(_)) => {
                return Err(InvalidMessage::new(
                    "connect.first",
                    "is there with the last: a stage is one of them",
                ));
            }
        };
        Ok(ConnectStage {
            deployment: DeploymentId(connect.deployment),
            epoch: Epoch(connect.epoch),
            previous: peer("connect.previous", connect.previous)?,
            next: peer("connect.next", connect.next)?,
            next_addresses: addresses("connect.next_addresses", connect.next_addresses)?,
            wire: wire_dtype("connect.wire", connect.wire)?,
            short_way,
        })
    }
}
