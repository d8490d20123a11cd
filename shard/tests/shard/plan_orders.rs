//! The plan that is chosen against every other contiguous partition: all sets and orders of devices, all cuts.

use std::collections::BTreeMap;

use brigade_shard::cost::{Cost, Room};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::plan::{
    HopCost, Objective, Optimality, Plan, PlanDevice, PlanError, PlanInput, STAGE_OVERHEAD_S, SharedHost,
    WORTHWHILE_GAIN, plan,
};
use brigade_shard::tensor_type::TensorType;

use crate::plan::{card, device, equal_devices, input};
use crate::random::Random;
use crate::tiny_llama;

/// A stage: device, layers, and how many of them are read for every step.
pub type Placed = (usize, LayerRange, usize);

/// Seconds of a stage for `rows` rows, by the formulas of the design.
pub fn stage_s(cost: &Cost, device: &PlanDevice, stage: &Placed, rows: u32) -> f64 {
    let (_, range, streamed) = *stage;
    let shard = Shard::of(range, cost.layer_count());
    let held = &cost.layers()[range.iter()];
    let head = if shard.head { cost.head().flops } else { 0 };
    let flops = held.iter().map(|layer| layer.flops).sum::<u64>() + head;
    let read: u64 = held[held.len() - streamed..].iter().map(|layer| layer.matrices.0).sum();
    let read_s = if streamed > 0 { read as f64 / device.offload_bytes_per_s.unwrap() } else { 0.0 };
    let computed_s = (bytes(cost, range) as f64 / device.bandwidth_bytes_per_s)
        .max(f64::from(rows) * flops as f64 / device.flops_per_s);
    computed_s.max(read_s) + STAGE_OVERHEAD_S
}

/// Weight bytes that a stage reads for a step.
fn bytes(cost: &Cost, range: LayerRange) -> u64 {
    let shard = Shard::of(range, cost.layer_count());
    let layers: u64 = cost.layers()[range.iter()].iter().map(|layer| layer.active.0).sum();
    let embedding = if shard.embedding { cost.embedding().active.0 } else { 0 };
    layers + embedding + if shard.head { cost.head().active.0 } else { 0 }
}

fn row_bytes(cost: &Cost, input: &PlanInput) -> f64 {
    cost.widths().hidden as f64 * f64::from(input.wire_value_bytes)
}

/// Seconds of one stream's token around all stages.
pub fn round_s(cost: &Cost, input: &PlanInput, stages: &[Placed]) -> f64 {
    let hop = |one: usize, other: usize| input.links.between(one, other);
    let stages_s: f64 = stages.iter().map(|stage| stage_s(cost, &input.devices[stage.0], stage, 1)).sum();
    let hops_s: f64 =
        stages.windows(2).map(|pair| hop(pair[0].0, pair[1].0).crossing_s(row_bytes(cost, input))).sum();
    let (first, last) = (stages[0].0, stages[stages.len() - 1].0);
    let closing_s = if first == last { 0.0 } else { hop(first, last).crossing_s(0.0) };
    stages_s + hops_s + closing_s
}

/// Rows of a step where the streams are in as many groups as there are stages.
fn rows(input: &PlanInput, stages: usize) -> u32 {
    input.parallel.max(1).div_ceil(stages as u32)
}

/// Seconds of the slowest stage, link or machine for a step of each stage.
fn cycle_s(cost: &Cost, input: &PlanInput, stages: &[Placed]) -> f64 {
    let rows = rows(input, stages.len());
    let busy_s = |stage: &Placed| stage_s(cost, &input.devices[stage.0], stage, rows);
    let slowest_s = stages.iter().map(busy_s).fold(0.0, f64::max);
    let links = stages.windows(2).map(|pair| {
        f64::from(rows) * row_bytes(cost, input) / input.links.between(pair[0].0, pair[1].0).bytes_per_s
    });
    let hosts = input.hosts.iter().enumerate().map(|(index, host)| {
        if input.devices.iter().filter(|device| device.host == Some(index)).count() < 2 {
            return 0.0;
        }
        let here = || stages.iter().filter(|stage| input.devices[stage.0].host == Some(index));
        let read: u64 = here().map(|stage| bytes(cost, stage.1)).sum();
        // Streaming keeps no processor busy.
        let computed_s = |stage: &Placed| {
            let device = &input.devices[stage.0];
            threads(device, host) * stage_s(cost, device, &(stage.0, stage.1, 0), rows)
        };
        let thread_s: f64 = here().map(computed_s).sum();
        (read as f64 / host.bandwidth_bytes_per_s).max(thread_s / f64::from(host.processors))
    });
    links.chain(hosts).fold(slowest_s, f64::max)
}

