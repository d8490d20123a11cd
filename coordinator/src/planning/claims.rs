//! Published throughput, held against what memory bandwidth allows.
//!
//! To decode a token of one stream, a device reads all weights that the token is multiplied with. Whatever the program, it
//! cannot be faster than its memory: bandwidth divided by these bytes is a limit, here with the bandwidth that the vendor
//! states and not a byte for the cache. Devices that compute one after another add up their times; only where each of them
//! reads its share of every layer at the same time (tensor parallel) is the limit that of all of them together.

use brigade_shard::catalogue::{self, CatalogueDevice, CatalogueModel, Mix, PublishedRow, UnknownName};
use brigade_shard::cost::Cost;
use brigade_shard::kernels::Kernels;
use brigade_shard::plan::{HopCost, Links, Objective, PlanDevice, PlanError, PlanInput, plan};
use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use super::cluster::{NOMINAL_BANDWIDTH_SHARE, NOMINAL_FLOPS_SHARE, UNKNOWN_FLOPS};

/// Context for which a model must fit, in tokens: a question and a short answer. Claims do not state theirs.
pub const CONTEXT: u32 = 512;
/// Rows of a prompt at a time, for which there is workspace.
const STEP_ROWS: u32 = 64;
/// Bytes of a cached value and of one on a link: 16 bits.
const HALF_BYTES: u32 = 2;
/// What is not on a card is read at most as fast as a desktop's memory gives it, in decimal GB per second: two channels
/// of DDR5-6400. A link to the card is slower still.
pub const HOST_MEMORY_GB_PER_S: f64 = 102.4;
/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;
/// A claim below this share of what is predicted deserves a word.
const FAR_BELOW: f64 = 0.5;

/// Every published figure with its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimsReport {
    /// The share of the nominal bandwidth that predictions count on.
    pub efficiency: f64,
    /// Context for which a model must fit, in tokens.
    pub context: u32,
    /// What is not on a card is read at this rate at most, in decimal GB per second.
    pub host_memory_gb_per_s: f64,
    /// The figures.
    pub claims: Vec<JudgedClaim>,
}

/// A published figure with its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedClaim {
    /// Who says it: the letter of an article, or `peers` for measurements of other programs' users.
    pub source: String,
    /// The devices in the source's words.
    pub devices: String,
    /// The model in the source's words.
    pub model: String,
    /// The quantisation in the source's words; may be empty.
    pub quant: String,
    /// What was counted.
    pub metric: String,
    /// Tokens per second, as claimed.
    pub claimed_tokens_per_s: f64,
    /// What else is known of the claim; may be empty.
    pub note: String,
    /// What it was held against; `None` where it cannot be judged.
    pub figures: Option<ClaimFigures>,
    /// Whether it can be.
    pub verdict: ClaimVerdict,
    /// Why, for people.
    pub reason: String,
}

/// What a claim is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimFigures {
    /// The catalogue's device.
    pub device: String,
    /// How many of them.
    pub count: usize,
    /// The link between them; `None` for one device.
    pub link: Option<String>,
    /// The catalogue's model.
    pub model: String,
    /// The mix of types that it is taken to be in.
    pub mix: String,
    /// Nominal bandwidth of one device, in decimal GB per second.
    pub bandwidth_gb_per_s: f64,
    /// Bytes of all weights.
    pub weight_bytes: Bytes,
    /// Bytes of the weights that one token is multiplied with.
    pub active_bytes: Bytes,
    /// What all devices together may hold.
    pub budget_bytes: Bytes,
    /// All memory of the devices together.
    pub memory_bytes: Bytes,
    /// Whether they hold the model with a short context.
    pub fits: bool,
    /// Tokens per second that devices one after another cannot exceed, with all weights in their memory.
    pub limit_tokens_per_s: f64,
    /// The same for all devices at the same time; `None` for one device.
    pub parallel_limit_tokens_per_s: Option<f64>,
    /// The same where cards hold what they can and a desktop's memory the rest; `None` where the model fits, or the memory
    /// is shared already.
    pub offload_limit_tokens_per_s: Option<f64>,
    /// What this program's planner predicts of devices one after another; `None` where they do not hold the model.
    pub predicted_tokens_per_s: Option<f64>,
}

/// Whether a claim can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimVerdict {
    /// Nothing speaks against it.
    Possible,
    /// No device of that bandwidth is so fast, whatever the program.
    AboveTheLimit,
    /// The model does not fit, and there is no other memory to hold the rest.
    DoesNotFit,
    /// The model does not fit the cards: a part of it must be read from elsewhere for every token.
    NeedsOffload,
    /// The source does not say enough.
    CannotBeJudged,
}

