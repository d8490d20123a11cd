//! Times as people read them.

/// A short time in the unit that people would use; `-` where nothing was measured.
pub(crate) fn microseconds(us: impl Into<u64>) -> String {
    match us.into() {
        0 => "-".to_owned(),
        us @ 1..1_000 => format!("{us} us"),
        us @ 1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        us => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// How long something lasts or ago it was, in whole units.
pub(crate) fn age(seconds: f64) -> String {
    match seconds.max(0.0) as u64 {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!([0_u32, 999, 1_000, 2_500_000].map(microseconds), ["-", "999 us", "1.0 ms", "2.5 s"]);
        let ages = [f64::NAN, -1.0, 119.9, 120.0, 7200.0, 172_800.0].map(age);
        assert_eq!(ages, ["0s", "0s", "119s", "2m", "2h", "2d"]);
    }
}
