//! Messages of the control plane.

mod enrolment;
mod to_coordinator;
mod to_worker;