/// All published figures that the catalogue has, each with its verdict.
pub fn claims() -> ClaimsReport {
    ClaimsReport {
        efficiency: NOMINAL_BANDWIDTH_SHARE,
        context: CONTEXT,
        host_memory_gb_per_s: HOST_MEMORY_GB_PER_S,
        claims: catalogue::published().iter().map(judge).collect(),
    }
}

/// One figure with its verdict.
fn judge(row: &PublishedRow) -> JudgedClaim {
    let (figures, verdict, reason) = match resolve(row).and_then(|setup| setup.figures()) {
        Ok(figures) => {
            let (verdict, reason) = verdict(row.value, &figures);
            (Some(figures), verdict, reason)
        }
        Err(why) => (None, ClaimVerdict::CannotBeJudged, why),
    };
    JudgedClaim {
        source: row.source.clone(),
        devices: row.devices.clone(),
        model: row.model.clone(),
        quant: row.quant.clone(),
        metric: row.metric.clone(),
        claimed_tokens_per_s: row.value,
        note: row.note.clone(),
        figures,
        verdict,
        reason,
    }
}

/// What a row speaks of.
struct Setup {
    device: CatalogueDevice,
    count: usize,
    link: Option<(String, HopCost)>,
    model: &'static CatalogueModel,
    mix: Mix,
}

/// What a row speaks of, by the catalogue.
///
/// # Errors
/// Where it does not say enough, in words.
fn resolve(row: &PublishedRow) -> Result<Setup, String> {
    let unknown = |error: UnknownName| error.to_string();
    if row.metric != "decode" {
        return Err(format!("it counts {}, and does not say in which quantisation", row.metric));
    }
    let model = row.as_model.as_deref().ok_or("the source does not say which model in which quantisation")?;
    let device = row.as_device.as_deref().ok_or("nobody states the bandwidth of the device")?;
    let (model, mix) = catalogue::model(model).map_err(unknown)?;
    let link = row.as_link.as_deref().map(catalogue::link).transpose().map_err(unknown)?;
    Ok(Setup {
        device: catalogue::device(device).map_err(unknown)?,
        count: row.as_count,
        link: link.map(|link| (link.name.clone(), link.hop)),
        model,
        mix,
    })
}

impl Setup {
    /// What a claim about it is held against.
    ///
    /// # Errors
    /// Where there is no plan for another reason than too little memory, in words.
    fn figures(self) -> Result<ClaimFigures, String> {
        let cost = self.model.cost(self.mix);
        let weights = cost.weights(&cost.whole());
        let active = active_bytes(&cost);
        let bandwidth = self.device.bandwidth_gb_per_s * 1e9;
        let limit = bandwidth / active;
        let budget = self.device.budget() * self.count as u64;
        let predicted = match plan(&cost, &self.input()) {
            Ok(plan) => Some(plan.predicted.decode_tokens_per_s),
            Err(PlanError::TooLittleMemory(_)) => None,
            Err(other) => return Err(other.to_string()),
        };
        let offload = (predicted.is_none() && !self.device.unified).then(|| {
            let resident = (budget.0 as f64 / weights.0 as f64).min(1.0);
            1.0 / (active * resident / bandwidth + active * (1.0 - resident) / (HOST_MEMORY_GB_PER_S * 1e9))
        });
        Ok(ClaimFigures {
            count: self.count,
            link: self.link.map(|(name, _)| name),
            model: self.model.name.clone(),
            mix: self.mix.to_string(),
            bandwidth_gb_per_s: self.device.bandwidth_gb_per_s,
            device: self.device.name,
            weight_bytes: weights,
            active_bytes: Bytes(active as u64),
            budget_bytes: budget,
            memory_bytes: Bytes((self.device.memory_gib * GIB) as u64) * self.count as u64,
            fits: predicted.is_some(),
            limit_tokens_per_s: limit,
            parallel_limit_tokens_per_s: (self.count > 1).then_some(limit * self.count as f64),
            offload_limit_tokens_per_s: offload,
            predicted_tokens_per_s: predicted,
        })
    }

