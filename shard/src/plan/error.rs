//! Why there is no plan.

use std::fmt;
use std::ops::RangeInclusive;

use super::rooms::{largest, least_room, room, sequence_tokens};
use super::search::Search;
use super::{MAX_DEVICES, PlanInput};
use crate::cost::{Cost, PAGE_TOKENS, Room};
use crate::kernels::Kernels;
use crate::layers::{LayerRange, Shard};
use crate::units::Bytes;

/// The missing memory is found to within this many bytes, and rounded up to it.
const SHORTAGE_STEP: u64 = 4 << 10;

/// Why a model cannot be placed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum PlanError {
    /// There is nothing to plan with.
    #[error("there is no worker to place the model on: join one")]
    NoDevices,
    /// More devices than the search can tell apart.
    #[error("{devices} workers are more than a plan can have, {MAX_DEVICES}: use fewer")]
    TooManyDevices { devices: usize },
    /// More stages are asked for than there are devices.
    #[error(
        "{wanted} stages need as many workers, but there are {devices}: join more or ask for fewer stages"
    )]
    TooFewDevices { wanted: usize, devices: usize },
    /// A stage would have no layer.
    #[error("{stages} stages are more than the model has layers, {layers}: ask for at most {layers} workers")]
    MoreStagesThanLayers { stages: usize, layers: usize },
    /// The layers that each stage is to hold are not the model's.
    #[error(
        "{} is no split of this model: its {layers} layers must be shared out, at least one to every stage, and these are {sum}",
        listed(split)
    )]
    Split { split: Vec<usize>, sum: usize, layers: usize },
    /// The split has more stages than there are devices, or fewer than are asked for.
    #[error(
        "a split into {stages} stages needs {stages} workers, and there are {devices} of which at least {least} get one: \
         give the layers of as many stages as workers"
    )]
    SplitStages { stages: usize, least: usize, devices: usize },
    /// A device's calibrated speed is no speed.
    #[error("worker {name} reports a speed that is zero or not a number: calibrate it again")]
    Speed { name: String },
    /// A device or its machine has a rate that is none.
    #[error(
        "{what} of worker {name} is zero or not a number, or it names a machine that is not there: say what it really is"
    )]
    Rate { name: String, what: &'static str },
    /// A link's cost is no cost.
    #[error("the links' round trip or rate is negative, zero or not a number")]
    Hop,
    /// The context asked for is none that the model can have.
    #[error("a context of {asked} tokens is not possible: the model was trained for 1 to {model}")]
    Context { asked: u32, model: u32 },
    /// The model fits, but not with another one beside it.
    #[error(
        "the model fits, but the draft model needs {needed} on one worker beside it, and at most {left} are left: give \
         workers more memory, lower the context, join another worker, or leave the draft model out"
    )]
    NoRoomForDraft { needed: Bytes, left: Bytes },
    /// Devices that cannot reach each other would have to be neighbours.
    #[error(
        "{pairs} cannot reach each other's data port over UDP, and no order of the workers keeps them apart: let UDP \
         through between them, or join another worker"
    )]
    Apart { pairs: String },
    /// No memory would suffice, since devices cannot compute parts of the model.
    #[error("{}", no_kernels_in_words(lacking))]
    NoKernels {
        /// Each device that lacks something, with what that is.
        lacking: Vec<(String, Kernels)>,
    },
    /// The devices have too little memory together.
    #[error("{0}")]
    TooLittleMemory(Box<MemoryShortage>),
}

fn listed(split: &[usize]) -> String {
    let each: Vec<String> = split.iter().map(usize::to_string).collect();
    each.join(",")
}

fn no_kernels_in_words(lacking: &[(String, Kernels)]) -> String {
    let each: Vec<String> =
        lacking.iter().map(|(name, kernels)| format!("{name} has no kernels for {kernels}")).collect();
    format!(
        "the workers cannot compute this model: {}; join a worker on a processor (`--device cpu`), which has kernels for \
         everything",
        each.join("; ")
    )
}

/// How much memory is missing, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryShortage {
    /// What the workers would have to offer together: `offered` and `missing`.
    pub needed: Bytes,
    /// What the workers offer together.
    pub offered: Bytes,
    /// The least that must be added: to one worker, or to all evenly, whichever is less.
    pub missing: Bytes,
    /// The worker that the missing memory would be best added to; `None` where all need some of it.
    pub add_to: Option<String>,
    /// What `needed` was computed for.
    pub room: Room,
    /// What a worker must offer to hold the larger end of the model with one layer, where no worker here does: joining
    /// smaller ones would not help.
    pub least_worker: Option<Bytes>,
    /// A shorter context than the stated one that would fit, in tokens.
    pub shorter_context: Option<u32>,
    /// Every worker that can compute some of the model.
    pub devices: Vec<DeviceRoom>,
    /// Those that cannot, and what they have no kernels for.
    pub unable: Vec<(String, Kernels)>,
}

