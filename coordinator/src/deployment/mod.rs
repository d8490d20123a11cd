//! One model being served: from waiting for workers, over loading and connecting, to serving; and back when a stage is
//! lost.
//!
//! A pure state machine: events, the members and the time go in, commands come out. Every plan has an epoch of its own,
//! which is made durable before a worker hears of it. A plan goes through its steps on all stages together: all load,
//! all connect, all are activated; the first request is sent only after every stage has said that it is active. When a
//! stage fails or its worker is lost, running requests are kept for a new plan over what is left; plans that keep failing
//! are tried again ever more slowly. While a plan serves, a better one may be prepared beside it, or one that does without
//! a worker that is drained, or one that is pinned to certain workers; then all goes over to that at once.

mod beside;
mod better;
mod devices;
mod links;
mod pin;
mod running;
mod transitions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use brigade_proto::control::{CacheDtype, StageReport, ToWorker};
use brigade_proto::delivery::Edition;
use brigade_proto::ids::{DeploymentId, Epoch, Incarnation, Peer, WorkerId};
use brigade_proto::step::WireDtype;
use brigade_shard::layers::LayerRange;
use brigade_shard::plan::Plan;
use brigade_shard::units::Bytes;

use crate::membership::SessionId;
use crate::planning::LiveDevices;
use crate::scheduler::{Outlook, Pipeline};
use crate::status::Phase;

use self::better::Better;
pub use self::better::{JOIN_PAUSE, QUIET_PAUSE, WORTH_A_MOVE};
pub(crate) use self::devices::devices;
use self::links::Links;
pub use self::pin::{AtHand, END_TOLD, Pin, Pinned};
use self::running::Running;
pub use self::running::{Progress, StageRun};

/// How long a stage may load without saying anything: a large tensor from a slow disk.
pub const LOAD_SILENCE: Duration = Duration::from_secs(120);
/// How long the links of a plan may take: several dial attempts over a slow network.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long activation may take: one message each way.
pub const ACTIVATE_LIMIT: Duration = Duration::from_secs(10);
/// How long a worker that has attached anew may take to answer a probe: one message each way.
pub const CONFIRM_LIMIT: Duration = Duration::from_secs(3);
/// A stage hangs when it computes a step for longer than this, and for longer than [`HUNG_TIMES`] what the largest one
/// should take.
const HUNG_LEAST: Duration = Duration::from_secs(4);
/// How many times as long as it should a step may take before its stage counts as hung: machines do other things, too.
const HUNG_TIMES: f64 = 50.0;
/// After this long in service a plan has proved itself, and a failure does not count as repeated.
const SETTLED: Duration = Duration::from_secs(5);
/// The wait before the third plan in a row; it doubles with each further one. The second is tried at once.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
/// Up to this wait a plan counts as on its way: requests wait for it.
const SHORT_BACK_OFF: Duration = Duration::from_secs(2);
/// For how long a worker that could not load its stage is left out of plans that can do without it. A file that was put
/// right, or memory that was freed, is found by itself after that; a worker that was started anew is taken at once.
pub const LEFT_OUT: Duration = Duration::from_secs(60);
/// The longest wait between two plans.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);
/// Sequences that a pipeline serves at a time, where its cache holds them: enough that decoding is bound by arithmetic.
const SEQUENCES: u32 = 32;

/// Cuts the model for the devices, into at least as many stages as said, with no pair of those devices as neighbours, and
/// with so many layers in each stage where that is said; the error is for people.
pub type Planner =
    Box<dyn Fn(&LiveDevices, usize, &[(usize, usize)], &[usize]) -> Result<Plan, String> + Send>;

/// What is served, and how.
#[derive(Clone, Debug)]
pub struct DeploymentSettings {
    /// The deployment's id.
    pub id: DeploymentId,
    /// The coordinator's start.
    pub incarnation: Incarnation,
    /// The newest epoch that was ever used.
    pub last_epoch: Epoch,
    /// How many workers must be attached before the first plan is made; they all get a stage.
    pub min_workers: usize,
    /// The model's identity, in hexadecimal.
    pub fingerprint: String,
    /// Of which contents its file is.
    pub edition: Edition,
    /// The base name of the model's file.
    pub file_hint: String,
    /// Sequences of full length that must fit at a time.
    pub parallel: u32,
    /// Most rows of a prompt chunk, and of any step.
    pub prefill_chunk: u32,
    /// How stages keep keys and values.
    pub cache_dtype: CacheDtype,
    /// How hidden states cross links.
    pub wire: WireDtype,
    /// When a plan that serves is given up for another.
    pub moving: Moving,
}