    /// What to plan for: one stream with a short context on all devices, by programs that can compute everything.
    fn input(&self) -> PlanInput {
        let flops = self.device.fp16_tflops.map(|tflops| tflops * 1e12 * NOMINAL_FLOPS_SHARE);
        let device = |number: usize| PlanDevice {
            name: format!("{} {}", self.device.name, number + 1),
            budget: self.device.budget(),
            bandwidth_bytes_per_s: self.device.bandwidth_gb_per_s * 1e9 * NOMINAL_BANDWIDTH_SHARE,
            flops_per_s: flops.unwrap_or(UNKNOWN_FLOPS),
            threads: None,
            kernels: Kernels::CPU,
            held: None,
            kernel_speeds: Vec::new(),
            host: None,
            offload_bytes_per_s: None,
        };
        PlanInput {
            devices: (0..self.count).map(device).collect(),
            context: Some(CONTEXT),
            parallel: 1,
            min_stages: self.count,
            split: Vec::new(),
            step_rows: STEP_ROWS,
            cache_value_bytes: HALF_BYTES,
            wire_value_bytes: HALF_BYTES,
            links: Links::all(self.link.as_ref().map_or_else(HopCost::default, |(_, hop)| *hop)),
            hosts: Vec::new(),
            objective: Objective::OneStream,
            apart: Vec::new(),
        }
    }
}

/// Bytes of the weights that one token is multiplied with. The embedding's one row is not among them.
fn active_bytes(cost: &Cost) -> f64 {
    let layers: Bytes = cost.layers().iter().map(|layer| layer.active).sum();
    (layers + cost.head().active).0 as f64
}

/// Whether `claimed` tokens per second can be, and why.
fn verdict(claimed: f64, figures: &ClaimFigures) -> (ClaimVerdict, String) {
    let single = figures.limit_tokens_per_s;
    let highest = figures.parallel_limit_tokens_per_s.unwrap_or(single);
    let gb = |bytes: Bytes| bytes.0 as f64 / 1e9;
    let (active, bandwidth) = (gb(figures.active_bytes), figures.bandwidth_gb_per_s);
    // Where no memory holds the rest, how fast it would be is not even the question.
    if !figures.fits && figures.offload_limit_tokens_per_s.is_none() {
        return too_large(claimed, figures);
    }
    if claimed > highest {
        let all = if figures.count > 1 { " each, all at the same time" } else { "" };
        let reason = format!(
            "a token reads {active:.1} GB: {bandwidth:.0} GB/s{all} allow {highest:.1} tokens/s, and not {claimed:.1}"
        );
        return (ClaimVerdict::AboveTheLimit, reason);
    }
    if !figures.fits {
        return too_large(claimed, figures);
    }
    if claimed > single {
        let reason = format!(
            "only where all devices read at the same time (tensor parallel): one after another they allow {single:.1}"
        );
        return (ClaimVerdict::Possible, reason);
    }
    let share = format!("{:.0}% of what bandwidth allows", claimed / single * 100.0);
    let reason = match figures.predicted_tokens_per_s {
        Some(predicted) if claimed < FAR_BELOW * predicted => {
            format!("{share}, far below the {predicted:.1} that are predicted")
        }
        _ => share,
    };
    (ClaimVerdict::Possible, reason)
}

