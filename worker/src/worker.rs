//! A running worker: what it is made of, and how it starts.
//!
//! Its certificate comes first, then what its device can do, then the parts that the loop of this module's one private
//! part ties together.

mod hub;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use brigade_proto::control::{Capabilities, DeviceKind};
use brigade_proto::delivery::Authority;
use brigade_proto::health::Health;
use brigade_proto::identity::{TransportIdentity, WorkerIdentity};
use brigade_proto::link::Transport;
use brigade_shard::plan::KernelSpeed;
use brigade_shard::units::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::hub::{Events, Hub, IDLE_LIMITS};
use crate::addresses::local_address_towards;
use crate::calibrate::{Calibration, calibrate};
use crate::data::DataPlane;
use crate::delivery::{Activity, Cache, CacheError, Home, Manners, Service, ServiceError, WorkerShelf};
use crate::device::{self, Devices};
use crate::driver::Driver;
use crate::engine::Engine;
use crate::loads::{Elsewhere, Loads};
use crate::offload::{self, Offload};
use crate::session::{Session, SessionError, identity};
use crate::settings::Settings;
use crate::state_dir::{StateDir, StateDirError};
use crate::stretch::Stretch;
use crate::telemetry::{EngineCounters, Meters};

/// Why a worker could not run, or run on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// It cannot be attached.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Its device cannot be used.
    #[error("failed to measure the device: {0}")]
    Device(String),
    /// A port cannot be listened on.
    #[error("failed to listen for {what} at {at}: {reason}; choose another address with {flag}")]
    Bind {
        /// For whom.
        what: &'static str,
        /// Where.
        at: SocketAddr,
        /// What the operating system said.
        reason: String,
        /// What to change.
        flag: &'static str,
    },
    /// The task that keeps it attached has ended with a defect.
    #[error("nothing keeps this worker attached to its coordinator any more, which is a defect: restart it")]
    Unattached,
    /// The operating system gives no thread.
    #[error("failed to start the engine's thread: {0}")]
    Thread(std::io::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Weights cannot be fetched.
    #[error("failed to start what fetches weights: {0}")]
    Delivery(#[from] ServiceError),
    /// The operating system gives no thread for what is told of the machine.
    #[error("failed to start the thread that looks at the system: {0}")]
    MeterThread(std::io::Error),
}

/// Joins the coordinator of `settings` and serves it until `ending` is cancelled or it says to end; to be run by `driver`.
///
/// # Errors
/// Where it cannot start, or the coordinator wants nothing of it.
pub async fn run(
    settings: Settings,
    driver: Arc<Driver>,
    ending: CancellationToken,
) -> Result<(), WorkerError> {
    let state = StateDir::open(&settings.state)?;
    let coordinator = settings.coordinator.as_str();
    let identity =
        match identity(coordinator, settings.token.as_ref(), settings.name.as_str(), &state, &ending).await {
            Err(SessionError::Interrupted) => return Ok(()),
            identity => identity?,
        };
    let calibrated = tokio::select! {
        () = ending.cancelled() => return Ok(()),
        calibrated = measure(settings.device, settings.threads, settings.budget) => calibrated?,
    };
    let offload_bytes_per_s = tokio::select! {
        () = ending.cancelled() => return Ok(()),
        rate = disk_rate(settings.offload, settings.models.clone()) => rate?,
    };
    let at = match settings.data {
        Some(at) => at,
        None => SocketAddr::new(any_address_towards(coordinator).await, 0),
    };
    let transport =
        Transport::bind(at, TransportIdentity::from(&identity), IDLE_LIMITS).map_err(|error| {
            WorkerError::Bind { what: "neighbours", at, reason: error.to_string(), flag: "--data" }
        })?;
    let data_address = transport.local_addr();
    let counters = Arc::new(EngineCounters::default());
    let (engine, engine_events) = Engine::start(driver, counters.clone()).map_err(WorkerError::Thread)?;
    let (data, data_events) = DataPlane::start(transport, engine.lanes().clone());
    let offload = settings.offload != Offload::No;
    let (delivery, elsewhere) = deliveries(&settings, state.path(), data_address, &identity, &counters)?;
    let delivery_port = delivery.0.local_addr().port();
    let (device, threads) = (settings.device, settings.threads);
    let (loads, load_events) = Loads::new(
        settings.models.clone(),
        device,
        threads,
        settings.mmap,
        offload,
        settings.convert,
        Some(elsewhere),
    );
    let meters = Meters::start(settings.device).map_err(WorkerError::MeterThread)?;
    let health = Health::new().await;
    let serving_health = serve_health(&settings, &identity, &health, &ending).await?;
    let session = Session {
        coordinator: coordinator.to_owned(),
        capabilities: capabilities(&settings, calibrated, offload_bytes_per_s, delivery_port),
        data: data_address,
        identity_file: state.path().join("worker.pem").display().to_string(),
        identity,
    };
    let session_ending = CancellationToken::new();
    let (session, session_events) = session.start(session_ending.clone());
    if settings.stretch != Stretch::NONE {
        tracing::warn!("every step takes {} times as long as it needs, as --stretch says", settings.stretch);
    }
    let (room, watched) = ((settings.budget, settings.stretch), (counters, meters));
    let hub = Hub::new(room, engine, data, loads, watched, health, delivery);
    let events =
        Events { session: session_events, engine: engine_events, loads: load_events, data: data_events };
    let result = hub.run(events, session, session_ending, &ending).await;
    ending.cancel();
    if let Some(task) = serving_health
        && let Err(error) = task.await
    {
        tracing::error!(%error, "the task that serves health ended with a defect");
    }
    // The lock outlives everything that used the directory.
    drop(state);
    result
}

/// Starts what fetches weights and gives them to others, beside the data plane's socket.
fn deliveries(
    settings: &Settings,
    state: &Path,
    data: SocketAddr,
    identity: &WorkerIdentity,
    counters: &Arc<EngineCounters>,
) -> Result<((Service, Home), Elsewhere), WorkerError> {
    let place = settings.cache.clone().unwrap_or_else(|| state.join("cache"));
    let identity = TransportIdentity::from(identity);
    let authority = Authority::of(identity.clone());
    let cache = Arc::new(Cache::open(place, settings.cache_limit, authority)?);
    let activity = Activity::of(counters.clone());
    let shelf = Arc::new(WorkerShelf::new(cache.clone(), activity.clone()));
    let (home, at) = (Home::default(), SocketAddr::new(data.ip(), 0));
    let manners = Manners { share: settings.fetch_share };
    let (service, delivery) =
        Service::start(at, identity, cache, home.clone(), shelf.clone(), activity, manners)?;
    Ok(((service, home), Elsewhere { delivery, shelf }))
}

/// Measures the device on a thread of its own.
async fn measure(device: DeviceKind, threads: usize, room: Bytes) -> Result<Calibration, WorkerError> {
    let began = Instant::now();
    let measured = tokio::task::spawn_blocking(move || calibrate(device, threads, room)).await;
    let calibration = measured
        .map_err(|error| WorkerError::Device(error.to_string()))?
        .map_err(|error| WorkerError::Device(error.to_string()))?;
    tracing::info!(
        "this device reads {:.1} GB/s of weights and computes {:.0} GFLOP/s with {threads} thread(s); found out in {:.2} s",
        calibration.bandwidth_bytes_per_s / 1e9,
        calibration.flops_per_s / 1e9,
        began.elapsed().as_secs_f64(),
    );
    Ok(calibration)
}

/// How fast layers are read for every step, in bytes per second; `None` where they are not, or nobody knows. Measures the
/// disk on a thread of its own.
async fn disk_rate(offload: Offload, models: Vec<PathBuf>) -> Result<Option<f64>, WorkerError> {
    match offload {
        Offload::No => return Ok(None),
        Offload::Stated(rate) => return Ok(Some(rate.0 as f64)),
        Offload::Measured => {}
    }
    let measured = tokio::task::spawn_blocking(move || offload::measure(&models)).await;
    match measured.map_err(|error| WorkerError::Device(error.to_string()))? {
        Ok(rate) => {
            tracing::info!(
                "layers that do not fit are read at {:.2} GB/s: {} of {} were, {}",
                rate.bytes_per_s / 1e9,
                rate.bytes,
                rate.path.display(),
                if rate.direct { "by direct reads of the disk" } else { "through the system's cache" }
            );
            Ok(Some(rate.bytes_per_s))
        }
        Err(error) => {
            tracing::warn!(
                "no plan will have this worker read layers for every step, as nobody knows how fast it is: {error}; say it \
                 with --offload-rate, or start this worker again when a model is there"
            );
            Ok(None)
        }
    }
}

/// All interfaces, in the address family that the coordinator is reached by.
async fn any_address_towards(coordinator: &str) -> IpAddr {
    match local_address_towards(coordinator).await {
        Ok(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        Ok(IpAddr::V4(_)) | Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

async fn serve_health(
    settings: &Settings,
    identity: &WorkerIdentity,
    health: &Health,
    ending: &CancellationToken,
) -> Result<Option<JoinHandle<()>>, WorkerError> {
    let Some(at) = settings.health else {
        return Ok(None);
    };
    let listener = tokio::net::TcpListener::bind(at).await.map_err(|error| WorkerError::Bind {
        what: "health checks",
        at,
        reason: error.to_string(),
        flag: "--health",
    })?;
    let (identity, health, ending) = (identity.clone(), health.clone(), ending.clone());
    Ok(Some(tokio::spawn(async move {
        if let Err(error) = brigade_proto::health::serve_health(listener, &identity, health, ending).await {
            tracing::error!(%error, "failed to serve health checks");
        }
    })))
}

fn capabilities(
    settings: &Settings,
    calibration: Calibration,
    offload_bytes_per_s: Option<f64>,
    delivery_port: u16,
) -> Capabilities {
    let stretch = settings.stretch.factor();
    let stretched = |speed: &KernelSpeed| KernelSpeed { per_s: speed.per_s / stretch, ..*speed };
    Capabilities {
        name: settings.name.as_str().to_owned(),
        host: settings.host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: settings.device,
        device_name: device::Here.name(settings.device).unwrap_or_else(|| match settings.device {
            DeviceKind::Cpu => processor_name(),
            card => card.to_string(),
        }),
        budget: settings.budget,
        threads: u32::try_from(settings.threads).unwrap_or(u32::MAX),
        // Plans count on what it will take.
        bandwidth_bytes_per_s: calibration.bandwidth_bytes_per_s / stretch,
        flops_per_s: calibration.flops_per_s / stretch,
        data_addresses: Vec::new(),
        delivery_port,
        stretch,
        kernel_speeds: calibration.kernel_speeds.iter().map(stretched).collect(),
        // A stage that sleeps leaves the machine to others.
        shared_host: calibration.shared_host.filter(|_| settings.stretch == Stretch::NONE),
        offload_bytes_per_s: offload_bytes_per_s.map(|rate| rate / stretch),
        converts: settings.convert,
    }
}

/// What the processor is called.
pub(crate) fn processor_name() -> String {
    let brand = sysinfo::System::new().ok().and_then(|mut system| {
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        system.cpus().first().map(|cpu| cpu.brand().trim().to_owned())
    });
    brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
