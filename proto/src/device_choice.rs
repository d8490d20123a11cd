//! What `--device` asks for, of both programs.

use std::str::FromStr;

use crate::control::DeviceKind;

/// Which devices workers are to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// This one.
    One(DeviceKind),
    /// The best that the worker's build and machine have.
    Auto,
    /// Every card, with a worker process each; the processor where there is none.
    All,
}

/// A text that asks for no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a device: write cpu, cuda:N (N is the card's number, from 0), metal, auto (the best that is there) or all \
     (every card, with a worker process each)"
)]
pub struct UnknownChoice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "all" => Ok(DeviceChoice::All),
            _ => text.parse().map(DeviceChoice::One).map_err(|_| UnknownChoice(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_people_write_them() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("all".parse(), Ok(DeviceChoice::All));
        assert_eq!("cuda:2".parse(), Ok(DeviceChoice::One(DeviceKind::Cuda(2))));
        assert_eq!("cpu".parse(), Ok(DeviceChoice::One(DeviceKind::Cpu)));
        for text in ["", "best", "AUTO", "all:1", "cuda:-1"] {
            let error = text.parse::<DeviceChoice>().expect_err(text).to_string();
            assert!(error.contains("auto") && error.contains("all") && error.contains("cuda:N"), "{error}");
        }
    }
}