/// A worker with too little memory, or just not enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRoom {
    /// Its name.
    pub name: String,
    /// What it offers.
    pub budget: Bytes,
    /// What the smallest useful shard, one layer, would take on it.
    pub smallest_shard: Bytes,
    /// How many layers in the middle of the model it could hold.
    pub layers: usize,
}

impl fmt::Display for MemoryShortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: Bytes| format!("{:.1} MiB", bytes.as_mib());
        // Rounded up, so that whoever adds what they read has added enough.
        let mib_up = |bytes: Bytes| format!("{:.1} MiB", (bytes.as_mib() * 10.0).ceil() / 10.0);
        let place = match &self.add_to {
            Some(name) => format!("give {name} that much more"),
            None => {
                let each = Bytes(self.missing.0 / self.devices.len().max(1) as u64);
                format!("give every worker {} more", mib_up(each))
            }
        };
        write!(
            f,
            "too little memory: the model needs {} more ({} with a context of {} tokens, the workers offer {}); \
             {place}, or join another worker",
            mib_up(self.missing),
            mib_up(self.needed),
            self.room.context,
            mib(self.offered),
        )?;
        if let Some(least) = self.least_worker {
            write!(f, " of at least {}, which an end of the model takes", mib_up(least))?;
        }
        if let Some(context) = self.shorter_context {
            write!(f, ", or lower the context to {context} tokens")?;
        }
        for (index, device) in self.devices.iter().enumerate() {
            let separator = if index == 0 { ": " } else { "; " };
            write!(f, "{separator}{} offers {}, ", device.name, mib(device.budget))?;
            match device.layers {
                0 => write!(f, "its smallest useful shard takes {}", mib_up(device.smallest_shard))?,
                1 => write!(f, "enough for one layer")?,
                n => write!(f, "enough for {n} layers")?,
            }
        }
        for (name, lacking) in &self.unable {
            write!(f, "; {name} cannot help, it has no kernels for {lacking}")?;
        }
        Ok(())
    }
}

/// Says who cannot reach whom.
pub(super) fn apart(input: &PlanInput) -> PlanError {
    let name = |device: usize| input.devices.get(device).map_or("?", |device| device.name.as_str());
    let pairs: Vec<String> =
        input.apart.iter().map(|(one, other)| format!("{} and {}", name(*one), name(*other))).collect();
    PlanError::Apart { pairs: pairs.join(", ") }
}

/// Says which devices cannot compute what, where no memory would make up for that.
pub(super) fn no_kernels(cost: &Cost, input: &PlanInput, min_stages: usize) -> Option<PlanError> {
    let whole = cost.needs(&cost.whole());
    let lacking = input.devices.iter().map(|device| (device.name.clone(), device.kernels.lacking(whole)));
    let lacking: Vec<(String, Kernels)> = lacking.filter(|(_, lacking)| *lacking != Kernels::NONE).collect();
    let ample = Search::new(cost, input).with_budgets(vec![Bytes(u64::MAX); input.devices.len()]);
    let room = least_room(cost, input);
    let fits = || stage_counts(&ample, input, min_stages).any(|stages| ample.fits(&room, stages));
    (!lacking.is_empty() && !fits()).then_some(PlanError::NoKernels { lacking })
}

/// The numbers of stages that a plan may have.
fn stage_counts(search: &Search<'_>, input: &PlanInput, min_stages: usize) -> RangeInclusive<usize> {
    match input.split.len() {
        0 => min_stages..=search.budgets().len().min(search.layers()),
        stages => stages..=stages,
    }
}

/// What a device lacks that can hold no layer of a model; `None` where it can hold some.
pub(super) fn lacking_everywhere(cost: &Cost, kernels: Kernels) -> Option<Kernels> {
    let mut all = Kernels::NONE;
    for layer in 0..cost.layer_count() {
        let shard = Shard::of(LayerRange { start: layer, end: layer + 1 }, cost.layer_count());
        let lacking = kernels.lacking(cost.needs(&shard));
        if lacking == Kernels::NONE {
            return None;
        }
        all = all.and(lacking);
    }
    Some(all)
}

