//! Plans in which devices read again for every step what they cannot hold.

use brigade_shard::plan::{Objective, Optimality, Plan, PlanInput, STAGE_OVERHEAD_S, plan};
use brigade_shard::units::Bytes;

use crate::plan::{device, equal_devices, input};
use crate::plan_orders::{every_partition, measure_s, placed, random_hop, room, round_s};
use crate::random::Random;
use crate::tiny_llama;

fn streamed(plan: &Plan) -> usize {
    plan.stages.iter().map(|stage| stage.streamed_layers).sum()
}

#[test]
fn nothing_is_read_again_where_it_fits_or_where_no_device_may() {
    let cost = tiny_llama::read(&tiny_llama::wide(8)).3;
    let whole = cost.memory(&cost.whole(), &room(&input(Vec::new()))).total().0;
    let mut two = input(equal_devices(2, whole * 3 / 4));
    two.devices[0].offload_bytes_per_s = Some(1e9);
    let found = plan(&cost, &two).unwrap();
    assert_eq!((found.stages.len(), streamed(&found)), (2, 0), "both together hold it");
    // One of them alone does not.
    let found = plan(&cost, &two.only(&[0])).unwrap();
    assert!(streamed(&found) > 0, "{found:?}");
    assert!(found.notes.iter().any(|note| note.contains("read again for every step")), "{:?}", found.notes);
    assert!(plan(&cost, &two.only(&[1])).is_err());
}

#[test]
fn the_memory_and_time_of_streamed_layers_are_those_of_the_formulas() {
    let cost = tiny_llama::read(&tiny_llama::wide(10)).3;
    let made = room(&input(Vec::new()));
    let whole = cost.memory(&cost.whole(), &made).total().0;
    let layer = cost.layers()[0].matrices.0;
    // Two layers are always in memory of those that are streamed, in the blocks of their file.
    for (missing, least) in [(1, 3), (layer / 2, 3), (layer, 4), (4 * layer, 7)] {
        let memory = |streamed| cost.memory_streaming(&cost.whole(), streamed, &made).total().0;
        let expected = (0..=10).find(|streamed| memory(*streamed) <= whole - missing).unwrap();
        assert_eq!(expected, least, "{missing} bytes are missing");
        let mut one = input(equal_devices(1, whole - missing));
        one.devices[0].flops_per_s = 1e12;
        one.devices[0].offload_bytes_per_s = Some(1e5);
        let found = plan(&cost, &one).unwrap();
        let stage = &found.stages[0];
        assert_eq!(stage.streamed_layers, expected, "{missing} bytes are missing");
        assert_eq!(stage.memory, cost.memory_streaming(&stage.shard, expected, &found.room(&one)));
        assert!(stage.memory.total() <= one.devices[0].budget);
        // Reading takes longer here, once for every step and once for every chunk of a prompt.
        let read_ms = (expected as f64 * layer as f64 / 1e5 + STAGE_OVERHEAD_S) * 1e3;
        assert!((stage.decode_ms / read_ms - 1.0).abs() < 1e-9, "{} {read_ms}", stage.decode_ms);
        assert!((stage.prefill_ms_per_token * 8.0 / read_ms - 1.0).abs() < 1e-9);
        let round_s = round_s(&cost, &one, &placed(&found));
        assert!((found.predicted.decode_tokens_per_s * round_s - 1.0).abs() < 1e-3);
        assert!(found.bottleneck.contains("again for every step"), "{}", found.bottleneck);
        // Read quickly, it costs nothing.
        one.devices[0].offload_bytes_per_s = Some(1e12);
        let quick = plan(&cost, &one).unwrap();
        let mut ample = one.clone();
        ample.devices[0].budget = Bytes(whole);
        let held = plan(&cost, &ample).unwrap();
        assert_eq!((quick.predicted, streamed(&held)), (held.predicted, 0));
    }
}

#[test]
fn as_few_layers_are_read_again_as_possible_and_of_such_plans_the_fastest_is_taken() {
    let mut random = Random::new(41);
    let mut solved = 0;
    for round in 0..160 {
        let cost = tiny_llama::read(&tiny_llama::wide_untied(4 + round % 6)).3;
        let objective = [Objective::ManyStreams, Objective::OneStream][random.below(2) as usize];
        let devices = 1 + random.below(3);
        let parallel = 1 + random.below(5) as u32;
        let mut input = PlanInput { objective, parallel, ..input(Vec::new()) };
        let room = room(&input);
        let memory = cost.memory(&cost.whole(), &room);
        let (whole, workspace) = (memory.total().0 as f64, memory.workspace.0 as f64);
        for index in 0..devices {
            let budget = workspace + random.between(0.5, 0.98) / devices as f64 * (whole - workspace);
            let mut device = device(&format!("w{index}"), budget as u64, random.between(1e5, 4e6));
            device.offload_bytes_per_s = (random.below(4) > 0).then(|| 10f64.powf(random.between(4.0, 7.0)));
            input.devices.push(device);
            for other in (0..index as usize).filter(|_| round % 2 == 0) {
                input.links.pairs.insert((other, index as usize), random_hop(&mut random));
            }
        }
        let most = input.devices.len().min(cost.layer_count());
        let best = |stages: usize| {
            let mut best = (usize::MAX, f64::INFINITY);
            every_partition(&cost, &input, &room, stages, true, &mut |partition| {
                let streamed = partition.iter().map(|stage| stage.2).sum();
                let found = (streamed, measure_s(&cost, &input, partition));
                if found < best {
                    best = found;
                }
            });
            best
        };
        let Ok(found) = plan(&cost, &input) else {
            assert!((1..=most).all(|stages| best(stages).0 == usize::MAX), "round {round}: there is a plan");
            continue;
        };
        if streamed(&found) == 0 {
            continue;
        }
        let (least, least_s) = best(found.stages.len());
        let taken_s = measure_s(&cost, &input, &placed(&found));
        assert_eq!(streamed(&found), least, "round {round}: {found:?}");
        assert!(taken_s <= least_s * (1.0 + 3e-6), "round {round}: {taken_s} {least_s} {found:?}");
        assert_eq!(found.optimality, Optimality::Exact);
        for stage in &found.stages {
            let may = input.devices[stage.device].offload_bytes_per_s.is_some();
            assert!(may || stage.streamed_layers == 0, "round {round}");
            assert!(stage.memory.total() <= input.devices[stage.device].budget, "round {round}");
        }
        solved += 1;
    }
    assert!(solved > 40, "only {solved} plans streamed");
}

#[test]
fn what_is_left_beside_the_resident_layers_makes_the_context_longer() {
    let cost = tiny_llama::read(&tiny_llama::wide(4).key("llama.context_length", 8192)).3;
    let short = PlanInput { context: None, ..input(Vec::new()) };
    let room = |tokens| brigade_shard::cost::Room {
        cache_tokens: tokens,
        context: tokens,
        ..crate::plan_offload::room(&short)
    };
    let budget = cost.memory(&cost.whole(), &room(512)).total().saturating_sub(Bytes(1));
    let mut one = PlanInput { devices: equal_devices(1, budget.0), ..short.clone() };
    one.devices[0].offload_bytes_per_s = Some(1e6);
    let found = plan(&cost, &one).unwrap();
    assert_eq!(streamed(&found), 3);
    assert!(found.context > 512, "{found:?}");
    let longer = room(found.context + 32);
    assert!(cost.memory_streaming(&cost.whole(), 3, &longer).total() > budget);
}
