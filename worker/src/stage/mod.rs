//! A stage: a shard on a device, with the sequences that pass through it.

mod error;
mod score;
mod sequences;
mod step;

use std::any::Any;
use std::sync::Arc;

use brigade_proto::control::{DeviceKind, StageMemory, StageRoom};
use brigade_proto::step::{StepFrame, StepResult, WireDtype};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::units::Bytes;

pub use self::error::StepError;
use self::step::Steps;
pub use crate::cache::CacheUsage;
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::delivery::Delivered;
use crate::model::{self, Converted, StageNeeds};
pub use crate::weights::{HeldWeights, LoadError, LoadProgress, ReadProblem};
use crate::weights::{ModelFiles, give_way};

/// What to load, and where.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The model's header.
    pub header: Header,
    /// What brings the model's tensors, where its files are the cache's.
    pub delivered: Option<Arc<Delivered>>,
    /// Which part of the model.
    pub shard: Shard,
    /// What the stage must be able to hold.
    pub room: StageRoom,
    /// Where it computes.
    pub device: DeviceKind,
    /// Compute threads on the processor; at least one.
    pub threads: usize,
    /// Whether weights stay in their files, which the system reads when they are looked at; on the processor alone.
    pub mapped: bool,
    /// Whether matrices of types that the device has no kernels for are turned into others while they are read.
    pub converted: Converted,
    /// How many of its last layers may be read again for every step, so that it takes less memory; on the processor alone.
    pub streamed_layers: usize,
    /// What the stage may take.
    pub budget: Bytes,
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq)]
pub enum StageOutput {
    /// From any stage but the last: the frame, with this stage's hidden states.
    Pass(StepFrame),
    /// From the last stage.
    Finish(StepResult),
}

/// A loaded shard, ready for steps; on whichever device, it looks the same.
pub struct Stage {
    steps: Box<dyn Steps>,
    memory: StageMemory,
    /// What it was loaded from stays in the cache for as long as it is used.
    _delivered: Option<Arc<Delivered>>,
}

impl Stage {
    /// Reads the shard's tensors and makes room for its cache and workspace.
    ///
    /// # Errors
    /// Where the budget is too small (before anything is read), a file cannot be read or has changed, a tensor's type has
    /// no kernels on the device, the device fails, was not built in or cannot read layers for every step, or `progress` was
    /// cancelled.
    pub fn load(request: StageRequest, progress: &LoadProgress) -> Result<Stage, LoadError> {
        Stage::load_sharing(request, &HeldWeights::default(), progress)
    }

    /// The same, but what is `held` already is not read again.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_sharing(
        request: StageRequest,
        held: &HeldWeights,
        progress: &LoadProgress,
    ) -> Result<Stage, LoadError> {
        let StageRequest {
            header,
            delivered,
            shard,
            room,
            device,
            threads,
            mapped,
            converted,
            streamed_layers,
            budget,
        } = request;
        check_streaming(device, streamed_layers)?;
        let needs = StageNeeds::streaming(&header, &shard, streamed_layers, &room, converted)?;
        let StageNeeds { spec, table, memory, streamed } = needs;
        if memory.total() > budget {
            let StageMemory { weights, cache, workspace } = memory;
            return Err(LoadError::TooLittleMemory { weights, cache, workspace, budget });
        }
        if let Some(delivered) = delivered.as_ref().filter(|_| mapped || !streamed.is_empty()) {
            // These are looked at in their files, by whoever does not ask for them.
            delivered.complete(table.of(&shard).into_iter().map(|(_, tensor)| tensor))?;
        }
        let files = open(&header, &delivered, mapped, held, progress)?.streaming(&table, streamed)?;
        let steps: Box<dyn Steps> = match device {
            DeviceKind::Cpu => {
                let backend = CpuBackend::new(threads)?;
                let model = model::load(backend, &files, &spec, &table, &shard, &room, progress)?;
                step::boxed(model, &room)
            }
            DeviceKind::Cuda(_) | DeviceKind::Metal => {
                let backend = on_card(device, held, converted)?;
                let model = model::load(backend, &files, &spec, &table, &shard, &room, progress)?;
                step::boxed(model, &room)
            }
        };
        Ok(Stage { steps, memory, _delivered: delivered })
    }

    /// What the stage takes of its worker's budget.
    pub fn memory(&self) -> StageMemory {
        self.memory
    }

    /// How hidden states leave the stage from now on; f32 unless set.
    pub fn set_wire(&mut self, wire: WireDtype) {
        self.steps.set_wire(wire);
    }

    /// Computes a step: releases the sequences that have ended, truncates the others to their segments' starts, and runs
    /// the rows. Timings are passed on as they came.
    ///
    /// # Errors
    /// Where the frame does not fit the stage, or computing fails. Releases are done all the same; the sequences of the
    /// step are then as long as their segments' starts at most, and all others are untouched.
    pub fn run(&mut self, frame: StepFrame) -> Result<StageOutput, StepError> {
        self.steps.run(frame)
    }

    /// How much of the cache is in use.
    pub fn usage(&self) -> CacheUsage {
        self.steps.usage()
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        self.steps.clear();
    }
}

