//! What one more device would bring, and what that costs.

use serde::Serialize;

/// What one more device brings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIfRow {
    /// The device.
    pub device: String,
    /// In US dollars; `None` where nobody says.
    pub price_usd: Option<f64>,
    /// With it.
    pub after: Option<Speeds>,
    /// What it adds; where nothing held the model before, all that there is then.
    pub gain: Option<Speeds>,
    /// US dollars for each token per second more that the objective looks at; `None` where nothing is gained, or nobody
    /// says the price.
    pub usd_per_token_per_s: Option<f64>,
    /// What should be done then.
    pub verdict: String,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speeds {
    /// Of one stream.
    pub one_stream: f64,
    /// Of all streams together.
    pub many_streams: f64,
}

/// The least gain that is one, in tokens per second: below it, predictions that are equal differ by rounding.
const LEAST_GAIN: f64 = 1e-6;

impl WhatIfRow {
    /// The row of a device, from the speeds before and with it; `one_stream` is whether the objective looks at one.
    pub fn new(
        device: String,
        price_usd: Option<f64>,
        before: Option<Speeds>,
        after: Option<Speeds>,
        one_stream: bool,
        verdict: String,
    ) -> WhatIfRow {
        let gain = after.map(|after| match before {
            Some(before) => Speeds {
                one_stream: after.one_stream - before.one_stream,
                many_streams: after.many_streams - before.many_streams,
            },
            None => after,
        });
        let figure = gain.map(|gain| if one_stream { gain.one_stream } else { gain.many_streams });
        let usd_per_token_per_s = match (price_usd, figure) {
            (Some(price), Some(gain)) if gain > LEAST_GAIN => Some(price / gain),
            _ => None,
        };
        WhatIfRow { device, price_usd, after, gain, usd_per_token_per_s, verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(
        before: Option<Speeds>,
        after: Option<Speeds>,
        price_usd: Option<f64>,
        one_stream: bool,
    ) -> WhatIfRow {
        WhatIfRow::new("card".to_owned(), price_usd, before, after, one_stream, "cluster".to_owned())
    }

    #[test]
    fn the_price_is_for_what_is_gained() {
        let before = Some(Speeds { one_stream: 10.0, many_streams: 20.0 });
        let after = Some(Speeds { one_stream: 14.0, many_streams: 30.0 });
        assert_eq!(row(before, after, Some(2000.0), true).usd_per_token_per_s, Some(500.0));
        assert_eq!(row(before, after, Some(2000.0), false).usd_per_token_per_s, Some(200.0));
        assert_eq!(row(before, after, None, false).usd_per_token_per_s, None);
        assert_eq!(row(before, before, Some(2000.0), false).usd_per_token_per_s, None, "nothing is gained");
    }

    #[test]
    fn where_nothing_held_the_model_all_is_gained() {
        let after = Some(Speeds { one_stream: 4.0, many_streams: 8.0 });
        assert_eq!(row(None, after, Some(800.0), true).gain, after);
        assert_eq!(row(None, None, Some(800.0), true).gain, None, "nor with it");
    }
}
