//! One box, a cluster, offload, or not at all; and which one more device would help.

use brigade_shard::cost::Cost;
use brigade_shard::plan::{
    AlternativeKind, Choices, HopCost, Objective, PlanDevice, PlanError, PlanInput, Verdict, alternatives,
    choices, what_if,
};
use brigade_shard::units::Bytes;

use crate::plan::{card, device, equal_devices, input};
use crate::plan_orders::room;
use crate::tiny_llama;

fn model() -> (Cost, u64) {
    let cost = tiny_llama::read(&tiny_llama::wide(12)).3;
    let whole = cost.memory(&cost.whole(), &room(&input(Vec::new()))).total().0;
    (cost, whole)
}

/// What there is to choose from, after checking that the verdict follows from it.
fn chosen(cost: &Cost, input: &PlanInput) -> Choices {
    let found = choices(cost, input).unwrap();
    let speed = |plan: Option<&brigade_shard::plan::Plan>| {
        plan.map_or(0.0, |plan| input.objective.speed(&plan.predicted))
    };
    let ways = [found.one_box.as_ref(), found.offload.as_ref(), found.cluster.as_ref().ok()];
    let fastest = ways.into_iter().map(speed).fold(0.0, f64::max);
    assert!(speed(found.chosen()) * 1.05 >= fastest, "{found:?}");
    found
}

