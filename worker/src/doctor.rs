//! `brigade-worker doctor`: what on this machine may stand between a worker and its neighbours.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use brigade_proto::doctor::{Here, Port, Protocol, Role, Subject, examine};
use brigade_shard::units::Bytes;
use clap::Args;

use crate::cli::WorkerName;
use crate::device;
use crate::settings::{Machine, default_models, default_state};

/// Arguments of `doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// An address that must be reached, there and back: the coordinator's, or another worker's; may be given several times
    #[arg(long, value_name = "ADDR")]
    pub to: Vec<String>,

    /// A coordinator's HTTP, to compare clocks with
    #[arg(long, env = "BRIGADE_URL", value_name = "URL")]
    pub url: Option<String>,

    /// Memory that the worker is to take [default: 80% of this machine's]
    #[arg(long, value_name = "SIZE", env = "BRIGADE_MEMORY")]
    pub memory: Option<Bytes>,

    /// Directory (or file) with models [default: ~/.local/share/brigade/models]
    #[arg(long, value_name = "DIR", env = "BRIGADE_MODELS", value_delimiter = ':')]
    pub models: Vec<PathBuf>,

    /// Directory that keeps this worker's certificate [default: ~/.local/state/brigade-worker/NAME]
    #[arg(long, value_name = "DIR", env = "BRIGADE_STATE")]
    pub state: Option<PathBuf>,

    /// This worker's name [default: the machine's name]
    #[arg(long, env = "BRIGADE_NAME")]
    pub name: Option<WorkerName>,

    /// UDP address of the data plane [default: every interface, any free port]
    #[arg(long, value_name = "ADDR", env = "BRIGADE_DATA")]
    pub data: Option<SocketAddr>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Looks at everything, and says what was found on `out`. Returns whether nothing has failed.
///
/// # Errors
/// Where `out` cannot be written.
pub fn run(args: DoctorArgs, machine: &Machine, mut out: impl Write) -> io::Result<bool> {
    let name = args.name.unwrap_or_else(|| WorkerName::from_host(&machine.host));
    let models = match args.models {
        models if models.is_empty() => default_models(machine).into_iter().collect(),
        models => models,
    };
    let port = |addr| Port { purpose: "data", protocol: Protocol::Udp, addr, flag: "join ADDRESS --data" };
    let subject = Subject {
        role: Role::Worker,
        ports: args.data.map(port).into_iter().collect(),
        state: args.state.or_else(|| default_state(machine, &name)),
        models,
        memory: args.memory,
        to: args.to,
        url: args.url,
    };
    let mut report = examine(&subject, &Here);
    report.findings.extend(device::findings(&Here, &device::Here));
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(!report.has_failed())
}
