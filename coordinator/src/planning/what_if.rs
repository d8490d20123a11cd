//! What one more device would bring, and what that costs.

use brigade_shard::plan::{Gain, Objective, Verdict, WhatIf};
use serde::Serialize;

/// The least gain that is one, in tokens per second: below it, predictions that are equal differ by rounding.
const LEAST_GAIN: f64 = 1e-6;

/// What one more device brings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIfRow {
    /// The device.
    pub device: String,
    /// In US dollars; `None` where nobody says.
    pub price_usd: Option<f64>,
    /// Tokens per second of one stream.
    pub one_stream: Step,
    /// Tokens per second of all streams together.
    pub many_streams: Step,
    /// US dollars for each token per second more that the objective looks at; `None` where nothing is gained, or nobody
    /// says the price.
    pub usd_per_token_per_s: Option<f64>,
    /// What should be done then, for people.
    pub verdict: String,
}

/// A speed without the device and with it, in tokens per second; `None` where nothing holds the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    /// Without it.
    pub before: Option<f64>,
    /// With it.
    pub after: Option<f64>,
}

impl Step {
    /// What is gained; where nothing held the model before, all that there is then.
    pub fn gain(self) -> Option<f64> {
        self.after.map(|after| after - self.before.unwrap_or(0.0))
    }
}

impl From<Gain> for Step {
    fn from(gain: Gain) -> Step {
        Step { before: gain.before, after: gain.after }
    }
}

impl WhatIfRow {
    /// The row of what was found for a device.
    pub fn new(device: String, price_usd: Option<f64>, found: &WhatIf, objective: Objective) -> WhatIfRow {
        let (one_stream, many_streams) = (Step::from(found.one_stream), Step::from(found.many_streams));
        let step = match objective {
            Objective::OneStream => one_stream,
            Objective::ManyStreams => many_streams,
        };
        let usd_per_token_per_s = match (price_usd, step.gain()) {
            (Some(price), Some(gain)) if gain > LEAST_GAIN => Some(price / gain),
            _ => None,
        };
        let verdict = match &found.verdict {
            Ok(Verdict::OneBox) => "one box".to_owned(),
            Ok(Verdict::Cluster) => "cluster".to_owned(),
            Ok(Verdict::OneBoxWithOffload) => "one box with offload".to_owned(),
            Ok(Verdict::NotAtAll { missing }) => format!("not at all: {missing} are missing"),
            Err(error) => format!("not at all: {error}"),
        };
        WhatIfRow { device, price_usd, one_stream, many_streams, usd_per_token_per_s, verdict }
    }
}

#[cfg(test)]
mod tests {
    use brigade_shard::units::Bytes;

    use super::*;

    fn row(
        one: (Option<f64>, Option<f64>),
        many: (Option<f64>, Option<f64>),
        objective: Objective,
    ) -> WhatIfRow {
        let gain = |(before, after)| Gain { before, after };
        let verdict = Ok(match many.1 {
            Some(_) => Verdict::Cluster,
            None => Verdict::NotAtAll { missing: Bytes::mib(3) },
        });
        let found =
            WhatIf { candidate: 0, verdict, plan: None, one_stream: gain(one), many_streams: gain(many) };
        WhatIfRow::new("card".to_owned(), Some(2000.0), &found, objective)
    }

    #[test]
    fn the_price_is_for_what_the_objective_gains() {
        let (one, many) = ((Some(10.0), Some(14.0)), (Some(20.0), Some(30.0)));
        assert_eq!(row(one, many, Objective::OneStream).usd_per_token_per_s, Some(500.0));
        assert_eq!(row(one, many, Objective::ManyStreams).usd_per_token_per_s, Some(200.0));
        let same = (Some(20.0), Some(20.0));
        assert_eq!(row(one, same, Objective::ManyStreams).usd_per_token_per_s, None, "nothing is gained");
    }

    #[test]
    fn where_nothing_held_the_model_all_is_gained() {
        let possible = row((None, Some(4.0)), (None, Some(8.0)), Objective::ManyStreams);
        assert_eq!((possible.many_streams.gain(), possible.usd_per_token_per_s), (Some(8.0), Some(250.0)));
        let still_not = row((None, None), (None, None), Objective::ManyStreams);
        assert_eq!((still_not.many_streams.gain(), still_not.usd_per_token_per_s), (None, None));
        assert!(still_not.verdict.contains("3.0 MiB are missing"), "{}", still_not.verdict);
    }
}