/// The verdict on a claim about a model that the devices do not hold.
fn too_large(claimed: f64, figures: &ClaimFigures) -> (ClaimVerdict, String) {
    let gb = |bytes: Bytes| bytes.0 as f64 / 1e9;
    let (weights, budget) = (gb(figures.weight_bytes), gb(figures.budget_bytes));
    let sizes =
        format!("{weights:.0} GB of weights and a cache do not fit the {budget:.0} GB that may be used");
    match figures.offload_limit_tokens_per_s {
        Some(limit) => {
            let than = if claimed > limit { "which is below the claim" } else { "which is above the claim" };
            let reason =
                format!("{sizes}; with the rest in a desktop's memory at most {limit:.1} tokens/s, {than}");
            (ClaimVerdict::NeedsOffload, reason)
        }
        None if figures.weight_bytes < figures.memory_bytes => {
            let memory = gb(figures.memory_bytes);
            let reason =
                format!("{sizes}; only with nearly all of the {memory:.0} GB lent to the GPU they would");
            (ClaimVerdict::DoesNotFit, reason)
        }
        None => (ClaimVerdict::DoesNotFit, sizes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(claim: &JudgedClaim) -> String {
        let JudgedClaim { source, devices, model, quant, claimed_tokens_per_s, verdict, reason, .. } = claim;
        format!("{source} | {devices} | {model} {quant} | {claimed_tokens_per_s} | {verdict:?}: {reason}")
    }

    #[test]
    fn claims_above_the_physical_limit_are_found_and_honest_ones_are_not() {
        let report = claims();
        let mut marked = 0;
        for claim in &report.claims {
            if claim.note.contains("above the physical limit") {
                marked += 1;
                assert_eq!(claim.verdict, ClaimVerdict::AboveTheLimit, "{}", said(claim));
            }
            // Measurements of other programs' users, and results of a formula that divides bandwidth by size.
            if claim.source == "peers" || claim.note.starts_with("formula") {
                assert_ne!(claim.verdict, ClaimVerdict::AboveTheLimit, "{}", said(claim));
            }
        }
        assert_eq!(marked, 2);
        let above = |claim: &&JudgedClaim| claim.verdict == ClaimVerdict::AboveTheLimit;
        let above: Vec<(&str, &str, f64)> = report
            .claims
            .iter()
            .filter(above)
            .map(|claim| (claim.source.as_str(), claim.devices.as_str(), claim.claimed_tokens_per_s))
            .collect();
        assert_eq!(
            above,
            [
                ("A", "M4 Max 128GB x1", 52.0),
                ("A", "M4 Max 128GB x1", 26.0),
                ("D", "M4 Max 128GB x1", 28.0),
                ("D", "M5 Max 128GB x1", 32.5),
                ("E", "M4 Max 64GB x1", 30.0),
                ("E", "RTX 4090 x1", 27.5),
                ("E", "RTX 5090 x1", 47.5),
            ]
        );
    }

    #[test]
    fn every_limit_is_bandwidth_divided_by_what_a_token_reads() {
        let report = claims();
        let judged: Vec<&ClaimFigures> =
            report.claims.iter().filter_map(|claim| claim.figures.as_ref()).collect();
        assert!(judged.len() >= 55, "{}", judged.len());
        for figures in judged {
            let limit = figures.bandwidth_gb_per_s * 1e9 / figures.active_bytes.0 as f64;
            assert!((figures.limit_tokens_per_s / limit - 1.0).abs() < 1e-6, "{figures:?}");
            assert!(figures.active_bytes <= figures.weight_bytes, "{figures:?}");
            assert!(figures.predicted_tokens_per_s.is_none_or(|predicted| predicted < limit), "{figures:?}");
            assert_eq!(figures.predicted_tokens_per_s.is_some(), figures.fits, "{figures:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let report = claims();
        let verdict = |source: &str, devices: &str, model: &str, claimed: f64| {
            let same = |claim: &&JudgedClaim| {
                claim.source == source
                    && claim.devices.starts_with(devices)
                    && claim.model == model
                    && claim.claimed_tokens_per_s == claimed
            };
            let claim = report.claims.iter().find(same).unwrap();
            (claim.verdict, claim.reason.clone())
        };
        for (devices, model, claimed) in [
            ("M4 Max 128GB x1", "Llama 3 405B", 2.1),
            ("M4 Max 128GB x1", "DeepSeek V3 (called 236B MoE)", 6.1),
        ] {
            assert_eq!(verdict("A", devices, model, claimed).0, ClaimVerdict::DoesNotFit);
        }
        let (offload, reason) = verdict("A", "RTX 5090 x1", "Llama 3 70B", 22.0);
        assert_eq!(offload, ClaimVerdict::NeedsOffload);
        assert!(reason.ends_with("which is below the claim"), "{reason}");
        let (parallel, reason) = verdict("B", "RTX 5090 x2", "Gemma 3 27B", 141.0);
        assert_eq!(parallel, ClaimVerdict::Possible);
        assert!(reason.contains("tensor parallel"), "{reason}");
        // A measurement whose label cannot be right: 713 GB in a machine with 512.
        let (mislabelled, reason) = verdict("peers", "M3 Ultra x1", "DeepSeek-V3.1", 21.1);
        assert_eq!(mislabelled, ClaimVerdict::DoesNotFit);
        assert!(reason.starts_with("713 GB of weights"), "{reason}");
        let (unknown, reason) = verdict("C", "M5 Ultra x1", "Llama 4 Maverick 400B", 6.0);
        assert_eq!(unknown, ClaimVerdict::CannotBeJudged);
        assert_eq!(reason, "nobody states the bandwidth of the device");
    }

    #[test]
    fn reports_survive_json() {
        let report = claims();
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains("\"verdict\":\"above-the-limit\""), "{json}");
        let read: ClaimsReport = serde_json::from_str(&json).unwrap();
        assert_eq!(read.claims.len(), report.claims.len());
    }
}