/// Compute threads: where they are not known, the device's share of what its machine reads.
fn threads(device: &PlanDevice, host: &SharedHost) -> f64 {
    let processors = f64::from(host.processors);
    if let Some(threads) = device.threads {
        return f64::from(threads).min(processors);
    }
    (device.bandwidth_bytes_per_s / host.bandwidth_bytes_per_s * processors).round().clamp(1.0, processors)
}

pub fn measure_s(cost: &Cost, input: &PlanInput, stages: &[Placed]) -> f64 {
    match input.objective {
        Objective::OneStream => round_s(cost, input, stages),
        Objective::ManyStreams => cycle_s(cost, input, stages),
    }
}

pub fn placed(plan: &Plan) -> Vec<Placed> {
    let stage =
        |stage: &brigade_shard::plan::PlannedStage| (stage.device, stage.shard.layers, stage.streamed_layers);
    plan.stages.iter().map(stage).collect()
}

/// Calls `visit` with every partition into exactly `stages` stages that fits; with `streaming`, devices that may do so
/// read the fewest layers again that let them hold their stage.
pub fn every_partition(
    cost: &Cost,
    input: &PlanInput,
    room: &Room,
    stages: usize,
    streaming: bool,
    visit: &mut dyn FnMut(&[Placed]),
) {
    struct Case<'a> {
        cost: &'a Cost,
        input: &'a PlanInput,
        room: &'a Room,
        streaming: bool,
    }
    fn go(case: &Case<'_>, left: usize, so_far: &mut Vec<Placed>, visit: &mut dyn FnMut(&[Placed])) {
        let layers = case.cost.layer_count();
        let start = so_far.last().map_or(0, |stage| stage.1.end);
        if left == 0 {
            if start == layers {
                visit(so_far);
            }
            return;
        }
        let apart =
            |one, other| case.input.apart.iter().any(|pair| *pair == (one, other) || *pair == (other, one));
        for (index, device) in case.input.devices.iter().enumerate() {
            let used = so_far.iter().any(|stage| stage.0 == index);
            if used || so_far.last().is_some_and(|last| apart(last.0, index)) {
                continue;
            }
            let ends = if left == 1 { layers..=layers } else { start + 1..=layers };
            for end in ends.filter(|end| *end > start) {
                let range = LayerRange { start, end };
                let shard = Shard::of(range, layers);
                let may_stream = case.streaming && device.offload_bytes_per_s.is_some();
                let most = if may_stream { range.len() } else { 0 };
                let fits = |streamed: &usize| {
                    case.cost.memory_streaming(&shard, *streamed, case.room).total() <= device.budget
                };
                if let Some(streamed) = (0..=most).find(fits)
                    && device.kernels.can(case.cost.needs(&shard))
                {
                    so_far.push((index, range, streamed));
                    go(case, left - 1, so_far, visit);
                    so_far.pop();
                }
            }
        }
    }
    go(&Case { cost, input, room, streaming }, stages, &mut Vec::new(), visit);
}

/// The least time by the input's objective over every partition into exactly `stages` stages.
fn least_s(cost: &Cost, input: &PlanInput, room: &Room, stages: usize) -> Option<f64> {
    let mut least: Option<f64> = None;
    every_partition(cost, input, room, stages, false, &mut |partition| {
        let taken_s = measure_s(cost, input, partition);
        least = Some(least.map_or(taken_s, |least: f64| least.min(taken_s)));
    });
    least
}

