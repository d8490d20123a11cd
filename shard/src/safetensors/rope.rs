//! Rotary position embedding as `config.json` states it.
//!
//! Older files have `rope_theta` and `rope_scaling`, newer ones both together in `rope_parameters`. The formulas of the
//! scaled kinds are those of Hugging Face's transformers (`modeling_rope_utils.py`).

use std::collections::BTreeSet;
use std::f64::consts::TAU;

use serde_json::{Map, Value as Json};

use super::translation::{Translation, count_of, missing, number_of, unsupported, wrong};
use crate::model_file::{Problem, Value};

/// What a family says of its rope.
pub(super) struct RopeRules {
    /// Width of the part of a head that is turned.
    pub(super) width: u64,
    /// Whether files may leave the base out.
    pub(super) base_may_be_missing: bool,
    /// Whether the family has factors for long and short contexts.
    pub(super) by_context: bool,
    /// Whether the family can be stretched by YaRN.
    pub(super) yarn: bool,
}

/// Members of one object of the configuration, or of the configuration itself.
pub(super) struct Members<'c> {
    /// The object's place, with a dot after it; empty for the configuration itself.
    prefix: String,
    object: &'c Map<String, Json>,
    read: BTreeSet<String>,
}

impl<'c> Members<'c> {
    fn new(prefix: &str, object: &'c Map<String, Json>) -> Members<'c> {
        Members { prefix: format!("{prefix}."), object, read: BTreeSet::new() }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn get(&mut self, name: &str) -> Option<&'c Json> {
        self.read.insert(name.to_owned());
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn optional_number(&mut self, name: &str) -> Result<Option<f64>, Problem> {
        let key = self.key(name);
        self.get(name).map(|value| number_of(&key, value)).transpose()
    }

    fn number(&mut self, name: &str) -> Result<f64, Problem> {
        self.optional_number(name)?.ok_or_else(|| missing(&self.key(name)))
    }

    /// A number above 0.
    fn positive(&mut self, name: &str) -> Result<f64, Problem> {
        let number = self.number(name)?;
        if number > 0.0 {
            return Ok(number);
        }
        Err(wrong(&self.key(name), &Json::from(number), "a number above 0"))
    }

    fn count(&mut self, name: &str) -> Result<u64, Problem> {
        let key = self.key(name);
        self.get(name).map(|value| count_of(&key, value)).transpose()?.ok_or_else(|| missing(&key))
    }

    fn numbers(&mut self, name: &str) -> Result<Vec<f32>, Problem> {
        let key = self.key(name);
        let value = self.get(name).ok_or_else(|| missing(&key))?;
        let numbers = value.as_array().ok_or_else(|| wrong(&key, value, "an array of numbers"))?;
        numbers.iter().map(|number| Ok(number_of(&key, number)? as f32)).collect()
    }

    /// The kind of scaling, under one of its two names.
    fn kind(&mut self) -> Result<&'c str, Problem> {
        let (new, old) = (self.get("rope_type"), self.get("type"));
        let value = new.or(old).ok_or_else(|| missing(&self.key("rope_type")))?;
        let kind = value.as_str().ok_or_else(|| wrong(&self.key("rope_type"), value, "a text"))?;
        if let (Some(_), Some(other)) = (new, old.filter(|old| *old != value)) {
            return Err(wrong(&self.key("type"), other, "the same as `rope_type`"));
        }
        Ok(kind)
    }

    fn finish(&self) -> Result<(), Problem> {
        let unread = self.object.keys().filter(|name| !self.read.contains(*name));
        let keys: Vec<String> = unread.map(|name| self.key(name)).collect();
        if keys.is_empty() { Ok(()) } else { Err(Problem::UnreadSettings { keys }) }
    }
}

impl<'c> Translation<'c> {
    /// Passes on what the configuration says of rope; `context` is the longest context of the model.
    pub(super) fn pass_rope(&mut self, rules: &RopeRules, context: u64) -> Result<(), Problem> {
        let Some(mut members) = self.rope_object("rope_parameters")? else {
            let base = self.optional_number("rope_theta")?;
            self.pass_base("rope_theta", "rope.freq_base", base, rules)?;
            return match self.rope_object("rope_scaling")? {
                Some(mut members) => self.pass_scaling(&mut members, base, rules, context),
                None => Ok(()),
            };
        };
        for key in ["rope_theta", "rope_scaling"] {
            if self.get(key).is_some() {
                return Err(unsupported(key, "stated", " beside `rope_parameters`"));
            }
        }
        let base = members.optional_number("rope_theta")?;
        self.pass_base(&members.key("rope_theta"), "rope.freq_base", base, rules)?;
        self.pass_scaling(&mut members, base, rules, context)
    }