/// Finds out how much memory is missing.
pub(super) fn shortage(cost: &Cost, input: &PlanInput, min_stages: usize) -> PlanError {
    let mut unable = Vec::new();
    let mut input = input.clone();
    input.devices.retain(|device| {
        let lacking = lacking_everywhere(cost, device.kernels);
        unable.extend(lacking.map(|lacking| (device.name.clone(), lacking)));
        lacking.is_none()
    });
    let (search, input) = (&Search::new(cost, &input), &input);
    let room_wanted = least_room(cost, input);
    let counts = stage_counts(search, input, min_stages);
    let fits = |search: &Search<'_>, room: &Room| counts.clone().any(|n| search.fits(room, n));
    // Enough for any device to hold any shard.
    let ample = search.bytes(LayerRange { start: 0, end: search.layers() }, &room_wanted);
    let steps = ample.0.div_ceil(SHORTAGE_STEP) + 1;
    let added = |index: Option<usize>, steps: u64| -> Vec<Bytes> {
        let extra = Bytes(steps * SHORTAGE_STEP);
        let budgets = search.budgets().iter().enumerate();
        budgets.map(|(i, b)| if index.is_none_or(|index| index == i) { *b + extra } else { *b }).collect()
    };
    let least_steps = |index: Option<usize>| -> Option<u64> {
        let enough = |n: u64| fits(&search.with_budgets(added(index, n)), &room_wanted);
        // `largest` finds the last amount that is too little, since too little has no gaps either.
        enough(steps).then(|| largest(0, steps, |n| !enough(n)) + 1)
    };
    let biggest =
        (0..input.devices.len()).max_by_key(|i| (search.budgets()[*i], usize::MAX - i)).unwrap_or(0);
    let for_all = least_steps(None).unwrap_or(steps);
    let total_for_all = for_all * input.devices.len() as u64;
    let for_one = least_steps(Some(biggest)).filter(|n| *n <= total_for_all);
    let (missing_steps, add_to) = match for_one {
        Some(n) => (n, Some(input.devices[biggest].name.clone())),
        None => (total_for_all, None),
    };
    let offered: Bytes = search.budgets().iter().copied().sum();
    let missing = Bytes(missing_steps * SHORTAGE_STEP);
    PlanError::TooLittleMemory(Box::new(MemoryShortage {
        needed: offered + missing,
        offered,
        missing,
        add_to,
        room: room_wanted,
        least_worker: least_worker(search, &room_wanted),
        shorter_context: shorter_context(input, |room| fits(search, room)),
        devices: (0..input.devices.len())
            .map(|device| device_room(search, input, device, &room_wanted))
            .collect(),
        unable,
    }))
}

/// What the larger end of the model takes with one layer, where that is more than any device offers.
fn least_worker(search: &Search<'_>, room: &Room) -> Option<Bytes> {
    let layers = search.layers();
    let first = search.bytes(LayerRange { start: 0, end: 1.min(layers) }, room);
    let last = search.bytes(LayerRange { start: layers.saturating_sub(1), end: layers }, room);
    let larger = first.max(last);
    search.budgets().iter().all(|budget| *budget < larger).then_some(larger)
}

/// The longest context below the stated one that fits for all sequences.
fn shorter_context(input: &PlanInput, fits: impl Fn(&Room) -> bool) -> Option<u32> {
    let page = u64::from(PAGE_TOKENS);
    let fits = |pages: u64| {
        let context = (pages * page) as u32;
        fits(&room(input, context, sequence_tokens(context) * u64::from(input.parallel.max(1))))
    };
    let most = u64::from(input.context?) / page;
    (most > 0 && fits(1)).then(|| (largest(1, most, fits) * page) as u32)
}

fn device_room(search: &Search<'_>, input: &PlanInput, device: usize, room: &Room) -> DeviceRoom {
    let budget = search.budgets()[device];
    // Layers after the first and before the last, where there are any, so that no end is counted.
    let (first, last) = if search.layers() > 2 { (1, search.layers() - 1) } else { (0, search.layers()) };
    let holds = |n: u64| {
        let range = LayerRange { start: first, end: first + n as usize };
        n == 0 || search.bytes(range, room) <= budget
    };
    let layers = largest(0, (last - first) as u64, holds) as usize;
    let name = input.devices[device].name.clone();
    DeviceRoom { name, budget, smallest_shard: search.smallest_shard(room), layers }
}
