//! Messages of the control plane.

mod enrolment;
mod telemetry;
mod to_coordinator;
mod to_worker;