    /// Passes on the two ropes of a family whose windowed layers have one of their own, which is never scaled.
    pub(super) fn pass_two_ropes(&mut self, rules: &RopeRules, context: u64) -> Result<(), Problem> {
        let Some(members) = self.rope_object("rope_parameters")? else {
            let base = self.optional_number("rope_local_base_freq")?;
            self.pass_base("rope_local_base_freq", "rope.freq_base_swa", base, rules)?;
            return self.pass_rope(rules, context);
        };
        let mut members = members;
        for (kind, name) in
            [("full_attention", "rope.freq_base"), ("sliding_attention", "rope.freq_base_swa")]
        {
            let key = members.key(kind);
            let value = members.get(kind).ok_or_else(|| missing(&key))?;
            let object = value.as_object().ok_or_else(|| wrong(&key, value, "an object"))?;
            let mut rope = Members::new(&key, object);
            let base = rope.optional_number("rope_theta")?;
            self.pass_base(&rope.key("rope_theta"), name, base, rules)?;
            if kind == "full_attention" {
                self.pass_scaling(&mut rope, base, rules, context)?;
                continue;
            }
            match rope.kind()? {
                "default" => rope.finish()?,
                other => return Err(unsupported(&rope.key("rope_type"), other, ": only `default` is there")),
            }
        }
        members.finish()
    }

    /// The factor on the scores of a family whose YaRN raises them instead of cosine and sine.
    pub(super) fn factor_on_scores(&mut self) -> Result<f64, Problem> {
        let members = match self.rope_object("rope_parameters")? {
            Some(members) => Some(members),
            None => self.rope_object("rope_scaling")?,
        };
        let Some(mut members) = members else {
            return Ok(1.0);
        };
        if members.kind()? != "yarn" {
            return Ok(1.0);
        }
        let factor = members.positive("factor")?;
        let [one, all] = ["mscale", "mscale_all_dim"].map(|name| members.optional_number(name));
        match (one?.filter(|scale| *scale != 0.0), all?.filter(|scale| *scale != 0.0)) {
            (Some(_), Some(all)) => Ok(yarn_magnitude(factor, all).powi(2)),
            (None, None) => Ok(1.0),
            // Alone, readers of such files understand them in different ways.
            (None, Some(_)) => Err(missing(&members.key("mscale"))),
            (Some(_), None) => Err(missing(&members.key("mscale_all_dim"))),
        }
    }

    fn rope_object(&mut self, key: &str) -> Result<Option<Members<'c>>, Problem> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let object = value.as_object().ok_or_else(|| wrong(key, value, "an object"))?;
        Ok(Some(Members::new(key, object)))
    }

    fn pass_base(
        &mut self,
        key: &str,
        name: &str,
        base: Option<f64>,
        rules: &RopeRules,
    ) -> Result<(), Problem> {
        match base {
            Some(base) => self.put(key, name, Value::Float(base)),
            None if rules.base_may_be_missing => {}
            None if key.contains('.') => return Err(missing(key)),
            None => {
                let (first, second) = (key.to_owned(), "rope_parameters".to_owned());
                return Err(Problem::MissingEither { first, second });
            }
        }
        Ok(())
    }

    fn pass_scaling(
        &mut self,
        members: &mut Members<'c>,
        base: Option<f64>,
        rules: &RopeRules,
        context: u64,
    ) -> Result<(), Problem> {
        let kind = members.kind()?;
        // Where it stands depends on the file's age; the family has read it.
        members.get("partial_rotary_factor");
        match kind {
            "default" => {}
            "linear" => {
                let factor = members.positive("factor")?;
                self.put(&members.key("rope_type"), "rope.scaling.type", Value::Str("linear".to_owned()));
                self.put(&members.key("factor"), "rope.scaling.factor", Value::Float(factor));
            }
            "llama3" => {
                let divisors = llama3_divisors(members, base, rules.width)?;
                self.put_tensor("rope_freqs.weight", &divisors);
            }
            "yarn" if rules.yarn => self.pass_yarn(members)?,
            "longrope" | "su" if rules.by_context => self.pass_long_rope(members, context)?,
            other => {
                let kinds = match (rules.by_context, rules.yarn) {
                    (true, _) => "`linear`, `llama3` and `longrope`",
                    (false, true) => "`linear`, `llama3` and `yarn`",
                    (false, false) => "`linear` and `llama3`",
                };
                let hint = format!(": only {kinds} are known in this family");
                return Err(unsupported(&members.key("rope_type"), other, &hint));
            }
        }
        members.finish()
    }

