//! Published claims as a table: what is claimed, what bandwidth allows, and the verdict.

use std::fmt::Write as _;

use super::table::{Align, Table};
use crate::planning::claims::{ClaimVerdict, ClaimsReport, JudgedClaim};

/// A verdict in words.
fn words(verdict: ClaimVerdict) -> &'static str {
    match verdict {
        ClaimVerdict::Possible => "possible",
        ClaimVerdict::AboveTheLimit => "above the limit",
        ClaimVerdict::DoesNotFit => "does not fit",
        ClaimVerdict::NeedsOffload => "needs offload",
        ClaimVerdict::CannotBeJudged => "cannot be judged",
    }
}

/// Every claim as a line of a table, then how many there are of each verdict and how it was judged.
pub fn render_claims(report: &ClaimsReport) -> String {
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("DEVICES", Align::Left),
        ("MODEL", Align::Left),
        ("CLAIMED", Align::Right),
        ("LIMIT", Align::Right),
        ("PREDICTED", Align::Right),
        ("VERDICT", Align::Left),
        ("WHY", Align::Left),
    ]);
    for claim in &report.claims {
        let figures = claim.figures.as_ref();
        table.row([
            claim.source.clone(),
            claim.devices.clone(),
            model(claim),
            rate(Some(claim.claimed_tokens_per_s)),
            rate(figures.map(|figures| figures.limit_tokens_per_s)),
            rate(figures.and_then(|figures| figures.predicted_tokens_per_s)),
            words(claim.verdict).to_owned(),
            claim.reason.clone(),
        ]);
    }
    let mut text = table.to_string();
    let count = |verdict| report.claims.iter().filter(|claim| claim.verdict == verdict).count();
    let verdicts = [
        ClaimVerdict::Possible,
        ClaimVerdict::AboveTheLimit,
        ClaimVerdict::DoesNotFit,
        ClaimVerdict::NeedsOffload,
        ClaimVerdict::CannotBeJudged,
    ];
    let counts: Vec<String> =
        verdicts.into_iter().map(|verdict| format!("{} {}", count(verdict), words(verdict))).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n{} claims: {}", report.claims.len(), counts.join(", "));
    let _ = writeln!(
        text,
        "Rates are tokens per second of one stream. The limit is the vendor's bandwidth divided by the weights that a token is \
         multiplied with, for devices one after another; predictions count on {:.0}% of that bandwidth. A model fits where \
         its weights and a cache of {} tokens do.",
        report.efficiency * 100.0,
        report.context
    );
    text
}

fn model(claim: &JudgedClaim) -> String {
    if claim.quant.is_empty() { claim.model.clone() } else { format!("{} {}", claim.model, claim.quant) }
}

/// Tokens per second; `-` where there are none.
fn rate(tokens_per_s: Option<f64>) -> String {
    tokens_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planning::claims::claims;

    #[test]
    fn claims_are_shown_with_limit_and_verdict() {
        let mut report = claims();
        report.claims.retain(|claim| claim.source == "D" && claim.devices.starts_with("M4 Max"));
        let text = render_claims(&report);
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("SOURCE   DEVICES"), "{text}");
        let claim = lines.next().unwrap();
        for word in ["D ", "M4 Max 128GB x1", "70B Q4", "28.0", "above the limit", "a token reads 41.9 GB"] {
            assert!(claim.contains(word), "{word}: {claim}");
        }
        assert!(text.contains("1 claims: 0 possible, 1 above the limit"), "{text}");
        assert!(text.contains("80% of that bandwidth"), "{text}");
    }
}
