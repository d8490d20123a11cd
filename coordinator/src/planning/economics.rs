//! What running a plan takes in power and money, against tokens from somebody else's machines.
//!
//! The formulas, with `T` tokens per second of all streams together, `P` watts of all machines under load and `I` at rest,
//! `h` hours of decoding a day, `E` US dollars for a kilowatt-hour, `H` the hardware's price in US dollars, `L` its life in
//! years and `A` the API's US dollars for a million tokens:
//!
//! - energy for a million tokens, in kWh: `P / T x 10^6 s / 3.6x10^6 J/kWh`
//! - tokens a year: `T x 3600 h x 365`
//! - energy a year, in kWh: `(P h + I (24 - h)) x 365 / 1000`
//! - electricity for a million tokens: energy a year `x E /` millions of tokens a year, so that rest is paid for, too
//! - price of a million tokens: `(H / L + energy a year x E) /` millions of tokens a year
//! - saved a month: `(millions of tokens a year x A - energy a year x E) / 12`
//! - earned back in the month `ceil(H / saved a month)`; never where nothing is saved
//!
//! Machines are taken to draw all of `P` while anything is decoded: with one stream the stages take turns, and it is less.
//! Prompts are computed as well and counted nowhere. What nobody says stays unknown: a sum names what it leaves out, and
//! what would follow from an incomplete sum is not told.

use serde::{Deserialize, Serialize};

use super::cluster::Cluster;

/// For how long hardware is taken to be used where nobody says it, in years.
pub const DEFAULT_LIFE_YEARS: f64 = 3.0;

/// Days of a year.
const DAYS: f64 = 365.0;
/// Joules of a kilowatt-hour.
const JOULES_PER_KWH: f64 = 3.6e6;
/// Tokens of which prices and energy are told.
const MILLION: f64 = 1e6;

/// What money is reckoned with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EconomicsSettings {
    /// US dollars.
    pub electricity_usd_per_kwh: Option<f64>,
    /// Hours of decoding a day.
    pub hours_per_day: Option<f64>,
    /// What somebody else asks for a million tokens, in US dollars.
    pub api_usd_per_million_tokens: Option<f64>,
    /// Streams at a time while it decodes; where nothing is said, as many as are planned for.
    pub streams: Option<u32>,
    /// For how long the hardware is used.
    pub life_years: f64,
}

impl Default for EconomicsSettings {
    fn default() -> Self {
        EconomicsSettings {
            electricity_usd_per_kwh: None,
            hours_per_day: None,
            api_usd_per_million_tokens: None,
            streams: None,
            life_years: DEFAULT_LIFE_YEARS,
        }
    }
}

/// A sum of what is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// The known parts together; `None` where no part is known.
    pub known: Option<f64>,
    /// The names of those that are not known.
    pub left_out: Vec<String>,
}

impl Sum {
    /// The sum of parts with their names.
    pub fn of<'a>(parts: impl IntoIterator<Item = (&'a str, Option<f64>)>) -> Sum {
        let mut sum = Sum::default();
        for (name, part) in parts {
            match part {
                Some(part) => sum.known = Some(sum.known.unwrap_or(0.0) + part),
                None => sum.left_out.push(name.to_owned()),
            }
        }
        sum
    }

    /// The sum where all of it is known.
    pub fn whole(&self) -> Option<f64> {
        self.known.filter(|_| self.left_out.is_empty())
    }
}

/// A figure that follows from others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Derived {
    /// It is known.
    Known(f64),
    /// It is not, for want of these.
    Unknown(Vec<String>),
}

impl Derived {
    /// The value where it is known.
    pub fn value(&self) -> Option<f64> {
        match self {
            Derived::Known(value) => Some(*value),
            Derived::Unknown(_) => None,
        }
    }
}

/// When the hardware's price is earned back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "when")]
pub enum EarnedBack {
    /// In this month, counted from 1.
    Month {
        /// Which.
        month: u32,
        /// Whether the hardware is still used by then.
        within_life: bool,
    },
    /// Not at all: as many tokens cost less from the API than their electricity here.
    Never {
        /// What is lost every month, in US dollars.
        lost_usd_per_month: f64,
    },
    /// For want of these nobody can say.
    Unknown {
        /// What is missing.
        missing: Vec<String>,
    },
}

