//! A comparison that tests write down.

use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::units::Bytes;

use crate::compare::{
    Comparison, ComparisonVerdict, Figure, LoadShares, Quantity, Side, SideKind, StageShares,
};
use crate::render::{PlanStage, PlanView};

/// One box, a cluster of two and another server, at 1 to 16 streams; three rounds each.
pub(crate) fn comparison() -> Comparison {
    Comparison {
        began_unix_s: 1_796_058_300,
        version: "0.1.0".to_owned(),
        model: "SmolLM2-135M-Instruct.Q4_1".to_owned(),
        fingerprint: "4f1c0d".to_owned(),
        weight_bytes: Bytes::mib(94).0,
        rounds: 3,
        seed: 7,
        sides: vec![one_box(), cluster(), other()],
        disturbed: false,
        left_out: vec!["energy: no worker tells what it draws".to_owned()],
        verdict: ComparisonVerdict {
            split_for_one_stream: Some(false),
            split_for_many_streams: Some(true),
            text: "Do not split for one stream: one box is 1.79 times as fast. For 16 streams the cluster is 1.38 times as fast."
                .to_owned(),
        },
    }
}

fn one_box() -> Side {
    Side {
        kind: SideKind::OneBox,
        name: "one box: anna".to_owned(),
        plan: Some(plan(&[("anna", 0, 30)])),
        figures: figures(
            [93.1, 131.0, 166.4, 190.2, 201.7],
            Some([96.0, 140.0, 170.0, 195.0, 206.0]),
            [812.0, 630.0],
        ),
        shares: shares(&[("anna", 0.92)]),
        resident: vec![("anna".to_owned(), Bytes::mib(210).0)],
    }
}

fn cluster() -> Side {
    Side {
        kind: SideKind::Cluster,
        name: "cluster: anna, bert".to_owned(),
        plan: Some(plan(&[("anna", 0, 16), ("bert", 16, 30)])),
        figures: figures(
            [52.0, 101.4, 170.3, 241.9, 278.8],
            Some([60.1, 110.0, 181.0, 236.0, 301.0]),
            [1103.0, 464.0],
        ),
        shares: shares(&[("anna", 0.44), ("bert", 0.41)]),
        resident: vec![("anna".to_owned(), Bytes::mib(124).0), ("bert".to_owned(), Bytes::mib(109).0)],
    }
}

fn other() -> Side {
    Side {
        kind: SideKind::Other,
        name: "http://other:8080".to_owned(),
        plan: None,
        figures: figures([151.0, 180.0, 210.0, 222.0, 230.0], None, [500.0, 1024.0]),
        shares: Vec::new(),
        resident: Vec::new(),
    }
}

fn figures(decode: [f64; 5], predicted: Option<[f64; 5]>, [prompt, ttft]: [f64; 2]) -> Vec<Figure> {
    let streams = [1, 2, 4, 8, 16].map(|streams| Quantity::Decode { streams });
    let decode = streams.iter().enumerate().map(|(at, quantity)| {
        let predicted = predicted.map(|predicted| predicted[at]);
        figure(*quantity, decode[at], predicted)
    });
    let more = [
        figure(Quantity::Prompt { tokens: 512 }, prompt, predicted.map(|_| prompt * 1.08)),
        figure(Quantity::Ttft { tokens: 512 }, ttft, predicted.map(|_| ttft * 0.94)),
    ];
    decode.chain(more).collect()
}

fn figure(quantity: Quantity, mean: f64, predicted: Option<f64>) -> Figure {
    // As they are read again from JSON, to the last digit.
    let hundredths = |value: f64| (value * 100.0).round() / 100.0;
    let samples = vec![hundredths(mean * 0.98), mean, hundredths(mean * 1.02)];
    let (interval, predicted) =
        ((hundredths(mean * 0.95), hundredths(mean * 1.05)), predicted.map(hundredths));
    Figure { quantity, samples, mean, interval: Some(interval), predicted }
}

fn shares(stages: &[(&str, f64)]) -> Vec<LoadShares> {
    let of = |quantity, factor: f64| LoadShares {
        quantity,
        wire: 0.031,
        stages: stages
            .iter()
            .map(|(worker, busy)| StageShares {
                worker: (*worker).to_owned(),
                busy: (busy * factor * 1000.0).round() / 1000.0,
                wire: 0.012,
                idle: (1000.0 - (busy * factor * 1000.0).round()) / 1000.0,
            })
            .collect(),
    };
    vec![of(Quantity::Decode { streams: 1 }, 1.0), of(Quantity::Decode { streams: 16 }, 1.05)]
}

fn plan(stages: &[(&str, usize, usize)]) -> PlanView {
    let stage = |(worker, start, end): &(&str, usize, usize)| PlanStage {
        worker: (*worker).to_owned(),
        shard: Shard::of(LayerRange { start: *start, end: *end }, 30),
        weight_bytes: Bytes::mib(3 * (end - start) as u64),
        cache_bytes: Bytes::mib(2 * (end - start) as u64),
        workspace_bytes: Bytes::mib(12),
        budget_bytes: Bytes::mib(256),
    };
    PlanView {
        model: "SmolLM2-135M-Instruct.Q4_1".to_owned(),
        layers: 30,
        weight_bytes: Bytes::mib(94),
        stages: stages.iter().map(stage).collect(),
        context: 2048,
        cache_tokens: 8192,
        decode_tokens_per_s: 96.0,
        throughput_tokens_per_s: None,
        ttft_ms: Some(600.0),
        bottleneck: "stage 0 on anna: memory bandwidth".to_owned(),
        notes: Vec::new(),
    }
}

/// The same where every name tries to be more than a name.
pub(crate) fn hostile() -> Comparison {
    const EVIL: &str =
        "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;]]><b>\u{1b}[2J\u{0}</b></style>";
    let mut comparison = comparison();
    comparison.model = format!("{EVIL} model");
    comparison.fingerprint = EVIL.to_owned();
    comparison.version = EVIL.to_owned();
    comparison.left_out.push(EVIL.to_owned());
    comparison.verdict.text = format!("{EVIL} verdict");
    for side in &mut comparison.sides {
        side.name.push_str(EVIL);
        side.resident.push((EVIL.to_owned(), 1));
        side.shares
            .iter_mut()
            .flat_map(|load| &mut load.stages)
            .for_each(|stage| stage.worker.push_str(EVIL));
        side.plan.iter_mut().flat_map(|plan| &mut plan.stages).for_each(|stage| stage.worker.push_str(EVIL));
        side.plan.iter_mut().for_each(|plan| plan.bottleneck.push_str(EVIL));
        side.plan.iter_mut().for_each(|plan| plan.notes.push(EVIL.to_owned()));
    }
    comparison
}
