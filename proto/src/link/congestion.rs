//! How much may be under way on a link: quinn's Cubic, which never gets to less than a step.
//!
//! Congestion control asks for less after each loss and for more as long as all that it allows is used. Decode frames are
//! small and seldom, so that the second never happens: on a network that loses a packet now and then, the window would
//! shrink to two datagrams and stay there, and each frame would take several round trips. Such losses are not the link's
//! own doing, as a frame fits into the queue of any network that serves at all.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// Makes the controllers of connections.
#[derive(Debug)]
pub(super) struct CubicWithFloor {
    pub(super) cubic: Arc<CubicConfig>,
    /// The least that may be under way, in bytes.
    pub(super) floor_bytes: u64,
}

impl ControllerFactory for CubicWithFloor {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(self.cubic.clone(), now, current_mtu);
        Box::new(WithFloor { cubic, floor_bytes: self.floor_bytes })
    }
}

#[derive(Clone, Debug)]
struct WithFloor {
    cubic: Cubic,
    floor_bytes: u64,
}

impl Controller for WithFloor {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().max(self.floor_bytes)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn losses_never_leave_less_than_the_floor() {
        let (start, floor_bytes) = (Instant::now(), 50_000);
        let factory = Arc::new(CubicWithFloor { cubic: Arc::default(), floor_bytes });
        let mut cubic = CubicConfig::default();
        cubic.initial_window(1_000_000);
        let large = CubicWithFloor { cubic: Arc::new(cubic), floor_bytes };
        for (factory, first) in [(factory, floor_bytes), (Arc::new(large), 1_000_000)] {
            let mut controller = factory.build(start, 1200);
            assert_eq!(controller.window(), first);
            let mut last = first;
            for second in 1..50 {
                let now = start + Duration::from_secs(second);
                controller.on_congestion_event(now, now, second % 7 == 0, 1200);
                assert!(controller.window() <= last && controller.window() >= floor_bytes);
                last = controller.window();
            }
            assert_eq!(last, floor_bytes);
        }
    }
}