    fn pass_yarn(&mut self, members: &mut Members<'c>) -> Result<(), Problem> {
        let factor = members.positive("factor")?;
        let original = members.count("original_max_position_embeddings")?;
        let usual = |scale| yarn_magnitude(factor, scale);
        let (one, all) = (members.optional_number("mscale")?, members.optional_number("mscale_all_dim")?);
        let magnitude = match (members.optional_number("attention_factor")?, one, all) {
            (Some(magnitude), ..) => magnitude,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => usual(one) / usual(all),
            _ => usual(1.0),
        };
        if let Some(truncate) = members.get("truncate") {
            let key = members.key("truncate");
            let whole = truncate.as_bool().ok_or_else(|| wrong(&key, truncate, "true or false"))?;
            self.put(&key, "rope.scaling.yarn_whole_pairs", Value::Bool(whole));
        }
        for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
            if let Some(beta) = members.optional_number(key)?.filter(|beta| *beta != 0.0) {
                self.put(&members.key(key), &format!("rope.scaling.{name}"), Value::Float(beta));
            }
        }
        self.put(&members.key("rope_type"), "rope.scaling.type", Value::Str("yarn".to_owned()));
        self.put(&members.key("factor"), "rope.scaling.factor", Value::Float(factor));
        let key = members.key("original_max_position_embeddings");
        self.put(&key, "rope.scaling.original_context_length", Value::Unsigned(original));
        // The usual factor is understood: only what differs from it is stated.
        let key = members.key("attention_factor");
        self.put(&key, "rope.scaling.attn_factor", Value::Float(magnitude / usual(1.0)));
        Ok(())
    }

    fn pass_long_rope(&mut self, members: &mut Members<'c>, context: u64) -> Result<(), Problem> {
        let outside = self.optional_count("original_max_position_embeddings")?;
        let original = match outside {
            Some(original) => {
                members.get("original_max_position_embeddings");
                original
            }
            None => members.count("original_max_position_embeddings")?,
        };
        if original < 2 {
            let key = members.key("original_max_position_embeddings");
            return Err(wrong(&key, &Json::from(original), "at least 2"));
        }
        let factor = members.optional_number("factor")?.unwrap_or(context as f64 / original as f64);
        let magnitude = match members.optional_number("attention_factor")? {
            Some(magnitude) => magnitude,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        let key = members.key("attention_factor");
        self.put(&key, "rope.scaling.attn_factor", Value::Float(magnitude));
        let key = "original_max_position_embeddings";
        self.put(key, "rope.scaling.original_context_length", Value::Unsigned(original));
        for (key, name) in
            [("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight")]
        {
            let factors = members.numbers(key)?;
            if let Some(bad) = factors.iter().find(|factor| **factor <= 0.0) {
                return Err(wrong(&members.key(key), &Json::from(*bad), "numbers above 0"));
            }
            self.put_tensor(name, &factors);
        }
        Ok(())
    }
}

/// YaRN's magnitude of a context stretched by `factor`, with a multiplier on its logarithm.
fn yarn_magnitude(factor: f64, multiplier: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * multiplier * factor.ln() }
}

/// What divides each frequency of Llama 3.1 and later: 1 for wave lengths that the original context holds often enough,
/// the factor for those that it hardly holds, and something between for the others.
fn llama3_divisors(members: &mut Members<'_>, base: Option<f64>, width: u64) -> Result<Vec<f32>, Problem> {
    let factor = members.positive("factor")?;
    let (low, high) = (members.positive("low_freq_factor")?, members.positive("high_freq_factor")?);
    let original = members.positive("original_max_position_embeddings")?;
    let base = base.ok_or_else(|| missing("rope_theta"))?;
    if high < low {
        let wanted = format!("at least `low_freq_factor`, {low}");
        return Err(wrong(&members.key("high_freq_factor"), &Json::from(high), &wanted));
    }
    let divisor = |pair: u64| {
        let wave_length = TAU * base.powf(2.0 * pair as f64 / width as f64);
        if wave_length < original / high {
            return 1.0;
        }
        if wave_length > original / low || high == low {
            return factor as f32;
        }
        let smooth = (original / wave_length - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Ok((0..width / 2).map(divisor).collect())
}