pub fn room(input: &PlanInput) -> Room {
    Room {
        cache_tokens: 64 * input.parallel,
        context: 64,
        step_rows: 8,
        sequences: input.parallel,
        cache_value_bytes: 2,
    }
}

/// What some cases have and others do not.
#[derive(Clone, Copy, Debug)]
struct Traits {
    links: bool,
    hosts: bool,
    mixed: bool,
    apart: bool,
}

pub fn random_hop(random: &mut Random) -> HopCost {
    HopCost {
        rtt_us: 10f64.powf(random.between(1.0, 4.0)),
        bytes_per_s: 10f64.powf(random.between(4.0, 7.0)),
    }
}

fn random_case(random: &mut Random, traits: Traits, layers: u64, devices: u64) -> (Cost, PlanInput) {
    let mut file = if random.below(2) == 0 {
        tiny_llama::file(layers as u32)
    } else {
        tiny_llama::untied(layers as u32)
    };
    for layer in (0..layers as usize).filter(|_| traits.mixed) {
        let kind = if random.below(3) == 0 { TensorType::IQ4_NL } else { TensorType::Q4_0 };
        file = tiny_llama::with_layer_in(file, layer, kind);
    }
    let cost = tiny_llama::read(&file).3;
    let parallel = [1, 2, 5, 12][random.below(4) as usize];
    let mut input = PlanInput { parallel, ..input(Vec::new()) };
    let whole = cost.memory(&cost.whole(), &room(&input)).total().0 as f64;
    for index in 0..devices {
        let make = if traits.mixed && random.below(3) == 0 { card } else { device };
        let budget = random.between(0.15, 1.3) * whole;
        input.devices.push(make(&format!("w{index}"), budget as u64, random.between(1e5, 4e6)));
    }
    if traits.hosts {
        input.hosts = (0..2)
            .map(|_| {
                // No device reads more than its machine.
                let bandwidth_bytes_per_s = random.between(4e6, 8e6);
                let processors = 1 + random.below(8) as u32;
                SharedHost { bandwidth_bytes_per_s, processors, speedup: f64::from(processors) }
            })
            .collect();
        for device in &mut input.devices {
            device.host = [None, Some(0), Some(1)][random.below(3) as usize];
            device.threads = [None, Some(1), Some(2)][random.below(3) as usize];
        }
    }
    if traits.links {
        input.links.default = random_hop(random);
        for one in 0..devices as usize {
            for other in one + 1..devices as usize {
                if random.below(2) == 0 {
                    input.links.pairs.insert((one, other), random_hop(random));
                }
            }
        }
        input.links.coordinator = BTreeMap::from([(0, random_hop(random))]);
    }
    if traits.apart {
        input.apart = (0..2)
            .map(|_| (random.below(devices) as usize, random.below(devices) as usize))
            .filter(|(one, other)| one != other)
            .collect();
    }
    (cost, input)
}

/// Plans, and compares with all partitions; whether there was a plan.
fn is_best(cost: &Cost, input: &PlanInput, case: &str) -> bool {
    let most = input.devices.len().min(cost.layer_count());
    let room = room(input);
    let least: Vec<Option<f64>> = (1..=most)
        .map(|stages| least_s(cost, input, &room, stages).filter(|_| stages >= input.min_stages))
        .collect();
    let found = match plan(cost, input) {
        Ok(found) => found,
        Err(error) => {
            assert!(least.iter().all(Option::is_none), "{case}: {error}, but there is {least:?}");
            return false;
        }
    };
    let stages = found.stages.len();
    let taken_s = measure_s(cost, input, &placed(&found));
    let best_s = least[stages - 1].unwrap_or_else(|| panic!("{case}: {found:?} where nothing fits"));
    assert!(taken_s <= best_s * (1.0 + 3e-6), "{case}: {taken_s} s where {best_s} s are possible: {found:?}");
    assert_eq!(found.optimality, Optimality::Exact, "{case}");
    // Where links differ, a stream may go by the coordinator.
    if input.objective == Objective::OneStream && input.links.coordinator.is_empty() {
        for (index, other_s) in least.iter().enumerate().filter_map(|(i, s)| Some((i, (*s)?))) {
            let gain = taken_s / other_s;
            let most = if index + 1 > stages { WORTHWHILE_GAIN } else { 1.0 };
            assert!(gain <= most * 1.002, "{case}: {} stages are {gain} times as fast", index + 1);
        }
    }
    for min_stages in stages + 1..=most {
        if let Ok(more) = plan(cost, &PlanInput { min_stages, ..input.clone() }) {
            let gain = input.objective.speed(&more.predicted) / input.objective.speed(&found.predicted);
            assert!(gain <= WORTHWHILE_GAIN * (1.0 + 1e-5), "{case}: {min_stages} stages gain {gain}");
        }
    }
    true
}

