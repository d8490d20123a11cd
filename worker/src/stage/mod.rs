//! A stage: a shard on a device, with the sequences that pass through it.

mod error;
mod score;
mod sequences;
mod step;

use brigade_proto::control::{DeviceKind, StageMemory, StageRoom};
use brigade_proto::step::{StepFrame, StepResult, WireDtype};
use brigade_shard::layers::Shard;
use brigade_shard::model_file::Header;
use brigade_shard::units::Bytes;

pub use self::error::StepError;
use self::step::Steps;
pub use crate::cache::CacheUsage;
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::model::{self, StageNeeds};
use crate::weights::ModelFiles;
pub use crate::weights::{LoadError, LoadProgress, ReadProblem};

/// What to load, and where.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The model's header.
    pub header: Header,
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
}

impl Stage {
    /// Reads the shard's tensors and makes room for its cache and workspace.
    ///
    /// # Errors
    /// Where the budget is too small (before anything is read), a file cannot be read or has changed, a tensor's type has
    /// no kernels on the device, the device fails or was not built in, or `progress` was cancelled.
    pub fn load(request: StageRequest, progress: &LoadProgress) -> Result<Stage, LoadError> {
        let StageRequest { header, shard, room, device, threads, mapped, budget } = request;
        let StageNeeds { spec, table, memory } = StageNeeds::new(&header, &shard, &room)?;
        if memory.total() > budget {
            let StageMemory { weights, cache, workspace } = memory;
            return Err(LoadError::TooLittleMemory { weights, cache, workspace, budget });
        }
        let mut files = ModelFiles::open(&header, progress)?;
        if mapped {
            files = files.mapped()?;
        }
        let steps: Box<dyn Steps> = match device {
            DeviceKind::Cpu => {
                let backend = CpuBackend::new(threads)?;
                let model = model::load(backend, &files, &spec, &table, &shard, &room, progress)?;
                step::boxed(model, &room)
            }
            DeviceKind::Cuda(_) | DeviceKind::Metal => {
                let backend = CandleBackend::new(candle_backend::device(device)?)?;
                let model = model::load(backend, &files, &spec, &table, &shard, &room, progress)?;
                step::boxed(model, &room)
            }
        };
        Ok(Stage { steps, memory })
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

/// What [`Stage::load`] would take.
///
/// # Errors
/// Where the header is not that of a model that can be run, the shard is not a part of it, or the room is none.
pub fn plan_check(header: &Header, shard: &Shard, room: &StageRoom) -> Result<StageMemory, LoadError> {
    Ok(StageNeeds::new(header, shard, room)?.memory)
}