/// When a plan that serves is given up for another, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// For one that is better, and to empty a worker; weights are read ahead.
    Freely,
    /// To empty a worker alone: the cut is not ours to choose. Weights are read ahead.
    ToDrain,
    /// To empty a worker alone, and at once: nobody waits for what is served.
    AtOnce,
}

/// Something that concerns the deployment.
#[derive(Clone, Debug)]
pub enum Event {
    /// The set of attached workers has changed.
    MembersChanged,
    /// An epoch asked for is durable, or could not be made so.
    EpochPersisted {
        /// Which.
        epoch: Epoch,
        /// Whether it is; if not, why.
        result: Result<(), String>,
    },
    /// What ran on the plan before is where it was.
    CaughtUp,
    /// From now on no request runs or waits, or some does.
    Asked {
        /// Whether none does.
        idle: bool,
    },
    /// A worker has reported on its stage.
    Stage {
        /// Which worker.
        worker: WorkerId,
        /// What it said.
        report: StageReport,
    },
    /// A data link from a worker to the coordinator stands.
    LinkUp {
        /// Which worker.
        worker: WorkerId,
    },
    /// A data link between a worker and the coordinator is gone.
    LinkDown {
        /// Which worker.
        worker: WorkerId,
        /// Why, for people.
        reason: String,
    },
    /// A worker has lost a link.
    LinkLost {
        /// Which worker.
        worker: WorkerId,
        /// The other end.
        peer: Peer,
        /// Why, for people.
        reason: String,
    },
    /// A worker has answered a probe. What it has to say of its stage it said before.
    Probed {
        /// Which worker.
        worker: WorkerId,
        /// The probe's number.
        nonce: u64,
    },
    /// A worker has found out whether it reaches another.
    LinkProbed {
        /// The number asked with.
        nonce: u64,
        /// Whether it does.
        reached: bool,
    },
    /// A worker has said for how long it has been computing a step.
    Computing {
        /// Which worker.
        worker: WorkerId,
        /// How long; zero where there is no step.
        time: Duration,
    },
    /// The pipeline does not work as it should.
    Broken {
        /// Why, for people.
        reason: String,
    },
    /// Plans are to be made over these workers alone, for as long as said. [`Deployment::check_pin`] tells whether they can.
    Pin {
        /// Which workers.
        pin: Pin,
        /// Who wants it, for people.
        by: Option<String>,
        /// When the pin ends by itself.
        until: Option<Instant>,
    },
    /// The pin is taken back: the planner decides again.
    Unpin,
    /// The coordinator shuts down.
    Stop,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Make the epoch durable, then say so with [`Event::EpochPersisted`]. Another may be asked for before that.
    PersistEpoch(Epoch),
    /// Send a message; it is lost where the worker is not attached, which is noticed apart from this.
    Send {
        /// To whom.
        worker: WorkerId,
        /// What.
        message: ToWorker,
    },
    /// Find out whether a worker is there.
    Doubt(WorkerId),
    /// Close the coordinator's data links: the next plan opens its own.
    CloseLinks,
    /// Every stage is active: serve requests.
    Start(Pipeline),
    /// Serve no more for now: keep what runs for the next plan.
    Suspend {
        /// Why, for people.
        reason: String,
    },
    /// Another plan takes over, by choice: keep what runs for it. The next commands bring it up.
    Move {
        /// Why, for people.
        reason: String,
    },
    /// What becomes of a better plan: for the log.
    Say {
        /// For people.
        text: String,
    },
    /// What is known of the next plan while none serves.
    LookOut(Outlook),
    /// Serve no more: end what runs.
    Stop {
        /// Why, for people.
        reason: String,
    },
    /// A plan has failed: for the log and the counters.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// What the deployment is doing.
#[derive(Debug)]
enum State {
    /// No plan: not enough workers or memory, or the last plan failed.
    Waiting {
        reason: String,
        /// Not to plan before this moment.
        not_before: Option<Instant>,
    },
    /// A plan is being brought up, or serves.
    Running(Running),
    /// The coordinator shuts down.
    Stopped,
}

/// The controller of one deployment.
pub struct Deployment {
    settings: DeploymentSettings,
    planner: Planner,
    state: State,
    /// The newest epoch that was asked for.
    epoch: Epoch,
    /// Whether some plan has served: from then on fewer workers than wanted at first are better than none.
    has_served: bool,
    /// Plans that failed in a row.
    failures: u32,
    /// The last failure, while nothing has served since.
    last_failure: Option<String>,
    /// Workers that may hold a stage.
    holders: BTreeSet<WorkerId>,
    /// What of the model they have loaded, as far as they have said.
    held: BTreeMap<WorkerId, LayerRange>,
    /// Whether no plan is to be made for now.
    paused: bool,
    /// What other deployments hold on each worker.
    taken: BTreeMap<WorkerId, Bytes>,
    /// Who reaches whom.
    links: Links,
    /// Workers whose device does not get done with a step.
    hung: BTreeSet<WorkerId>,
    /// Workers that could not load their stage: as which session, and when.
    could_not_load: BTreeMap<WorkerId, (SessionId, Instant)>,
    /// What is done about a better plan while one serves.
    better: Better,
    /// Which workers plans are pinned to.
    pin: Option<Pinned>,
    /// Why the last pin ended, where it was not taken back, and when.
    pin_ended: Option<(String, Instant)>,
    commands: VecDeque<Command>,
}

impl Deployment {
    /// A deployment that waits for workers.
    pub fn new(settings: DeploymentSettings, planner: Planner) -> Deployment {
        let reason = waiting_for_workers(0, settings.min_workers.max(1));
        Deployment {
            epoch: settings.last_epoch,
            settings,
            planner,
            state: State::Waiting { reason, not_before: None },
            has_served: false,
            failures: 0,
            last_failure: None,
            holders: BTreeSet::new(),
            held: BTreeMap::new(),
            paused: false,
            taken: BTreeMap::new(),
            links: Links::default(),
            hung: BTreeSet::new(),
            could_not_load: BTreeMap::new(),
            better: Better::default(),
            pin: None,
            pin_ended: None,
            commands: VecDeque::new(),
        }
    }

