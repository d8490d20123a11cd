//! Computed sizes against published ones.

use std::collections::BTreeMap;

use super::{csv, model};

/// How far a computed size may be from the published one: what vocabularies and rounded figures take.
const TOLERANCE: f64 = 0.03;

#[test]
fn computed_sizes_are_within_three_percent_of_published_ones() {
    let rows = csv::rows(include_str!("../../catalogue/sizes.csv")).unwrap();
    let mut wrong = Vec::new();
    let mut mixes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    println!("{:22} {:7} {:>10} {:>10} {:>7}  SOURCE", "MODEL", "MIX", "PUBLISHED", "COMPUTED", "OFF");
    for row in &rows {
        let [name, mix, gb, basis, source] = row.as_slice() else { panic!("{row:?}") };
        assert!(["page", "known"].contains(&basis.as_str()) && !source.is_empty(), "{row:?}");
        let (model, mix) = model(&format!("{name}:{mix}")).unwrap();
        let published: f64 = gb.parse().unwrap();
        let cost = model.cost(mix);
        let computed = cost.weights(&cost.whole()).0 as f64 / 1e9;
        let off = computed / published - 1.0;
        let line =
            format!("{name:22} {mix:7} {published:>10.2} {computed:>10.2} {:>6.2}%  {source}", off * 100.0);
        println!("{line}");
        if off.abs() > TOLERANCE {
            wrong.push(line);
        }
        mixes.entry(model.name.clone()).or_default().push(mix.to_string());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for model in super::models() {
        let mut known = mixes.remove(&model.name).unwrap_or_default();
        known.sort();
        known.dedup();
        assert!(known.len() >= 2, "{} has published sizes of {known:?} only", model.name);
    }
}