/// What a plan takes in power and money.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Economics {
    /// Streams at a time that it is told for.
    pub streams: u32,
    /// Tokens per second of all of them together.
    pub tokens_per_s: f64,
    /// At rest, in watts.
    pub idle_watts: Sum,
    /// Under load, in watts.
    pub loaded_watts: Sum,
    /// The hardware, in US dollars.
    pub price_usd: Sum,
    /// What a million tokens take while they are decoded, in kWh.
    pub kwh_per_million_tokens: Derived,
    /// With the hours of rest, in kWh.
    pub kwh_per_year: Derived,
    /// In US dollars.
    pub electricity_usd_per_year: Derived,
    /// With the hours of rest, in US dollars.
    pub electricity_usd_per_million_tokens: Derived,
    /// Hardware over its life and electricity, in US dollars.
    pub usd_per_million_tokens: Derived,
    /// What somebody else asks for as many, in US dollars.
    pub api_usd_per_million_tokens: Option<f64>,
    /// When the price is earned back.
    pub earned_back: EarnedBack,
    /// What it is reckoned with.
    pub settings: EconomicsSettings,
}

/// A figure and what to write where it is missing.
type Need<'a> = (Option<f64>, &'a str);

/// Asks for figures: all their values, or what is missing.
fn all<const N: usize>(needs: [Need<'_>; N]) -> Result<[f64; N], Vec<String>> {
    let missing: Vec<String> =
        needs.iter().filter(|need| need.0.is_none()).map(|need| need.1.to_owned()).collect();
    if missing.is_empty() { Ok(needs.map(|need| need.0.unwrap_or_default())) } else { Err(missing) }
}

fn derived(value: Result<f64, Vec<String>>) -> Derived {
    match value {
        Ok(value) => Derived::Known(value),
        Err(missing) => Derived::Unknown(missing),
    }
}

/// What a plan takes that uses the devices `used` and decodes `tokens_per_s` in `streams` streams together.
///
/// A machine around devices counts where one of its devices is used. Devices that the plan leaves out are neither bought
/// nor switched on.
pub fn economics(cluster: &Cluster, used: &[usize], streams: u32, tokens_per_s: f64) -> Economics {
    let settings = cluster.economics;
    let facts = || used.iter().map(|index| (cluster.devices[*index].name.as_str(), &cluster.facts[*index]));
    let inside = |name: &str| facts().any(|(_, facts)| facts.host.as_deref() == Some(name));
    let boxes = || cluster.boxes.iter().filter(|host| inside(&host.name));
    // A box of which the file gives one figure and not another has the other all the same.
    let powered = || boxes().filter(|host| host.idle_watts.or(host.loaded_watts).is_some());
    let priced = || boxes().filter(|host| host.price_usd.is_some());
    let price_usd = Sum::of(
        facts()
            .map(|(name, facts)| (name, facts.price_usd))
            .chain(priced().map(|host| (host.name.as_str(), host.price_usd))),
    );
    let idle_watts = Sum::of(
        facts()
            .map(|(name, facts)| (name, facts.idle_watts))
            .chain(powered().map(|host| (host.name.as_str(), host.idle_watts))),
    );
    let loaded_watts = Sum::of(
        facts()
            .map(|(name, facts)| (name, facts.loaded_watts))
            .chain(powered().map(|host| (host.name.as_str(), host.loaded_watts))),
    );
    let figures =
        Figures { settings, tokens_per_s, idle: &idle_watts, loaded: &loaded_watts, price: &price_usd };
    Economics {
        streams,
        tokens_per_s,
        kwh_per_million_tokens: derived(figures.kwh_per_million()),
        kwh_per_year: derived(figures.kwh_per_year()),
        electricity_usd_per_year: derived(figures.electricity_per_year()),
        electricity_usd_per_million_tokens: derived(figures.electricity_per_million()),
        usd_per_million_tokens: derived(figures.usd_per_million()),
        api_usd_per_million_tokens: settings.api_usd_per_million_tokens,
        earned_back: figures.earned_back(),
        idle_watts,
        loaded_watts,
        price_usd,
        settings,
    }
}

/// What the formulas are about.
struct Figures<'a> {
    settings: EconomicsSettings,
    tokens_per_s: f64,
    idle: &'a Sum,
    loaded: &'a Sum,
    price: &'a Sum,
}