    /// The deployment's id.
    pub fn id(&self) -> DeploymentId {
        self.settings.id
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Waiting { .. } => Phase::Waiting,
            State::Running(running) => running.phase(),
            State::Stopped => Phase::Stopping,
        }
    }

    /// What it waits for, or why it does not serve; `None` while it serves.
    pub fn reason(&self) -> Option<String> {
        match &self.state {
            State::Waiting { reason, .. } => Some(reason.clone()),
            State::Running(running) => {
                let doing = running.doing()?;
                Some(match &self.last_failure {
                    Some(failure) => format!("{doing}, after a plan failed: {failure}"),
                    None => doing.to_owned(),
                })
            }
            State::Stopped => Some("the coordinator is shutting down".into()),
        }
    }

    /// How hidden states cross links.
    pub fn wire(&self) -> WireDtype {
        self.settings.wire
    }

    /// The number of the plan being brought up or served, or else the newest one's; 0 before the first one of this state
    /// directory.
    pub fn epoch(&self) -> Epoch {
        self.running().map_or(self.epoch, |running| running.fence.epoch)
    }

    /// What is to be said beside that, such as what becomes of a better plan.
    pub fn note(&self) -> Option<&str> {
        self.better.note()
    }

    /// Whether a worker holds something of this deployment, or may.
    pub fn uses(&self, worker: &WorkerId) -> bool {
        self.running().is_some_and(|running| running.stage_of(worker).is_some())
    }

    /// The plan being brought up or served.
    pub fn plan(&self) -> Option<&Plan> {
        self.running().map(|running| &running.plan)
    }

    /// The stages of that plan, first to last.
    pub fn stages(&self) -> &[StageRun] {
        self.running().map_or(&[], |running| &running.stages)
    }

    /// What the largest step should take on the stage that a worker holds; `None` where it holds none.
    pub fn longest_step(&self, worker: &WorkerId) -> Option<Duration> {
        let running = self.running()?;
        Some(running.longest_step(running.stage_of(worker)?, self.settings.prefill_chunk))
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Deployment::handle_timeout`] has something to do next.
    pub fn next_timeout(&self) -> Option<Instant> {
        let next = match &self.state {
            State::Waiting { not_before, .. } => not_before.or_else(|| self.links.next_timeout()),
            State::Running(running) => running.next_timeout().into_iter().chain(self.better_timeout()).min(),
            State::Stopped => return None,
        };
        next.into_iter().chain(self.pin_timeout()).min()
    }

    fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Waiting { .. } | State::Stopped => None,
        }
    }
}

impl fmt::Debug for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deployment { state, epoch, failures, .. } = self;
        f.debug_struct("Deployment")
            .field("epoch", epoch)
            .field("failures", failures)
            .field("state", state)
            .finish_non_exhaustive()
    }
}

fn waiting_for_workers(attached: usize, wanted: usize) -> String {
    let more = wanted.saturating_sub(attached);
    let plural = if more == 1 { "" } else { "s" };
    format!("waiting for {more} more worker{plural} ({attached} of {wanted} attached)")
}

#[cfg(test)]
mod tests;
