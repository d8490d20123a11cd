//! The standard `grpc.health.v1` service: what probes of orchestrators and load balancers ask.

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::pb::{HealthCheckRequest, health_check_response};
use tonic_health::server::{HealthReporter, HealthService};

use crate::control_client::{self, ControlError};
use crate::control_server::ServeError;
use crate::identity::{TransportIdentity, WorkerIdentity};
use crate::ids::Peer;
use crate::tls_listener::{self, TlsListener};

/// Names that the service answers for: the whole process, and the control service.
const SERVICES: [&str; 2] = ["", "brigade.v1.Control"];

/// A handle on what the health service says. Clones share it; a new one says that nothing is served yet.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// Not serving, until told otherwise.
    pub async fn new() -> Health {
        let health = Health(HealthReporter::new());
        health.set_serving(false).await;
        health
    }

    /// Says whether requests would be served; whoever watches is told at once.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    pub(crate) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.0.clone()))
    }
}

/// Serves health alone, on a worker's own port, to whoever trusts its CA; ends once `shutdown` is cancelled.
///
/// # Errors
/// Where the identity gives no TLS configuration, or serving fails.
pub async fn serve_health(
    listener: TcpListener,
    identity: &WorkerIdentity,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let tls = identity.tls().control_server()?;
    let listener = TlsListener::start(listener, tls, shutdown.clone());
    let router = tls_listener::server().add_service(health.service());
    listener.serve(router, shutdown).await
}

/// Asks `peer`'s health service at `addr` (`host:port`), as `identity`, whether it serves.
///
/// # Errors
/// Where `peer` does not answer there.
pub async fn check_health(
    addr: &str,
    identity: &TransportIdentity,
    peer: &Peer,
) -> Result<bool, ControlError> {
    let connection = control_client::connect(addr, identity, peer).await?;
    let mut client = HealthClient::new(connection.channel);
    let request = HealthCheckRequest { service: String::new() };
    let response = client.check(request).await.map_err(|status| ControlError::from_status(addr, &status))?;
    Ok(response.into_inner().status() == health_check_response::ServingStatus::Serving)
}