impl Figures<'_> {
    fn loaded_need(&self) -> Need<'static> {
        (self.loaded.whole(), "loaded_watts of every device")
    }

    fn hours_need(&self) -> Need<'static> {
        (self.settings.hours_per_day, "hours_per_day or utilisation in [economics]")
    }

    fn price_need(&self) -> Need<'static> {
        (self.price.whole(), "price_usd of every device")
    }

    fn kwh_per_million(&self) -> Result<f64, Vec<String>> {
        let [loaded] = all([self.loaded_need()])?;
        Ok(loaded / self.tokens_per_s * MILLION / JOULES_PER_KWH)
    }

    fn kwh_per_year(&self) -> Result<f64, Vec<String>> {
        // Who decodes all day never rests.
        let idle = if self.settings.hours_per_day == Some(24.0) { Some(0.0) } else { self.idle.whole() };
        let [loaded, idle, hours] =
            all([self.loaded_need(), (idle, "idle_watts of every device"), self.hours_need()])?;
        Ok((loaded * hours + idle * (24.0 - hours)) * DAYS / 1000.0)
    }

    fn millions_per_year(&self) -> Result<f64, Vec<String>> {
        let [hours] = all([self.hours_need()])?;
        Ok(self.tokens_per_s * 3600.0 * hours * DAYS / MILLION)
    }

    fn electricity_per_year(&self) -> Result<f64, Vec<String>> {
        let price = all([(self.settings.electricity_usd_per_kwh, "electricity_usd_per_kwh in [economics]")]);
        let ([price], energy) = both(price, self.kwh_per_year())?;
        Ok(price * energy)
    }

    fn electricity_per_million(&self) -> Result<f64, Vec<String>> {
        let (electricity, millions) = both(self.electricity_per_year(), self.millions_per_year())?;
        Ok(electricity / millions)
    }

    fn usd_per_million(&self) -> Result<f64, Vec<String>> {
        let ([price], electricity) = both(all([self.price_need()]), self.electricity_per_year())?;
        let millions = self.millions_per_year()?;
        Ok((price / self.settings.life_years + electricity) / millions)
    }

    fn earned_back(&self) -> EarnedBack {
        let api = (self.settings.api_usd_per_million_tokens, "api_usd_per_million_tokens in [economics]");
        let given = both(all([self.price_need(), api]), self.electricity_per_year());
        let (([price, api], electricity), millions) = match both(given, self.millions_per_year()) {
            Ok(known) => known,
            Err(missing) => return EarnedBack::Unknown { missing },
        };
        let saved = (millions * api - electricity) / 12.0;
        if saved <= 0.0 {
            return EarnedBack::Never { lost_usd_per_month: -saved };
        }
        // What costs nothing is earned back at once.
        let month = (price / saved).ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
        EarnedBack::Month { month, within_life: f64::from(month) <= self.settings.life_years * 12.0 }
    }
}

/// Both values, or all that is missing, each once.
fn both<A, B>(one: Result<A, Vec<String>>, other: Result<B, Vec<String>>) -> Result<(A, B), Vec<String>> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(missing), Ok(_)) | (Ok(_), Err(missing)) => Err(missing),
        (Err(mut missing), Err(more)) => {
            for each in more {
                if !missing.contains(&each) {
                    missing.push(each);
                }
            }
            Err(missing)
        }
    }
}

#[cfg(test)]
mod tests {
    use brigade_shard::kernels::Kernels;
    use brigade_shard::plan::{HopCost, Links};
    use brigade_shard::units::Bytes;

    use super::*;
    use crate::planning::cluster::{HostFacts, plan_device};

    /// Two devices of 100 W, 10 W at rest and 1825 USD each; 5 hours a day, 0.2 USD a kWh, 2 USD a million tokens.
    fn cluster() -> Cluster {
        let device = |name: &str| plan_device(name.to_owned(), Bytes::mib(1), 1e9, 1e9, Kernels::CPU);
        let mut cluster = Cluster::of_devices(
            vec![device("a"), device("b")],
            Vec::new(),
            Links::all(HopCost::default()),
            "written down",
        );
        for facts in &mut cluster.facts {
            facts.price_usd = Some(1825.0);
            facts.loaded_watts = Some(100.0);
            facts.idle_watts = Some(10.0);
        }
        cluster.economics = EconomicsSettings {
            electricity_usd_per_kwh: Some(0.2),
            hours_per_day: Some(5.0),
            api_usd_per_million_tokens: Some(2.0),
            streams: None,
            life_years: 2.0,
        };
        cluster
    }

    fn near(derived: &Derived, wanted: f64) {
        let value = derived.value().unwrap();
        assert!((value - wanted).abs() < 1e-9 * wanted.abs(), "{value} is not {wanted}");
    }

