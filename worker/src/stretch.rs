//! Stages that take longer than they need, for measurements: what a pipeline of slow devices does can then be seen on a
//! machine with few processors, since a stage that sleeps keeps none of them busy.
//!
//! A worker that is stretched says so to its coordinator, and so do status and metrics.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use brigade_proto::control::StageMemory;
use brigade_proto::step::{StepFrame, WireDtype};

use crate::engine::{Compute, Output};

/// How many times as long as its device needs a stage takes for a step; 1 is no longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch(f64);

/// A value that is no such factor.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a factor to stretch steps by: write a number from 1 to 1000")]
pub struct ParseStretchError(String);

impl Stretch {
    /// Steps take what they need.
    pub const NONE: Stretch = Stretch(1.0);

    /// The factor, from 1 to 1000.
    pub fn factor(self) -> f64 {
        self.0
    }
}

impl FromStr for Stretch {
    type Err = ParseStretchError;

    fn from_str(text: &str) -> Result<Self, ParseStretchError> {
        let factor = text.trim().parse().ok().filter(|factor| (1.0..=1000.0).contains(factor));
        factor.map(Stretch).ok_or_else(|| ParseStretchError(text.to_owned()))
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stage whose steps are followed by sleep, so that they take `stretch` times as long.
pub struct Stretched<C> {
    stage: C,
    stretch: Stretch,
}

impl<C: Compute> Stretched<C> {
    /// Stretches a stage.
    pub fn new(stage: C, stretch: Stretch) -> Stretched<C> {
        Stretched { stage, stretch }
    }
}

impl<C: Compute> Compute for Stretched<C> {
    fn run(&mut self, frame: StepFrame) -> Result<Output, String> {
        let start = Instant::now();
        let output = self.stage.run(frame);
        std::thread::sleep(start.elapsed().mul_f64(self.stretch.0 - 1.0));
        output
    }

    fn clear(&mut self) {
        self.stage.clear();
    }

    fn usage(&self) -> (u32, u32) {
        self.stage.usage()
    }

    fn memory(&self) -> StageMemory {
        self.stage.memory()
    }

    fn set_wire(&mut self, wire: WireDtype) {
        self.stage.set_wire(wire);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, StepId};
    use brigade_proto::step::StepKind;

    use super::*;

    struct Slow(Duration);

    impl Compute for Slow {
        fn run(&mut self, frame: StepFrame) -> Result<Output, String> {
            std::thread::sleep(self.0);
            Ok(Output::Pass(frame))
        }

        fn clear(&mut self) {}

        fn usage(&self) -> (u32, u32) {
            (7, 1)
        }

        fn memory(&self) -> StageMemory {
            StageMemory::default()
        }

        fn set_wire(&mut self, _: WireDtype) {}
    }

    #[test]
    fn a_stretched_step_takes_so_many_times_as_long() {
        let frame = StepFrame {
            fence: Fence { incarnation: Incarnation(1), epoch: Epoch(1) },
            deployment: DeploymentId(1),
            step: StepId(1),
            kind: StepKind::Decode,
            segments: Vec::new(),
            release: Vec::new(),
            short_way: brigade_proto::step::ShortWay::default(),
            timings: Vec::new(),
            hidden: None,
        };
        let mut stage = Stretched::new(Slow(Duration::from_millis(20)), "4".parse().unwrap());
        let start = Instant::now();
        let output = stage.run(frame.clone()).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(80), "{:?}", start.elapsed());
        assert!(matches!(output, Output::Pass(passed) if passed == frame));
        assert_eq!(stage.usage(), (7, 1));
    }

    #[test]
    fn a_factor_is_a_number_from_1_to_1000() {
        assert_eq!("1".parse(), Ok(Stretch::NONE));
        assert_eq!("2.5".parse::<Stretch>().unwrap().to_string(), "2.5");
        for text in ["", "0", "0.5", "1001", "NaN", "inf", "twice"] {
            assert!(text.parse::<Stretch>().is_err(), "{text}");
        }
    }
}
