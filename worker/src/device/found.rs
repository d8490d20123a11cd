//! Which devices there are, and which of them is the best.

use std::fmt;

use brigade_proto::control::DeviceKind;

/// Whether there are devices of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The program was built without them.
    NotBuilt,
    /// The program could use them, and there is none: why.
    Absent(String),
    /// So many, at least one.
    Present(u32),
}

impl Presence {
    /// How many there are.
    pub fn count(&self) -> u32 {
        match self {
            Presence::NotBuilt | Presence::Absent(_) => 0,
            Presence::Present(count) => *count,
        }
    }

    /// Why there is none; `None` where there is one.
    fn why_not(&self, feature: &str) -> Option<String> {
        match self {
            Presence::NotBuilt => Some(format!("this build has no {feature}")),
            Presence::Absent(why) => Some(why.clone()),
            Presence::Present(_) => None,
        }
    }
}

/// Which devices other than the processor there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// NVIDIA's cards, numbered from 0.
    pub cuda: Presence,
    /// Apple's GPU.
    pub metal: Presence,
}

impl Found {
    /// All of them, the best first.
    pub fn cards(&self) -> Vec<DeviceKind> {
        let metal = (self.metal.count() > 0).then_some(DeviceKind::Metal);
        (0..self.cuda.count()).map(DeviceKind::Cuda).chain(metal).collect()
    }

    /// The device that computes the fastest: the first card, or else the processor.
    pub fn best(&self) -> DeviceKind {
        self.cards().first().copied().unwrap_or(DeviceKind::Cpu)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cards = self.cards();
        if !cards.is_empty() {
            let labels: Vec<String> = cards.iter().map(DeviceKind::to_string).collect();
            return write!(f, "there is {}", labels.join(", "));
        }
        let why = [self.cuda.why_not("CUDA"), self.metal.why_not("Metal")];
        write!(f, "there is no card: {}", why.into_iter().flatten().collect::<Vec<_>>().join(", and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cuda: Presence, metal: Presence) -> Found {
        Found { cuda, metal }
    }

    #[test]
    fn cards_come_before_apples_gpu_and_that_before_the_processor() {
        use Presence::{Absent, NotBuilt, Present};
        let absent = || Absent("the driver shows no card".to_owned());
        assert_eq!(found(Present(2), Present(1)).best(), DeviceKind::Cuda(0));
        assert_eq!(found(NotBuilt, Present(1)).best(), DeviceKind::Metal);
        assert_eq!(found(absent(), NotBuilt).best(), DeviceKind::Cpu);
        let all = [DeviceKind::Cuda(0), DeviceKind::Cuda(1), DeviceKind::Metal];
        assert_eq!(found(Present(2), Present(1)).cards(), all);
        assert_eq!(found(absent(), NotBuilt).cards(), []);
    }

    #[test]
    fn why_there_is_no_card_is_said() {
        let none = found(Presence::Absent("the driver shows no card".to_owned()), Presence::NotBuilt);
        assert_eq!(
            none.to_string(),
            "there is no card: the driver shows no card, and this build has no Metal"
        );
        assert_eq!(found(Presence::Present(2), Presence::NotBuilt).to_string(), "there is cuda:0, cuda:1");
    }
}
