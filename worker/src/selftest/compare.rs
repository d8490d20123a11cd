//! How far two results are from each other, and whether that is too far.

use brigade_shard::tensor_type::TensorType;
use serde::Serialize;

/// A comparison of a device with the reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What was compared: `kernel`, `family` or `model`.
    pub what: &'static str,
    /// Which of them.
    pub name: String,
    /// The type of the weights; `None` where there are none.
    #[serde(rename = "type")]
    pub kind: Option<TensorType>,
    /// How far the device is from the reference, as a share of the reference's size; `None` where the device has failed.
    pub difference: Option<f64>,
    /// How far it may be.
    pub tolerance: f64,
    /// What the device said where it has failed.
    pub problem: Option<String>,
}

impl Check {
    /// A comparison of what the reference gives with what the device gives, or says.
    pub fn new(
        what: &'static str,
        name: impl Into<String>,
        kind: Option<TensorType>,
        tolerance: f64,
        compared: Result<f64, String>,
    ) -> Check {
        let (difference, problem) = match compared {
            Ok(difference) => (Some(difference), None),
            Err(problem) => (None, Some(problem)),
        };
        Check { what, name: name.into(), kind, difference, tolerance, problem }
    }

    /// Whether the device has computed, and is near enough. What is not a number is not near.
    pub fn has_passed(&self) -> bool {
        self.difference.is_some_and(|difference| difference <= self.tolerance)
    }

    /// The difference as a share of what is allowed; the further from passing the larger.
    pub(super) fn share(&self) -> f64 {
        match self.difference {
            Some(difference) if !difference.is_nan() => difference / self.tolerance,
            _ => f64::INFINITY,
        }
    }
}

/// The root of the squares of all differences, as a share of that of the reference's values. Not a number where `found` has
/// values that are none, or not as many values; also where the reference is all zeros.
pub fn difference(reference: &[f32], found: &[f32]) -> f64 {
    if reference.len() != found.len() {
        return f64::NAN;
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let pairs = reference.iter().zip(found);
    let apart = squares(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (apart / squares(&mut reference.iter().map(|value| f64::from(*value)))).sqrt()
}

/// The [`difference`] of the usual row: the median, the larger of two. Where two experts' scores are next to each other, a row
/// may rightly take either, so that single rows tell little. Not a number where any row's is not.
pub fn usual_difference(reference: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    if reference.len() != found.len() || reference.is_empty() {
        return f64::NAN;
    }
    let mut rows: Vec<f64> = reference.iter().zip(found).map(|(a, b)| difference(a, b)).collect();
    if rows.iter().any(|row| row.is_nan()) {
        return f64::NAN;
    }
    rows.sort_by(f64::total_cmp);
    rows[rows.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(compared: Result<f64, String>) -> Check {
        Check::new("kernel", "product", Some(TensorType::Q4K), 0.03, compared)
    }

    #[test]
    fn a_kernel_that_is_off_does_not_pass() {
        let reference: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        let near: Vec<f32> = reference.iter().map(|value| value * 1.02).collect();
        let passed = check(Ok(difference(&reference, &near)));
        assert!(passed.has_passed() && (passed.share() - 2.0 / 3.0).abs() < 1e-3, "{passed:?}");
        // One row too far, as a kernel has it that does not look where its input begins.
        let mut shifted = reference.clone();
        shifted.rotate_left(1);
        shifted[99] = 0.0;
        let swapped: Vec<f32> = reference.iter().rev().copied().collect();
        let zeros = vec![0.0; 100];
        let mut holed = reference.clone();
        holed[7] = f32::NAN;
        for wrong in [shifted, swapped, zeros, holed, reference[1..].to_vec()] {
            let check = check(Ok(difference(&reference, &wrong)));
            assert!(!check.has_passed() && check.share() > 1.0, "{check:?}");
        }
        let failed = check(Err("no kernel".to_owned()));
        assert!(!failed.has_passed() && failed.share() == f64::INFINITY, "{failed:?}");
    }

    #[test]
    fn single_rows_may_differ_and_half_of_them_may_not() {
        let row = |value: f32| vec![value; 4];
        let reference = vec![row(1.0); 5];
        let one = [row(1.0), row(3.0), row(1.0), row(1.0), row(1.0)];
        assert_eq!(usual_difference(&reference, &one), 0.0);
        let three = [row(3.0), row(3.0), row(1.0), row(1.0), row(3.0)];
        assert_eq!(usual_difference(&reference, &three), 2.0);
        let holed = [row(1.0), row(f32::NAN), row(1.0), row(1.0), row(1.0)];
        assert!(usual_difference(&reference, &holed).is_nan());
        assert!(usual_difference(&reference, &one[..4]).is_nan() && usual_difference(&[], &[]).is_nan());
    }
}