/// Cases that have all the combinations of traits, with numbers of layers and devices up to these.
fn cases(seed: u64, count: u64, layers: u64, devices: u64, objective: Objective) {
    let mut random = Random::new(seed);
    let mut solved = 0;
    for round in 0..count {
        let bit = |bit: u64| round >> bit & 1 == 1;
        let traits = Traits { links: bit(0), hosts: bit(1), mixed: bit(2), apart: bit(3) && bit(0) };
        let devices = 1 + random.below(devices);
        let layers = 2 + random.below(layers - 1);
        let (cost, input) = random_case(&mut random, traits, layers, devices);
        let min_stages = 1 + random.below(devices.min(cost.layer_count() as u64)) as usize;
        let input = PlanInput { objective, min_stages, ..input };
        solved += u64::from(is_best(&cost, &input, &format!("case {round}, {traits:?}, {objective:?}")));
    }
    assert!(solved * 3 > count, "only {solved} of {count} cases had a plan");
}

#[test]
fn for_many_streams_no_other_partition_has_a_faster_slowest_part() {
    cases(21, 320, 6, 5, Objective::ManyStreams);
}

#[test]
fn for_one_stream_no_other_partition_goes_round_faster() {
    cases(22, 320, 6, 5, Objective::OneStream);
}

#[test]
fn eight_devices_are_tried_in_every_order() {
    for (seed, objective) in [(23, Objective::ManyStreams), (24, Objective::OneStream)] {
        let mut random = Random::new(seed);
        for round in 0..6 {
            let traits = Traits { links: round % 2 == 0, hosts: round % 3 == 0, mixed: false, apart: false };
            let (cost, mut input) = random_case(&mut random, traits, 6, 8);
            // Little memory, so that several stages are needed.
            input.devices.iter_mut().for_each(|device| device.budget.0 /= 2);
            let input = PlanInput { objective, ..input };
            is_best(&cost, &input, &format!("case {round} of eight, {objective:?}"));
        }
    }
}

#[test]
fn a_slow_link_is_avoided_by_another_order() {
    let cost = tiny_llama::read(&tiny_llama::file(12)).3;
    for objective in [Objective::OneStream, Objective::ManyStreams] {
        let mut input = PlanInput { objective, min_stages: 4, ..input(equal_devices(4, 1 << 30)) };
        // Only 2-0-3-1 goes by quick links alone, or the same backwards.
        let quick = HopCost { rtt_us: 10.0, bytes_per_s: 1e9 };
        input.links.default = HopCost { rtt_us: 200_000.0, bytes_per_s: 1e3 };
        input.links.pairs = BTreeMap::from([((0, 2), quick), ((0, 3), quick), ((1, 3), quick)]);
        let found = plan(&cost, &input).unwrap();
        let order: Vec<usize> = found.stages.iter().map(|stage| stage.device).collect();
        assert!(order == [2, 0, 3, 1] || order == [1, 3, 0, 2], "{order:?} for {objective:?}");
        assert_eq!(found.optimality, Optimality::Exact);
    }
}

#[test]
fn where_orders_are_as_fast_the_ends_are_near_the_coordinator() {
    let cost = tiny_llama::read(&tiny_llama::file(6)).3;
    for objective in [Objective::OneStream, Objective::ManyStreams] {
        let mut input = PlanInput { objective, min_stages: 3, ..input(equal_devices(3, 1 << 30)) };
        input.links.coordinator.insert(0, HopCost { rtt_us: 50_000.0, bytes_per_s: 1e6 });
        let found = plan(&cost, &input).unwrap();
        assert_eq!(found.stages[1].device, 0, "{objective:?}");
    }
}

