//! Amounts of memory, written and read the way users do.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
///
/// Parsed from `65536`, `64MiB`, `64M` (binary, as in llama.cpp and kubectl's `Mi`), `1.5GiB` or `64MB` (decimal);
/// shown in the largest binary unit that keeps it at least one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);

    /// `n` binary megabytes.
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n << 20)
    }

    /// The amount in binary megabytes.
    pub fn as_mib(self) -> f64 {
        self.0 as f64 / (1u64 << 20) as f64
    }

    /// The difference, or zero where `other` is larger.
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match UNITS.iter().find(|(_, shift)| self.0 >> shift > 0) {
            Some((unit, shift)) => write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << shift) as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A memory size that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a memory size: write a number and a unit, such as 64MiB, 1.5GiB or 24GB")]
pub struct ParseBytesError(String);

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseBytesError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "ki" | "kib" => 1024.0,
            "kb" => 1e3,
            "m" | "mi" | "mib" => 1048576.0,
            "mb" => 1e6,
            "g" | "gi" | "gib" => 1073741824.0,
            "gb" => 1e9,
            "t" | "ti" | "tib" => 1099511627776.0,
            "tb" => 1e12,
            _ => return Err(error()),
        };
        let number: f64 = number.parse().map_err(|_| error())?;
        let bytes = number * factor;
        if !(0.0..=9e18).contains(&bytes) {
            return Err(error());
        }
        Ok(Bytes(bytes.round() as u64))
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Bytes;
    fn sub(self, other: Bytes) -> Bytes {
        self.saturating_sub(other)
    }
}

impl Mul<u64> for Bytes {
    type Output = Bytes;
    fn mul(self, n: u64) -> Bytes {
        Bytes(self.0.saturating_mul(n))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, Add::add)
    }
}

/// A number of bytes per second, above 0.
///
/// Parsed from a number of bytes that `/s` follows, such as `3GB/s`; shown in decimal gigabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteRate(pub u64);

/// A rate that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a rate: write an amount for each second, such as 3GB/s or 500MB/s")]
pub struct ParseByteRateError(String);

impl FromStr for ByteRate {
    type Err = ParseByteRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let amount = text.trim().strip_suffix("/s").and_then(|amount| amount.parse::<Bytes>().ok());
        let rate = amount.filter(|bytes| *bytes > Bytes::ZERO).map(|bytes| ByteRate(bytes.0));
        rate.ok_or_else(|| ParseByteRateError(text.to_owned()))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GB/s", self.0 as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_users_write_them() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("64M", 64 << 20),
            ("64Mi", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("24GB", 24_000_000_000),
            ("65536", 65536),
            (" 2 k ", 2048),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.2.3G", "12 parsecs", "1e3"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_fitting_unit() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes::mib(64).to_string(), "64.0 MiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
    }

    #[test]
    fn rates_are_amounts_for_each_second() {
        for (text, rate, shown) in [
            ("3GB/s", 3_000_000_000, "3 GB/s"),
            ("1.5 GB/s ", 1_500_000_000, "1.5 GB/s"),
            ("1MiB/s", 1 << 20, "0.001048576 GB/s"),
        ] {
            let parsed: ByteRate = text.parse().unwrap();
            assert_eq!((parsed.0, parsed.to_string()), (rate, shown.to_owned()), "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        for text in ["", "3GB", "/s", "0/s", "fast/s", "-1GB/s"] {
            assert_eq!(text.parse::<ByteRate>(), Err(ParseByteRateError(text.to_owned())), "{text}");
        }
    }
}