/// Weights that are resident without a stage that computes with them, so that one which shares them need not read them.
pub struct PreparedWeights {
    _weights: Box<dyn Any + Send>,
    _delivered: Option<Arc<Delivered>>,
}

impl PreparedWeights {
    /// Reads those tensors of the shard that are not `held`, but for what its stage reads again for every step, with one thread of the lowest priority: what is computed
    /// meanwhile goes first.
    ///
    /// # Errors
    /// As [`Stage::load`], but that the caller sees to the budget.
    pub fn read(
        request: StageRequest,
        held: &HeldWeights,
        progress: &LoadProgress,
    ) -> Result<PreparedWeights, LoadError> {
        let StageRequest {
            header, delivered, shard, room, device, mapped, converted, streamed_layers, ..
        } = request;
        check_streaming(device, streamed_layers)?;
        let needs = StageNeeds::streaming(&header, &shard, streamed_layers, &room, converted)?;
        let shard = lasting(&shard, needs.streamed);
        let StageNeeds { spec, table, .. } = needs;
        // What is started from here gives way as well.
        give_way();
        if let Some(delivered) = delivered.as_ref().filter(|_| mapped) {
            delivered.complete(table.of(&shard).into_iter().map(|(_, tensor)| tensor))?;
        }
        let files = open(&header, &delivered, mapped, held, progress)?;
        let weights = match device {
            DeviceKind::Cpu => {
                let backend = CpuBackend::new(1)?;
                model::prepare(&backend, &files, &spec, &table, &shard, &room, progress)?
            }
            DeviceKind::Cuda(_) | DeviceKind::Metal => {
                let backend = on_card(device, held, converted)?;
                model::prepare(&backend, &files, &spec, &table, &shard, &room, progress)?
            }
        };
        Ok(PreparedWeights { _weights: weights, _delivered: delivered })
    }
}

/// The backend of a card, opened once for all stages.
fn on_card(device: DeviceKind, held: &HeldWeights, converted: Converted) -> Result<CandleBackend, LoadError> {
    let backend = CandleBackend::new(held.device(|| candle_backend::device(device))?)?;
    Ok(if converted == Converted::No { backend } else { backend.converting()? })
}

fn open<'a>(
    header: &'a Header,
    delivered: &Option<Arc<Delivered>>,
    mapped: bool,
    held: &HeldWeights,
    progress: &'a LoadProgress,
) -> Result<ModelFiles<'a>, LoadError> {
    let files = ModelFiles::open(header, progress)?.of_cache(delivered.clone()).sharing(held);
    if mapped { files.mapped() } else { Ok(files) }
}

/// Refuses layers that are to be read again for every step where no device but the processor can do that.
pub(crate) fn check_streaming(device: DeviceKind, layers: usize) -> Result<(), LoadError> {
    match device {
        _ if layers == 0 => Ok(()),
        DeviceKind::Cpu => Ok(()),
        card => Err(LoadError::StreamedOn { device: card.to_string(), layers }),
    }
}

/// What of a shard stays in memory: all but its last layers, which are `streamed`.
fn lasting(shard: &Shard, streamed: LayerRange) -> Shard {
    Shard { layers: LayerRange { end: shard.layers.end - streamed.len(), ..shard.layers }, ..*shard }
}

/// How much of a shard's weights is not `held`, where its last layers may be streamed: these are not to be had beforehand.
///
/// # Errors
/// As [`plan_check`].
pub fn missing_weights(
    header: &Header,
    shard: &Shard,
    streamed_layers: usize,
    room: &StageRoom,
    converted: Converted,
    held: &HeldWeights,
) -> Result<Bytes, LoadError> {
    let needs = StageNeeds::streaming(header, shard, streamed_layers, room, converted)?;
    let StageNeeds { table, memory, streamed, .. } = needs;
    let table = converted.counted(&table);
    let model = *header.fingerprint();
    let missing =
        table.of(&lasting(shard, streamed)).into_iter().filter(|(_, info)| !held.has(model, &info.name));
    Ok(missing.map(|(_, info)| info.bytes).sum::<Bytes>().min(memory.weights))
}

/// What [`Stage::load`] would take.
///
/// # Errors
/// Where the header is not that of a model that can be run, the shard is not a part of it, or the room is none.
pub fn plan_check(
    header: &Header,
    shard: &Shard,
    streamed_layers: usize,
    room: &StageRoom,
    converted: Converted,
) -> Result<StageMemory, LoadError> {
    Ok(StageNeeds::streaming(header, shard, streamed_layers, room, converted)?.memory)
}
