//! Whether a device computes what the processor's kernels compute, and how fast.
//!
//! The reference are this program's own kernels on the processor, which compute the same bits on every machine. The device is
//! driven by the same code as when it serves: every kernel on matrices of every type, then a small model of every family, and
//! a model that the user names. On `--device cpu` what is compared is the code for cards, run on candle's processor device.
//! Speeds are measured and shown, and decide nothing.

mod compare;
mod families;
mod hop;
mod kernels;
mod report;
mod speed;

use std::io::{self, Write};
use std::num::NonZeroU16;
use std::path::PathBuf;

use brigade_proto::control::DeviceKind;
use brigade_shard::family::SpecError;
use brigade_shard::model_file::{FileError, Header};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorError;
use clap::Args;

pub use self::compare::{Check, difference, usual_difference};
pub use self::families::{STEPS_ROWS, tiny_logits};
use self::report::Format;
pub use self::report::Report;
use crate::backend::BackendError;
use crate::candle_backend::{self, CandleBackend};
use crate::cli::Device;
use crate::cpu::CpuBackend;
use crate::settings::Machine;
use crate::tiny::{KINDS, TinyError};
use crate::weights::LoadError;

/// Arguments of `selftest`.
#[derive(Args, Clone, Debug)]
pub struct SelftestArgs {
    /// What to test: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    pub device: Device,

    /// Also compare this model's logits: a GGUF file, the first part of a split one, or a directory of safetensors. It must
    /// fit the device, and this machine's memory
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// Compute threads of the reference [default: one per processor]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<NonZeroU16>,

    /// Measure no speeds
    #[arg(long)]
    pub no_speed: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A test that could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum SelftestError {
    /// The device cannot be used, or the model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device or the reference failed where nothing could be told of it.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// A test model could not be made.
    #[error(transparent)]
    Tiny(#[from] TinyError),
    /// There is no room for test models.
    #[error("failed to make a directory for test models in {}: {source}", at.display())]
    Directory { at: PathBuf, source: io::Error },
    /// The model is none.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model cannot be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The model's tensors are not those that it needs.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// The model does not fit the reference.
    #[error(
        "the model takes {needed} on the processor that it is compared with, and this machine has {machine}: give --model a \
         smaller file"
    )]
    TooLittleMemory { needed: brigade_shard::units::Bytes, machine: brigade_shard::units::Bytes },
    /// The link could not be measured.
    #[error("failed to measure a hop: {0}")]
    Hop(String),
    /// The results could not be written.
    #[error("failed to write the results: {0}")]
    Write(#[source] io::Error),
}

/// Tests what `args` say on `machine`, and writes a report to `out`; whether all checks have passed.
///
/// # Errors
/// Where the device cannot be used at all, the model cannot be loaded, or `out` fails. A kernel that fails is a check that
/// has not passed, and no error.
pub fn run(args: &SelftestArgs, machine: &Machine, out: impl Write) -> Result<bool, SelftestError> {
    let kind = args.device.0;
    let device = candle_backend::device(kind)?;
    let threads = args.threads.map_or(machine.parallelism, |threads| usize::from(threads.get()));
    // Said at once, and not when all else is done.
    let model = args.model.as_deref().map(Header::open).transpose()?;
    let mut checks = Vec::new();
    // Each has backends of its own: what a type leaves behind is nobody else's.
    let backends = || -> Result<(CpuBackend, CandleBackend), SelftestError> {
        Ok((CpuBackend::new(threads)?, CandleBackend::new(device.clone())?.converting()?))
    };
    for (tensor_type, _) in KINDS {
        let (mut reference, mut tested) = backends()?;
        checks.extend(kernels::of_type(&mut reference, &mut tested, tensor_type)?);
    }
    let (mut reference, mut tested) = backends()?;
    checks.extend(kernels::without_matrices(&mut reference, &mut tested)?);
    checks.extend(families::all(threads, &device)?);
    if let Some(header) = &model {
        checks.extend(families::of_file(header, threads, &device, kind, machine.memory)?);
    }
    let speeds = match args.no_speed {
        true => None,
        false => Some(speed::measure(kind, &device, threads, machine)?),
    };
    let report = Report::new(kind, threads, checks, speeds);
    let format = if args.json { Format::Json } else { Format::Table };
    report.write(format, out).map_err(SelftestError::Write)?;
    Ok(report.has_passed())
}

/// In which type weights of `kind` lie on a device that candle drives, in rows of whole blocks of every type.
fn stored_as(kind: TensorType) -> TensorType {
    match DeviceKind::Metal.kernels().has(kind) {
        true => kind,
        false => kind.stand_in(kernels::WIDTH as u64).unwrap_or(kind),
    }
}
