//! What a stage takes, known before it is loaded.

use std::borrow::Cow;

use brigade_proto::control::{CacheDtype, DeviceKind, StageMemory, StageRoom};
use brigade_shard::cost::{Cost, PAGE_TOKENS, Room};
use brigade_shard::kernels::Kernels;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;

use crate::weights::LoadError;

/// A model's spec and tensors, and what one shard of it takes.
pub struct StageNeeds {
    /// What the model computes.
    pub spec: ModelSpec,
    /// Where its tensors are.
    pub table: TensorTable,
    /// What the shard takes.
    pub memory: StageMemory,
    /// Its layers that are read again for every step.
    pub streamed: LayerRange,
}

/// Whether matrices of types that a device has no kernels for are turned into others while they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Converted {
    /// They stay as they are, and are refused where there are no kernels.
    No,
    /// They become their [stand-ins](brigade_shard::tensor_type::TensorType::stand_in).
    To(Kernels),
}

impl Converted {
    /// What `device` does where a user has asked for it, or has not. A processor has kernels for every type.
    pub fn on(device: DeviceKind, asked: bool) -> Converted {
        match device {
            DeviceKind::Cuda(_) | DeviceKind::Metal if asked => Converted::To(device.kernels()),
            _ => Converted::No,
        }
    }

    /// Tensors in the sizes that they take on the device.
    pub(crate) fn counted(self, table: &TensorTable) -> Cow<'_, TensorTable> {
        match self {
            Converted::No => Cow::Borrowed(table),
            Converted::To(kernels) => Cow::Owned(table.standing_in(kernels)),
        }
    }
}

impl StageNeeds {
    /// Reads the header, and counts what `shard` takes with `room`.
    pub fn new(header: &Header, shard: &Shard, room: &StageRoom) -> Result<StageNeeds, LoadError> {
        StageNeeds::streaming(header, shard, 0, room, Converted::No)
    }

    /// The same where the last `streamed_layers` of the shard are to be read again for every step: they are where that takes
    /// less memory. What is converted counts as it lies on the device.
    pub fn streaming(
        header: &Header,
        shard: &Shard,
        streamed_layers: usize,
        room: &StageRoom,
        converted: Converted,
    ) -> Result<StageNeeds, LoadError> {
        let spec = ModelSpec::from_header(header)?;
        let table = TensorTable::new(header, &spec)?;
        let layers = spec.layers.len();
        if shard.layers.start > shard.layers.end || shard.layers.end > layers {
            return Err(LoadError::NoSuchShard { shard: shard.to_string(), layers });
        }
        check_room(room)?;
        let cost = Cost::new(&spec, &converted.counted(&table));
        let bytes = cost.memory_streaming(
            shard,
            streamed_layers,
            &Room {
                cache_tokens: room.cache_tokens,
                context: room.context,
                step_rows: room.step_rows,
                sequences: room.sequences,
                cache_value_bytes: match room.cache_dtype {
                    CacheDtype::F16 => 2,
                    CacheDtype::F32 => 4,
                },
            },
        );
        let memory = StageMemory { weights: bytes.weights, cache: bytes.cache, workspace: bytes.workspace };
        let streamed = cost.streamed(shard, streamed_layers);
        Ok(StageNeeds { spec, table, memory, streamed })
    }
}

/// Checks that a room is one that a stage can be made for.
pub fn check_room(room: &StageRoom) -> Result<(), LoadError> {
    let check = |fits: bool, field, value: u32, wanted| {
        if fits { Ok(()) } else { Err(LoadError::Room { field, value: value.into(), wanted }) }
    };
    let whole = room.cache_tokens > 0 && room.cache_tokens.is_multiple_of(PAGE_TOKENS);
    check(whole, "cache_tokens", room.cache_tokens, "wanted a multiple of the page size, 32")?;
    check(room.context > 0, "context", room.context, "wanted at least 1")?;
    check(room.step_rows > 0, "step_rows", room.step_rows, "wanted at least 1")?;
    check(room.sequences > 0, "sequences", room.sequences, "wanted at least 1")
}