#[test]
fn workers_that_saturate_their_machine_are_not_twice_as_fast_as_one() {
    let cost = tiny_llama::read(&tiny_llama::file(12)).3;
    // Either reading takes the time, or arithmetic does.
    for (bandwidth, flops) in [(1e6, 1e12), (1e12, 1e6)] {
        let devices = |count: usize, host: Option<usize>| {
            let mut input = PlanInput { parallel: 8, ..input(equal_devices(count, 1 << 30)) };
            input.hosts = vec![SharedHost { bandwidth_bytes_per_s: bandwidth, processors: 2, speedup: 2.0 }];
            for device in &mut input.devices {
                (device.bandwidth_bytes_per_s, device.flops_per_s) = (bandwidth, flops);
                device.host = host;
            }
            input
        };
        let speed = |input: &PlanInput| plan(&cost, input).unwrap().predicted.throughput_tokens_per_s;
        let both = |host| PlanInput { min_stages: 2, ..devices(2, host) };
        let (alone, apart, shared) = (speed(&devices(1, None)), speed(&both(None)), speed(&both(Some(0))));
        assert!(shared <= alone * 1.02, "{shared} against {alone} alone");
        // What is read is read for all streams at once.
        let gain = if flops < bandwidth { 1.8 } else { 0.95 };
        assert!(apart > shared * gain, "{apart} on two machines against {shared} on one");
        let found = plan(&cost, &devices(2, Some(0))).unwrap();
        assert_eq!(found.stages.len(), 1, "the second one adds nothing");
        let shared = plan(&cost, &both(Some(0))).unwrap();
        assert_eq!(shared.optimality, Optimality::Exact);
        // Every cut keeps the machine as busy, and this one suits prompts and lone streams, too.
        let layers: Vec<usize> = shared.stages.iter().map(|stage| stage.shard.layers.len()).collect();
        assert!(layers.iter().all(|layers| (5..=7).contains(layers)), "{layers:?}");
    }
}

#[test]
fn machines_and_rates_that_are_none_are_refused() {
    let cost = tiny_llama::read(&tiny_llama::file(2)).3;
    let mut nowhere = input(equal_devices(2, 1 << 30));
    nowhere.devices[1].host = Some(0);
    assert!(matches!(plan(&cost, &nowhere), Err(PlanError::Rate { name, .. }) if name == "w1"));
    nowhere.hosts = vec![SharedHost { bandwidth_bytes_per_s: 1e6, processors: 0, speedup: 0.0 }];
    assert!(matches!(plan(&cost, &nowhere), Err(PlanError::Rate { .. })));
    let mut still = input(equal_devices(1, 1 << 30));
    still.devices[0].offload_bytes_per_s = Some(0.0);
    assert!(matches!(plan(&cost, &still), Err(PlanError::Rate { name, .. }) if name == "w0"));
}

#[test]
fn a_part_of_the_devices_keeps_its_links() {
    let mut input = input(equal_devices(4, 1 << 30));
    let hop = |rtt_us| HopCost { rtt_us, bytes_per_s: 1e6 };
    input.links.pairs = BTreeMap::from([((0, 1), hop(1.0)), ((1, 3), hop(13.0)), ((2, 3), hop(23.0))]);
    input.links.coordinator = BTreeMap::from([(3, hop(3.0))]);
    input.apart = vec![(3, 2), (0, 1)];
    let part = input.only(&[3, 1, 2]);
    assert_eq!(
        part.devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(),
        ["w3", "w1", "w2"]
    );
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let before = [3, 1, 2];
        assert_eq!(part.links.between(one, other), input.links.between(before[one], before[other]));
    }
    assert_eq!(part.links.to_coordinator(0), hop(3.0));
    assert_eq!(part.links.to_coordinator(1), input.links.default);
    assert_eq!(part.apart, [(0, 2)]);
}
