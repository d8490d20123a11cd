//! Means of a few samples, and between what they lie.

use super::{Figure, Quantity};

/// Two-sided 95% points of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods,
/// 1.3.6.7.2).
const STUDENT_T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The same of the normal distribution.
const NORMAL: f64 = 1.959_964;

impl Figure {
    /// What samples of a quantity come to, beside what was predicted; `None` where there is no sample.
    pub fn of(quantity: Quantity, samples: Vec<f64>, predicted: Option<f64>) -> Option<Figure> {
        let mean = mean(&samples)?;
        Some(Figure { quantity, mean, interval: interval(&samples), samples, predicted })
    }
}

/// The arithmetic mean; `None` where there is nothing.
pub fn mean(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

/// Between which the mean of what `samples` were drawn from lies with 95% confidence, by Student's t; `None` for fewer
/// than two samples.
pub fn interval(samples: &[f64]) -> Option<(f64, f64)> {
    let freedom = samples.len().checked_sub(1).filter(|freedom| *freedom > 0)?;
    let mean = mean(samples)?;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    let error = (squares / freedom as f64 / samples.len() as f64).sqrt();
    let half = student_t(freedom) * error;
    Some((mean - half, mean + half))
}

/// The two-sided 95% point of Student's t. Past the table by its expansion in the normal distribution's (Abramowitz and
/// Stegun 26.7.5), which is exact to four digits there.
fn student_t(freedom: usize) -> f64 {
    if let Some(t) = STUDENT_T.get(freedom.saturating_sub(1)) {
        return *t;
    }
    let (z, n) = (NORMAL, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / n + second / n.powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_a_known_example() {
        // Mean 5, standard deviation 2.138, of eight samples: 5 ± 2.365 · 2.138 / √8.
        let samples = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        let (low, high) = interval(&samples).unwrap();
        assert!((low - 3.212).abs() < 1e-3 && (high - 6.788).abs() < 1e-3, "{low} to {high}");
        let (low, high) = interval(&[10.0, 12.0]).unwrap();
        assert!((low + 1.706).abs() < 1e-3 && (high - 23.706).abs() < 1e-3, "{low} to {high}");
        assert_eq!(interval(&[3.0, 3.0, 3.0]), Some((3.0, 3.0)));
        assert_eq!((interval(&[3.0]), interval(&[])), (None, None));
    }

    #[test]
    fn the_table_goes_over_into_the_expansion() {
        for (freedom, t) in
            [(1, 12.706), (2, 4.303), (30, 2.042), (31, 2.040), (40, 2.021), (60, 2.000), (120, 1.980)]
        {
            assert!((student_t(freedom) - t).abs() < 6e-4, "{freedom}: {}", student_t(freedom));
        }
    }

    #[test]
    fn a_figure_has_as_many_samples_as_rounds() {
        let figure = Figure::of(Quantity::Decode { streams: 1 }, vec![10.0, 12.0, 11.0], Some(9.0)).unwrap();
        assert_eq!((figure.mean, figure.samples.len(), figure.predicted), (11.0, 3, Some(9.0)));
        let (low, high) = figure.interval.unwrap();
        assert!(low < 10.0 && high > 12.0);
        assert_eq!(Figure::of(Quantity::Decode { streams: 1 }, Vec::new(), None), None);
    }
}