    #[test]
    fn power_and_money_follow_the_formulas() {
        let told = economics(&cluster(), &[0, 1], 4, 100.0);
        assert_eq!((told.loaded_watts.whole(), told.idle_watts.whole()), (Some(200.0), Some(20.0)));
        assert_eq!(told.price_usd.whole(), Some(3650.0));
        // 200 J/s over 100 tokens/s are 2 J a token, 2 MJ a million.
        near(&told.kwh_per_million_tokens, 2e6 / 3.6e6);
        // 200 W for 5 hours and 20 W for 19 are 1.38 kWh a day.
        near(&told.kwh_per_year, 1.38 * 365.0);
        near(&told.electricity_usd_per_year, 1.38 * 365.0 * 0.2);
        // 100 tokens/s for 5 hours a day are 657 million a year.
        near(&told.electricity_usd_per_million_tokens, 1.38 * 365.0 * 0.2 / 657.0);
        near(&told.usd_per_million_tokens, (1825.0 + 1.38 * 365.0 * 0.2) / 657.0);
        // 1314 USD a year from the API and 100.74 USD of electricity: 101.105 USD saved a month, of 3650.
        assert_eq!(told.earned_back, EarnedBack::Month { month: 37, within_life: false });
    }

    #[test]
    fn a_device_that_is_not_used_costs_nothing() {
        let told = economics(&cluster(), &[1], 1, 50.0);
        assert_eq!((told.loaded_watts.whole(), told.price_usd.whole()), (Some(100.0), Some(1825.0)));
    }

    #[test]
    fn what_costs_more_than_the_api_is_never_earned_back() {
        let mut cluster = cluster();
        cluster.economics.api_usd_per_million_tokens = Some(0.1);
        let EarnedBack::Never { lost_usd_per_month } = economics(&cluster, &[0, 1], 1, 100.0).earned_back
        else {
            panic!("earned back");
        };
        assert!((lost_usd_per_month - (100.74 - 65.7) / 12.0).abs() < 1e-9, "{lost_usd_per_month}");
    }

    #[test]
    fn a_sum_names_what_it_leaves_out_and_nothing_follows_from_it() {
        let mut cluster = cluster();
        cluster.facts[1].price_usd = None;
        let told = economics(&cluster, &[0, 1], 1, 100.0);
        assert_eq!(told.price_usd, Sum { known: Some(1825.0), left_out: vec!["b".to_owned()] });
        let missing = vec!["price_usd of every device".to_owned()];
        assert_eq!(told.usd_per_million_tokens, Derived::Unknown(missing.clone()));
        assert_eq!(told.earned_back, EarnedBack::Unknown { missing });
        assert!(told.kwh_per_year.value().is_some(), "the power is known all the same");
    }

    #[test]
    fn each_missing_figure_is_named_once() {
        let mut cluster = cluster();
        cluster.economics = EconomicsSettings::default();
        let told = economics(&cluster, &[0], 1, 100.0);
        let EarnedBack::Unknown { missing } = told.earned_back else { panic!("{:?}", told.earned_back) };
        assert_eq!(missing.len(), 3, "{missing:?}");
        for key in ["api_usd_per_million_tokens", "electricity_usd_per_kwh", "hours_per_day"] {
            assert_eq!(missing.iter().filter(|each| each.contains(key)).count(), 1, "{missing:?}");
        }
        assert!(told.kwh_per_million_tokens.value().is_some());
    }

    #[test]
    fn who_never_rests_needs_no_power_at_rest() {
        let mut cluster = cluster();
        cluster.economics.hours_per_day = Some(24.0);
        for facts in &mut cluster.facts {
            facts.idle_watts = None;
        }
        near(&economics(&cluster, &[0, 1], 1, 100.0).kwh_per_year, 0.2 * 24.0 * 365.0);
    }

    #[test]
    fn the_machine_around_cards_counts_once_and_only_where_one_of_them_is_used() {
        let mut cluster = cluster();
        for facts in &mut cluster.facts {
            facts.host = Some("rig".to_owned());
        }
        cluster.boxes = ["rig", "other"]
            .map(|name| HostFacts {
                name: name.to_owned(),
                price_usd: Some(1000.0),
                idle_watts: Some(60.0),
                loaded_watts: Some(150.0),
            })
            .to_vec();
        let told = economics(&cluster, &[0, 1], 1, 100.0);
        assert_eq!(told.price_usd.whole(), Some(4650.0));
        assert_eq!((told.idle_watts.whole(), told.loaded_watts.whole()), (Some(80.0), Some(350.0)));
    }

    #[test]
    fn what_is_there_already_is_earned_back_at_once() {
        let mut cluster = cluster();
        for facts in &mut cluster.facts {
            facts.price_usd = Some(0.0);
        }
        let told = economics(&cluster, &[0, 1], 1, 100.0);
        assert_eq!(told.earned_back, EarnedBack::Month { month: 1, within_life: true });
    }
}