#[test]
fn one_box_that_holds_the_model_is_better_than_a_cluster_for_one_stream() {
    let (cost, whole) = model();
    let devices = vec![device("slow", whole, 1e6), device("fast", whole, 3e6), device("other", whole, 2e6)];
    let input = PlanInput { objective: Objective::OneStream, ..input(devices) };
    let found = chosen(&cost, &input);
    assert_eq!(found.verdict, Verdict::OneBox);
    let alone = found.one_box.as_ref().unwrap();
    assert_eq!(alone.stages.iter().map(|stage| stage.device).collect::<Vec<_>>(), [1]);
    assert_eq!(alone.unused.iter().map(|unused| unused.device).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(found.offload, None);
    assert!(found.cluster.as_ref().is_ok_and(|plan| plan.stages.len() >= 2));
    let others = alternatives(&cost, &input, &found);
    assert_eq!(others[0].what, AlternativeKind::Cluster);
    assert!(others[0].reason.contains("tokens/s for one stream against"), "{}", others[0].reason);
}

#[test]
fn a_cluster_is_better_for_many_streams_where_arithmetic_limits_them() {
    let (cost, _) = model();
    let mut devices = equal_devices(3, 1 << 30);
    devices.iter_mut().for_each(|device| (device.bandwidth_bytes_per_s, device.flops_per_s) = (1e12, 1e7));
    let many = PlanInput { parallel: 12, ..input(devices) };
    let found = chosen(&cost, &many);
    assert_eq!(found.verdict, Verdict::Cluster);
    let others = alternatives(&cost, &many, &found);
    let kinds: Vec<AlternativeKind> = others.iter().map(|other| other.what).collect();
    let expected = [AlternativeKind::OneBox, AlternativeKind::FewerStages, AlternativeKind::OtherObjective];
    assert_eq!(kinds, expected, "{others:?}");
    assert!(others.iter().all(|other| other.predicted.is_some() && !other.reason.is_empty()));
    let one = PlanInput { objective: Objective::OneStream, ..many };
    assert_eq!(chosen(&cost, &one).verdict, Verdict::OneBox, "hops are all that it would add");
}

#[test]
fn where_nothing_holds_the_model_alone_that_is_said_of_the_nearest() {
    let (cost, whole) = model();
    let devices = vec![device("small", whole / 2, 1e6), device("larger", whole * 3 / 4, 1e6)];
    let input = input(devices);
    let found = chosen(&cost, &input);
    assert_eq!((found.verdict, found.one_box.is_none()), (Verdict::Cluster, true));
    let others = alternatives(&cost, &input, &found);
    assert_eq!(others[0].what, AlternativeKind::OneBox);
    assert!(others[0].reason.contains("larger lacks"), "{}", others[0].reason);
}

#[test]
fn one_box_with_offload_wins_where_links_are_slower_than_reading() {
    let (cost, whole) = model();
    let mut devices = vec![device("a", whole * 3 / 4, 1e6), device("b", whole * 3 / 4, 1e6)];
    devices[1].offload_bytes_per_s = Some(1e9);
    let given = devices.clone();
    let with = |rtt_us| {
        let mut input = PlanInput { objective: Objective::OneStream, ..input(given.clone()) };
        input.links.default = HopCost { rtt_us, bytes_per_s: 1e9 };
        input
    };
    let far = chosen(&cost, &with(1e6));
    assert_eq!(far.verdict, Verdict::OneBoxWithOffload);
    assert_eq!(far.chosen().unwrap().stages[0].device, 1);
    assert!(far.chosen().unwrap().stages[0].streamed_layers > 0);
    // Reading takes longer than the other's help is far.
    devices[1].offload_bytes_per_s = Some(1e4);
    let with_slow = PlanInput { devices: devices.clone(), ..with(10.0) };
    let near = chosen(&cost, &with_slow);
    assert_eq!(near.verdict, Verdict::Cluster);
    let others = alternatives(&cost, &with_slow, &near);
    assert!(others.iter().any(|other| other.what == AlternativeKind::OneBoxWithOffload), "{others:?}");
    // Alone it is the only way.
    let only = chosen(&cost, &with(10.0).only(&[1]));
    assert_eq!(only.verdict, Verdict::OneBoxWithOffload);
    assert!(matches!(only.cluster, Err(PlanError::TooFewDevices { .. })));
}

#[test]
fn where_nothing_holds_the_model_the_missing_bytes_are_enough() {
    let cost = tiny_llama::read(&tiny_llama::file(12)).3;
    let whole = cost.memory(&cost.whole(), &room(&input(Vec::new()))).total().0;
    let too_small = input(vec![device("a", whole / 4, 1e6), device("b", whole / 4, 1e6)]);
    let found = choices(&cost, &too_small).unwrap();
    let Verdict::NotAtAll { missing } = found.verdict else { panic!("{found:?}") };
    assert!(missing > Bytes(whole / 4), "{missing}");
    assert_eq!(found.chosen(), None);
    assert!(alternatives(&cost, &too_small, &found).is_empty());
    let mut enough = too_small.clone();
    enough.devices[1].budget += missing;
    assert!(choices(&cost, &enough).unwrap().chosen().is_some());
    // Memory is not what is missing here.
    let model = tiny_llama::read(&tiny_llama::in_codebooks(4)).3;
    let cards = input(vec![card("a", 1 << 30, 1e6), card("b", 1 << 30, 1e6)]);
    assert!(matches!(choices(&model, &cards), Err(PlanError::NoKernels { .. })));
    assert_eq!(choices(&cost, &input(Vec::new())), Err(PlanError::NoDevices));
}

#[test]
fn a_cluster_that_makes_room_for_a_longer_context_is_worth_it() {
    let cost = tiny_llama::read(&tiny_llama::file(12).key("llama.context_length", 8192)).3;
    let short = brigade_shard::cost::Room { cache_tokens: 512, context: 512, ..room(&input(Vec::new())) };
    let budget = cost.memory(&cost.whole(), &short).total().0;
    let input =
        PlanInput { context: None, objective: Objective::OneStream, ..input(equal_devices(2, budget)) };
    let found = choices(&cost, &input).unwrap();
    assert_eq!(found.verdict, Verdict::Cluster);
    let others = alternatives(&cost, &input, &found);
    assert!(others[0].reason.starts_with("its context would be 512 tokens against"), "{others:?}");
}

#[test]
fn the_device_that_helps_most_comes_first() {
    let (cost, whole) = model();
    let base = PlanInput { objective: Objective::OneStream, ..input(vec![device("a", whole, 1e6)]) };
    let candidates: Vec<PlanDevice> = vec![
        device("tiny", 10, 1e6),
        device("quick", whole, 4e6),
        device("quicker", whole, 8e6),
        device("small and quick", whole * 2 / 3, 8e6),
    ];
    let found = what_if(&cost, &base, &candidates);
    assert_eq!(found.iter().map(|what| what.candidate).collect::<Vec<_>>(), [2, 1, 3, 0]);
    assert_eq!(found[0].verdict, Ok(Verdict::OneBox));
    assert!(found[0].one_stream.factor() > 6.0, "{:?}", found[0]);
    assert_eq!(found[3].one_stream.factor(), 1.0);
    assert_eq!(found[0].plan.as_ref().unwrap().stages[0].device, 1, "the candidate stands behind the others");
    // The gain is the plan's, for either objective.
    for what in &found {
        let (before, after) = (what.one_stream.before.unwrap(), what.one_stream.after.unwrap());
        assert!(after >= before * (1.0 - 1e-9), "{what:?}");
        let plan = what.plan.as_ref().unwrap();
        assert_eq!(Some(plan.predicted.decode_tokens_per_s), what.one_stream.after);
    }

    // Where nothing holds the model, what makes it possible comes first.
    let lacking = PlanInput { devices: vec![device("a", whole / 2, 1e6)], ..base };
    let found = what_if(&cost, &lacking, &candidates);
    assert_eq!(found.iter().map(|what| what.candidate).collect::<Vec<_>>(), [2, 1, 3, 0]);
    assert!(found[0].one_stream.factor().is_infinite());
    assert!(matches!(found[3].verdict, Ok(Verdict::NotAtAll { .. })), "{:?}", found[3]);
    assert_eq!(found[3].plan, None);
}
