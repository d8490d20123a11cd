//! Plans against every plan there is, in cases small enough to try them all.

use std::time::Duration;

use brigade_shard::cost::{Cost, PAGE_TOKENS, Room};
use brigade_shard::kernels::Kernels;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::plan::{
    HopCost, Links, Objective, Plan, PlanDevice, PlanError, PlanInput, STAGE_OVERHEAD_S, place_beside, plan,
    plan_beside,
};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::clock::{computed, longest};
use crate::random::Random;
use crate::tiny_llama;

pub fn device(name: &str, budget: u64, bandwidth: f64) -> PlanDevice {
    PlanDevice {
        name: name.to_owned(),
        budget: Bytes(budget),
        bandwidth_bytes_per_s: bandwidth,
        flops_per_s: bandwidth * 4.0,
        threads: None,
        kernels: Kernels::CPU,
        held: None,
        kernel_speeds: Vec::new(),
        host: None,
        offload_bytes_per_s: None,
    }
}

/// A card that candle drives.
pub fn card(name: &str, budget: u64, bandwidth: f64) -> PlanDevice {
    PlanDevice { kernels: Kernels::CANDLE, ..device(name, budget, bandwidth) }
}

pub fn equal_devices(count: usize, budget: u64) -> Vec<PlanDevice> {
    (0..count).map(|i| device(&format!("w{i}"), budget, 1e6)).collect()
}

pub fn input(devices: Vec<PlanDevice>) -> PlanInput {
    PlanInput {
        devices,
        context: Some(64),
        parallel: 1,
        min_stages: 1,
        split: Vec::new(),
        step_rows: 8,
        cache_value_bytes: 2,
        wire_value_bytes: 4,
        links: Links::all(HopCost { rtt_us: 10.0, bytes_per_s: 1e9 }),
        hosts: Vec::new(),
        objective: Objective::default(),
        apart: Vec::new(),
    }
}

/// Time of a stage to decode one row, by the formula of the design.
fn stage_s(cost: &Cost, device: &PlanDevice, shard: &Shard) -> f64 {
    let held = &cost.layers()[shard.layers.iter()];
    let mut active: u64 = held.iter().map(|layer| layer.active.0).sum();
    let mut flops: u64 = held.iter().map(|layer| layer.flops).sum();
    if shard.embedding {
        active += cost.embedding().active.0;
    }
    if shard.head {
        active += cost.head().active.0;
        flops += cost.head().flops;
    }
    (active as f64 / device.bandwidth_bytes_per_s).max(flops as f64 / device.flops_per_s) + STAGE_OVERHEAD_S
}

/// The least time of the slowest stage over every order and cut of exactly `stages` stages; `None` where nothing fits.
fn brute_force(cost: &Cost, input: &PlanInput, room: &Room, stages: usize) -> Option<f64> {
    struct Case<'a> {
        cost: &'a Cost,
        input: &'a PlanInput,
        room: &'a Room,
    }
    fn go(case: &Case<'_>, used: u32, start: usize, left: usize, slowest: f64) -> Option<f64> {
        let layers = case.cost.layer_count();
        if left == 0 {
            return (start == layers).then_some(slowest);
        }
        let mut best: Option<f64> = None;
        for (index, device) in case.input.devices.iter().enumerate().filter(|(i, _)| used & 1 << i == 0) {
            for end in start + 1..=layers {
                let shard = Shard::of(LayerRange { start, end }, layers);
                let can = device.kernels.can(case.cost.needs(&shard));
                if !can || case.cost.memory(&shard, case.room).total() > device.budget {
                    continue;
                }
                let slowest = slowest.max(stage_s(case.cost, device, &shard));
                let found = go(case, used | 1 << index, end, left - 1, slowest);
                best = [best, found].into_iter().flatten().min_by(f64::total_cmp);
            }
        }
        best
    }
    go(&Case { cost, input, room }, 0, 0, stages, 0.0)
}

/// Checks what must hold of every plan, and returns its slowest stage's time in seconds.
fn check(plan: &Plan, cost: &Cost, input: &PlanInput) -> f64 {
    let mut next = 0;
    let mut devices = Vec::new();
    for stage in &plan.stages {
        assert_eq!(stage.shard, Shard::of(stage.shard.layers, cost.layer_count()));
        assert_eq!(stage.shard.layers.start, next);
        assert!(!stage.shard.layers.is_empty());
        next = stage.shard.layers.end;
        assert_eq!(stage.memory, cost.memory(&stage.shard, &plan.room(input)));
        let device = &input.devices[stage.device];
        assert!(stage.memory.total() <= device.budget);
        assert!(device.kernels.can(cost.needs(&stage.shard)));
        devices.push(stage.device);
    }
    assert_eq!(next, cost.layer_count());
    assert!(plan.stages.len() >= input.min_stages);
    devices.extend(plan.unused.iter().map(|unused| unused.device));
    devices.sort_unstable();
    assert_eq!(devices, (0..input.devices.len()).collect::<Vec<_>>());
    assert_eq!(plan.cache_tokens % PAGE_TOKENS, 0);
    plan.stages.iter().map(|stage| stage.decode_ms / 1e3).fold(0.0, f64::max)
}

#[test]
fn small_cases_are_solved_as_well_as_by_trying_everything() {
    let mut random = Random::new(3);
    let mut solved = 0;
    let mut without_kernels = 0;
    for _ in 0..400 {
        let layers = 2 + random.below(5);
        let mut file = if random.below(2) == 0 {
            tiny_llama::file(layers as u32)
        } else {
            tiny_llama::untied(layers as u32)
        };
        // In half of the cases some layers are such that cards cannot compute them.
        let mixed = random.below(2) == 0;
        for layer in (0..layers as usize).filter(|_| mixed) {
            let kind = if random.below(3) == 0 { TensorType::IQ4_NL } else { TensorType::Q4_0 };
            file = tiny_llama::with_layer_in(file, layer, kind);
        }
        let (_, _, _, cost) = tiny_llama::read(&file);
        let whole = cost.memory(&cost.whole(), &Plan::default_room()).total().0;
        let stages = 1 + random.below(layers.min(4)) as usize;
        let devices = (0..stages).map(|i| {
            let budget = random.between(0.15, 1.3) * whole as f64;
            let make = if random.below(3) == 0 { card } else { device };
            make(&format!("w{i}"), budget as u64, random.between(1e5, 4e6))
        });
        let input = PlanInput { min_stages: stages, ..input(devices.collect()) };
        let found = plan(&cost, &input);
        let room = Plan::default_room();
        match (found, brute_force(&cost, &input, &room, stages)) {
            (Ok(found), Some(best)) => {
                let slowest = check(&found, &cost, &input);
                assert!(slowest <= best * 1.002, "{slowest} against {best}: {found:?}");
                solved += 1;
            }
            (Err(PlanError::TooLittleMemory(_)), None) => {}
            (Err(PlanError::NoKernels { .. }), None) if mixed => without_kernels += 1,
            (found, best) => panic!("{found:?} against {best:?}"),
        }
    }
    assert!(solved > 100, "only {solved} cases had a solution");
    assert!(without_kernels > 10, "only {without_kernels} cases were beyond the devices");
}

trait DefaultRoom {
    fn default_room() -> Room;
}

impl DefaultRoom for Plan {
    /// The room that the inputs of this file ask for.
    fn default_room() -> Room {
        Room { cache_tokens: 64, context: 64, step_rows: 8, sequences: 1, cache_value_bytes: 2 }
    }
}

#[test]
fn a_card_without_the_kernels_is_left_out_and_said_to_lack_them() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::in_codebooks(4));
    let fast_card = || card("card", 1 << 30, 1e9);
    let found = plan(&cost, &input(vec![fast_card(), device("cpu", 1 << 30, 1e6)])).unwrap();
    assert_eq!(found.stages.iter().map(|stage| stage.device).collect::<Vec<_>>(), [1]);
    assert_eq!(found.unused[0].reason, "it has no kernels for IQ4_NL");

    let alone = plan(&cost, &input(vec![fast_card()])).unwrap_err();
    assert!(alone.to_string().contains("card has no kernels for IQ4_NL"), "{alone}");

    // Memory is what is missing, but not on the card.
    let error = plan(&cost, &input(vec![fast_card(), device("cpu", 1000, 1e6)])).unwrap_err();
    let PlanError::TooLittleMemory(shortage) = &error else { panic!("{error}") };
    assert_eq!(shortage.offered, Bytes(1000));
    assert!(error.to_string().ends_with("; card cannot help, it has no kernels for IQ4_NL"), "{error}");
}

#[test]
fn a_card_that_converts_is_planned_with_as_much_less_as_weights_grow() {
    let (_, spec, table, cost) = tiny_llama::read(&tiny_llama::in_codebooks(4));
    let converting =
        |budget| PlanDevice { kernels: Kernels::CANDLE.converting(), ..card("card", budget, 1e9) };
    let room = Plan::default_room();
    let as_filed = cost.memory(&cost.whole(), &room).total().0;
    // What a worker counts of the whole model before it loads it.
    let converted = Cost::new(&spec, &table.standing_in(Kernels::CANDLE));
    let on_card = converted.memory(&converted.whole(), &room).total().0;
    assert!(on_card > as_filed);
    let fits = |budget| plan(&cost, &input(vec![converting(budget)])).is_ok();
    let least = (as_filed..4 * on_card).step_by(64).find(|budget| fits(*budget)).unwrap();
    assert!(least >= on_card, "{least} bytes are planned with, and {on_card} are needed");
    assert!(least as f64 <= 1.6 * on_card as f64, "{least} bytes are wanted where {on_card} would do");
    // A model without such types takes the whole budget.
    let (_, _, _, usual) = tiny_llama::read(&tiny_llama::file(4));
    let whole = usual.memory(&usual.whole(), &room).total().0;
    assert!(plan(&usual, &input(vec![converting(whole)])).is_ok());
}

#[test]
fn a_card_holds_the_layers_that_it_has_kernels_for() {
    let file = tiny_llama::with_layer_in(tiny_llama::file(6), 0, TensorType::IQ4_NL);
    let (_, _, _, cost) = tiny_llama::read(&file);
    let input =
        PlanInput { min_stages: 2, ..input(vec![card("card", 1 << 30, 1e9), device("cpu", 1 << 30, 1e6)]) };
    let found = plan(&cost, &input).unwrap();
    check(&found, &cost, &input);
    let held: Vec<_> = found.stages.iter().map(|stage| (stage.device, stage.shard.layers.len())).collect();
    assert_eq!(held, [(1, 1), (0, 5)]);
}

#[test]
fn a_draft_model_goes_where_it_can_be_computed() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(4));
    let (_, _, _, draft) = tiny_llama::read(&tiny_llama::in_codebooks(1));
    let input = input(vec![card("card", 1 << 30, 1e9), device("cpu", 1 << 24, 1e6)]);
    let found = plan_beside(&cost, &input, &draft).unwrap();
    assert_eq!(place_beside(&draft, &input, &found).unwrap().stages[0].device, 1);
    let cards = PlanInput { devices: vec![card("card", 1 << 30, 1e9)], ..input };
    let error = plan_beside(&cost, &cards, &draft).unwrap_err();
    assert!(error.to_string().contains("card has no kernels for IQ4_NL"), "{error}");
}

#[test]
fn equal_devices_keep_their_order_and_share_evenly() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(12));
    let input = PlanInput { min_stages: 3, ..input(equal_devices(3, 1 << 30)) };
    let found = plan(&cost, &input).unwrap();
    check(&found, &cost, &input);
    assert_eq!(found.stages.iter().map(|stage| stage.device).collect::<Vec<_>>(), [0, 1, 2]);
    let sizes: Vec<usize> = found.stages.iter().map(|stage| stage.shard.layers.len()).collect();
    assert!(sizes.iter().all(|size| (3..=5).contains(size)), "{sizes:?}");
}

#[test]
fn a_faster_device_gets_more_layers() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(12));
    let devices = vec![device("slow", 1 << 30, 1e6), device("fast", 1 << 30, 3e6)];
    let input = PlanInput { min_stages: 2, ..input(devices) };
    let found = plan(&cost, &input).unwrap();
    let layers = |device: usize| {
        let stage = found.stages.iter().find(|stage| stage.device == device).unwrap();
        stage.shard.layers.len()
    };
    assert!(layers(1) >= 2 * layers(0), "{found:?}");
    assert!(found.bottleneck.contains("KiB of weights per token"), "{}", found.bottleneck);
}

#[test]
fn the_order_is_changed_where_only_another_one_fits() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::untied(4));
    let room = Plan::default_room();
    let end = cost.memory(&Shard::of(LayerRange { start: 3, end: 4 }, 4), &room).total().0;
    let middle = cost.memory(&Shard::of(LayerRange { start: 1, end: 2 }, 4), &room).total().0;
    // The first device holds a layer but neither end.
    assert!(middle < end, "{middle} {end}");
    let devices = vec![device("thin", middle, 1e6), device("a", 1 << 30, 1e6), device("b", 1 << 30, 1e6)];
    let input = PlanInput { min_stages: 3, ..input(devices) };
    let found = plan(&cost, &input).unwrap();
    check(&found, &cost, &input);
    assert_eq!(found.stages[1].device, 0);
}

#[test]
fn among_many_devices_the_only_one_with_room_for_the_head_gets_it() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::untied(12));
    let room = Plan::default_room();
    let take = |start, end| cost.memory(&Shard::of(LayerRange { start, end }, 12), &room).total().0;
    // Ten different devices for one layer each, of which only the eleventh can hold the head too.
    let mut devices: Vec<PlanDevice> =
        (0..10).map(|i| device(&format!("w{i}"), take(1, 2) + i, 1e6 + i as f64)).collect();
    devices.push(device("head", take(11, 12), 1e6));
    devices.push(device("embedding", take(0, 1), 1e6));
    let input = PlanInput { min_stages: 12, ..input(devices) };
    let found = plan(&cost, &input).unwrap();
    check(&found, &cost, &input);
    assert_eq!(found.stages.last().unwrap().device, 10);
}

#[test]
fn the_context_is_the_longest_that_fits() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(4));
    let least = Room { cache_tokens: 256, context: 256, ..Plan::default_room() };
    let roomy = cost.memory(&cost.whole(), &least).total().0;
    let input = |budget: u64| PlanInput { context: None, parallel: 3, ..input(equal_devices(1, budget)) };
    // The model's own context is below the least that a plan is made for, so it must fit whole.
    assert!(matches!(plan(&cost, &input(roomy - 1)), Err(PlanError::TooLittleMemory(_))));
    let found = plan(&cost, &input(roomy)).unwrap();
    assert_eq!((found.context, found.cache_tokens), (256, 256));
    assert!(found.notes.iter().any(|note| note.contains("the cache holds 256 tokens")), "{:?}", found.notes);
    let found = plan(&cost, &input(1 << 30)).unwrap();
    assert_eq!((found.context, found.cache_tokens), (256, 768));

    let file = tiny_llama::file(4).key("llama.context_length", 8000);
    let (_, _, _, cost) = tiny_llama::read(&file);
    for context in [512u32, 1024, 4000 / 32 * 32] {
        let room = Room { cache_tokens: context, context, ..Plan::default_room() };
        let budget = cost.memory(&cost.whole(), &room).total().0;
        assert_eq!(plan(&cost, &input(budget)).unwrap().context, context);
        assert_eq!(plan(&cost, &input(budget - 1)).map(|found| found.context).unwrap_or(480), context - 32);
    }
    let found = plan(&cost, &input(1 << 30)).unwrap();
    assert_eq!((found.context, found.cache_tokens), (8000, 24000));
}

#[test]
fn a_stated_context_must_fit_for_every_sequence() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(4));
    let room = Room { cache_tokens: 300, context: 100, ..Plan::default_room() };
    let budget = cost.memory(&cost.whole(), &Room { cache_tokens: 3 * 128, ..room }).total().0;
    let with = |budget: u64| PlanInput { context: Some(100), parallel: 3, ..input(equal_devices(1, budget)) };
    let found = plan(&cost, &with(budget)).unwrap();
    assert_eq!((found.context, found.cache_tokens), (100, 3 * 128));
    let error = plan(&cost, &with(budget - 1)).unwrap_err();
    let PlanError::TooLittleMemory(shortage) = &error else { panic!("{error}") };
    assert_eq!(shortage.shorter_context, Some(96));
    assert!(error.to_string().contains("lower the context to 96 tokens"), "{error}");
}

#[test]
fn joining_workers_too_small_for_an_end_of_the_model_is_not_advised() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(8));
    let last = Shard::of(LayerRange { start: 7, end: 8 }, 8);
    let first = Shard::of(LayerRange { start: 0, end: 1 }, 8);
    let room = Plan::default_room();
    let ends = cost.memory(&last, &room).total().max(cost.memory(&first, &room).total());
    let error = plan(&cost, &input(equal_devices(8, ends.0 - 1))).unwrap_err();
    let PlanError::TooLittleMemory(shortage) = &error else { panic!("{error}") };
    assert_eq!(shortage.least_worker, Some(ends));
    assert!(error.to_string().contains("join another worker of at least"), "{error}");
}

#[test]
fn missing_memory_is_just_enough_and_named_per_worker() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(8));
    let whole = cost.memory(&cost.whole(), &Plan::default_room()).total().0;
    // The small one holds no layer, so that all that is missing is best added to the big one.
    let budgets = [whole / 3, whole / 50];
    let with = |extra: u64| {
        let devices = vec![device("big", budgets[0] + extra, 1e6), device("small", budgets[1], 1e6)];
        PlanInput { min_stages: 1, ..input(devices) }
    };
    let error = plan(&cost, &with(0)).unwrap_err();
    let PlanError::TooLittleMemory(shortage) = &error else { panic!("{error}") };
    assert_eq!(shortage.add_to.as_deref(), Some("big"));
    assert!(plan(&cost, &with(shortage.missing.0)).is_ok());
    assert!(plan(&cost, &with(shortage.missing.0.saturating_sub(4 << 10))).is_err());
    assert_eq!(shortage.offered, Bytes(budgets[0] + budgets[1]));
    let message = error.to_string();
    for part in ["needs 0.", "MiB more", "big offers", "small offers", "join another worker"] {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
    // Nothing at all is missing more than the model takes.
    let error = plan(&cost, &input(equal_devices(1, 0))).unwrap_err();
    let PlanError::TooLittleMemory(shortage) = &error else { panic!("{error}") };
    assert!(shortage.missing.0 >= whole && shortage.missing.0 <= whole + (4 << 10));
    assert!(error.to_string().contains("its smallest useful shard takes"), "{error}");
}

#[test]
fn one_device_is_enough_where_more_would_not_help() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(6));
    let alone = plan(&cost, &input(equal_devices(3, 1 << 30))).unwrap();
    assert_eq!(alone.stages.len(), 1);
    assert_eq!(alone.unused.len(), 2);
    assert!(alone.unused[0].reason.contains("would not make answers faster"), "{:?}", alone.unused);
    let forced = PlanInput { min_stages: 3, ..input(equal_devices(3, 1 << 30)) };
    let forced = plan(&cost, &forced).unwrap();
    assert!(forced.notes.iter().any(|note| note.contains("don't split")), "{:?}", forced.notes);
    assert!(forced.predicted.decode_tokens_per_s < alone.predicted.decode_tokens_per_s);
}

#[test]
fn more_stages_are_used_where_arithmetic_limits_many_streams() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(6));
    let mut devices = equal_devices(3, 1 << 30);
    for device in &mut devices {
        device.bandwidth_bytes_per_s = 1e12;
        device.flops_per_s = 1e6;
    }
    let one = PlanInput { parallel: 1, ..input(devices.clone()) };
    let many = PlanInput { parallel: 12, ..input(devices) };
    assert_eq!(plan(&cost, &one).unwrap().stages.len(), 1);
    let found = plan(&cost, &many).unwrap();
    assert_eq!(found.stages.len(), 3, "{found:?}");
    assert!(found.bottleneck.contains("GFLOP"), "{}", found.bottleneck);
}

#[test]
fn smaller_values_on_the_wire_make_hops_shorter() {
    let (_, spec, _, cost) = tiny_llama::read(&tiny_llama::file(6));
    let hop = HopCost { rtt_us: 0.0, bytes_per_s: 1e5 };
    let with = |wire_value_bytes| {
        let input = PlanInput {
            min_stages: 2,
            wire_value_bytes,
            links: Links::all(hop),
            ..input(equal_devices(2, 1 << 30))
        };
        1.0 / plan(&cost, &input).unwrap().predicted.decode_tokens_per_s
    };
    let row_s = 2.0 * spec.hidden as f64 / hop.bytes_per_s;
    assert!((with(4) - with(2) - row_s).abs() < 1e-9, "{} {} {row_s}", with(4), with(2));
}

#[test]
fn every_number_of_stages_up_to_the_layers_works() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(6));
    for stages in 1..=6 {
        let input = PlanInput { min_stages: stages, ..input(equal_devices(6, 1 << 30)) };
        let found = plan(&cost, &input).unwrap();
        check(&found, &cost, &input);
        assert_eq!(found.stages.len(), stages);
    }
}

#[test]
fn a_split_that_is_asked_for_is_kept_on_the_devices_that_hold_it() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(8));
    let layers = |plan: &Plan| -> Vec<usize> { plan.stages.iter().map(|s| s.shard.layers.len()).collect() };
    for split in [vec![8], vec![1, 7], vec![5, 1, 2]] {
        let input = PlanInput { split: split.clone(), ..input(equal_devices(3, 1 << 30)) };
        let found = plan(&cost, &input).unwrap();
        check(&found, &cost, &input);
        assert_eq!(layers(&found), split);
        let idle = found.unused.iter().all(|unused| unused.reason.contains("split"));
        assert!(idle && found.unused.len() == 3 - split.len(), "{:?}", found.unused);
    }
    // Where one device is too small for the longer stage, the other takes it.
    let room = Plan::default_room();
    let long = Shard { layers: LayerRange { start: 2, end: 8 }, embedding: false, head: true };
    let enough = cost.memory(&long, &room).total().0;
    let devices = vec![device("small", enough - 1, 1e6), device("large", enough, 1e6)];
    let of = |split: &[usize]| PlanInput { split: split.to_vec(), ..input(devices.clone()) };
    let found = plan(&cost, &of(&[2, 6])).unwrap();
    assert_eq!((layers(&found), found.stages[1].device), (vec![2, 6], 1));
    assert!(matches!(plan(&cost, &of(&[1, 7])), Err(PlanError::TooLittleMemory(_))));
}

#[test]
fn contradictions_are_refused() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(2));
    let base = || input(equal_devices(3, 1 << 30));
    let error = |input: PlanInput| plan(&cost, &input).unwrap_err();
    assert_eq!(error(input(Vec::new())), PlanError::NoDevices);
    assert_eq!(error(input(equal_devices(200, 1 << 30))), PlanError::TooManyDevices { devices: 200 });
    assert_eq!(
        error(PlanInput { min_stages: 4, ..base() }),
        PlanError::TooFewDevices { wanted: 4, devices: 3 }
    );
    assert_eq!(
        error(PlanInput { min_stages: 3, ..base() }),
        PlanError::MoreStagesThanLayers { stages: 3, layers: 2 }
    );
    assert_eq!(error(PlanInput { context: Some(0), ..base() }), PlanError::Context { asked: 0, model: 256 });
    assert_eq!(
        error(PlanInput { context: Some(257), ..base() }),
        PlanError::Context { asked: 257, model: 256 }
    );
    for (split, sum) in [(vec![1, 2], 3), (vec![2, 0], 2), (vec![usize::MAX, 2], usize::MAX)] {
        let error = error(PlanInput { split: split.clone(), ..base() });
        assert_eq!(error, PlanError::Split { split, sum, layers: 2 });
    }
    assert_eq!(
        error(PlanInput { split: vec![2], min_stages: 2, ..base() }),
        PlanError::SplitStages { stages: 1, least: 2, devices: 3 }
    );
    let mut slow = base();
    slow.devices[1].flops_per_s = f64::NAN;
    assert_eq!(error(slow), PlanError::Speed { name: "w1".to_owned() });
    assert_eq!(
        error(PlanInput { links: Links::all(HopCost { rtt_us: -1.0, bytes_per_s: 1.0 }), ..base() }),
        PlanError::Hop
    );
}

#[test]
fn sixteen_different_devices_and_126_layers_are_planned_at_once() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(126).key("llama.context_length", 131072));
    let whole = cost.memory(&cost.whole(), &Plan::default_room()).total().0;
    let mut random = Random::new(9);
    let devices = (0..16).map(|i| {
        let budget = random.between(0.1, 0.4) * whole as f64;
        device(&format!("w{i}"), budget as u64, random.between(1e6, 4e6))
    });
    let devices: Vec<PlanDevice> = devices.collect();
    // As they are, and when all but the last hold what a plan without it gave them.
    let fifteen = plan(&cost, &input(devices[..15].to_vec())).unwrap();
    let mut holding = devices.clone();
    for stage in &fifteen.stages {
        holding[stage.device].held = Some(stage.shard.layers);
    }
    for (context, devices) in [(Some(64), &devices), (None, &devices), (Some(64), &holding), (None, &holding)]
    {
        let input = PlanInput { context, parallel: 4, ..input(devices.clone()) };
        // One run in time is enough: others on the machine slow it in other ways, too.
        let mut times = (0..40).map(|_| {
            let started = computed();
            check(&plan(&cost, &input).unwrap(), &cost, &input);
            computed() - started
        });
        let limit = longest(Duration::from_millis(100));
        let in_time = times.any(|time| time < limit);
        assert!(in_time, "no plan within {limit:?} in 40 runs with a context of {context:?}");
    }
}

#[test]
fn workers_that_cannot_reach_each_other_are_no_neighbours() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(12));
    for devices in 3..=6 {
        for apart in [vec![(0, 1)], vec![(1, 0), (1, 2)], vec![(0, 1), (0, 2)]] {
            let made_for = PlanInput {
                apart: apart.clone(),
                min_stages: devices,
                ..input(equal_devices(devices, 1 << 30))
            };
            let made = plan(&cost, &made_for);
            let order: Vec<usize> = match &made {
                Ok(made) => made.stages.iter().map(|stage| stage.device).collect(),
                Err(error) => {
                    assert!(devices == 3 && apart.len() == 2, "{devices} devices, {apart:?}: {error}");
                    let text = error.to_string();
                    assert!(text.contains("cannot reach each other"), "{text}");
                    continue;
                }
            };
            assert_eq!(order.len(), devices);
            for pair in order.windows(2) {
                let are_apart = apart.contains(&(pair[0], pair[1])) || apart.contains(&(pair[1], pair[0]));
                assert!(!are_apart, "{order:?} for {apart:?}");
            }
        }
    }
}

#[test]
fn a_plan_beside_a_draft_model_leaves_it_room_on_one_device() {
    let cost_of = |layers| tiny_llama::read(&tiny_llama::file(layers)).3;
    let (cost, draft) = (cost_of(6), cost_of(1));
    let whole = |cost: &Cost, input: &PlanInput| {
        let found = plan(cost, &PlanInput { devices: equal_devices(1, 1 << 40), ..input.clone() }).unwrap();
        found.stages[0].memory.total().0
    };
    let sizes = input(Vec::new());
    let (model, small) = (whole(&cost, &sizes), whole(&draft, &sizes));
    let place = |budgets: &[u64]| {
        let devices =
            budgets.iter().enumerate().map(|(i, budget)| device(&format!("w{i}"), *budget, 1e6)).collect();
        let input = input(devices);
        let found = plan_beside(&cost, &input, &draft)?;
        check(&found, &cost, &input);
        let beside = place_beside(&draft, &input, &found)?;
        assert_eq!(beside.stages.len(), 1);
        assert_eq!(beside.stages[0].shard, draft.whole());
        let held = found.stages.iter().filter(|stage| stage.device == beside.stages[0].device);
        let held: u64 = held.map(|stage| stage.memory.total().0).sum();
        assert!(held + beside.stages[0].memory.total().0 <= budgets[beside.stages[0].device]);
        Ok::<usize, PlanError>(beside.stages[0].device)
    };
    assert_eq!(place(&[model + small]).unwrap(), 0);
    assert_eq!(place(&[model, small]).unwrap(), 1, "the model alone fills the first");
    assert_eq!(place(&[small, model, small * 2]).unwrap(), 2, "the most memory is left there");
    // The model has to be cut for the other one to find a place.
    place(&[model, model / 2 + small]).unwrap();
    let error = place(&[model + small / 2, small / 2]).unwrap_err();
    let PlanError::NoRoomForDraft { needed, left } = &error else { panic!("{error}") };
    assert!(*left < *needed && needed.0 <= small, "{error}");
    assert!(error.to_string().contains("leave the draft model out"), "{error}");
    assert!(matches!(place(&[model / 4]), Err(PlanError::TooLittleMemory(_))), "that is another matter");
}

/// What every stage of a plan adds to what its device holds, in layers.
fn added(plan: &Plan, devices: &[PlanDevice]) -> Vec<usize> {
    let added = |stage: &brigade_shard::plan::PlannedStage| {
        let held = devices[stage.device].held.unwrap_or(LayerRange { start: 0, end: 0 });
        stage.shard.layers.iter().filter(|layer| !held.iter().contains(layer)).count()
    };
    plan.stages.iter().map(added).collect()
}

/// Devices that hold what this plan gave them, and so many new ones before, between or behind them.
fn holding(plan: &Plan, devices: &[PlanDevice], new: usize) -> Vec<PlanDevice> {
    let mut holding = devices.to_vec();
    for stage in &plan.stages {
        holding[stage.device].held = Some(stage.shard.layers);
    }
    let budget = devices[0].budget.0;
    holding.splice(0..0, (0..new).map(|i| device(&format!("new{i}"), budget, 1e6)));
    holding
}

#[test]
fn a_new_device_between_two_leaves_them_with_less_than_they_hold() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(30));
    let two = input(equal_devices(2, 1 << 30));
    let before = plan(&cost, &PlanInput { min_stages: 2, ..two.clone() }).unwrap();
    for context in [Some(64), None] {
        let three =
            PlanInput { devices: holding(&before, &two.devices, 1), min_stages: 3, context, ..two.clone() };
        let kept = plan(&cost, &three).unwrap();
        check(&kept, &cost, &three);
        let added = added(&kept, &three.devices);
        assert_eq!((added[0], added[2]), (0, 0), "{added:?} in {:?}", kept.stages);
        assert_eq!(kept.stages.iter().map(|stage| stage.device).collect::<Vec<_>>(), [1, 0, 2]);
        // For the sake of that it is hardly slower.
        let nothing =
            three.devices.iter().map(|device| PlanDevice { held: None, ..device.clone() }).collect();
        let anew = plan(&cost, &PlanInput { devices: nothing, ..three.clone() }).unwrap();
        let speed = |plan: &Plan| plan.predicted.throughput_tokens_per_s;
        assert!(speed(&kept) * 1.025 > speed(&anew), "{} {}", speed(&kept), speed(&anew));
    }
}

#[test]
fn a_device_that_replaces_another_takes_its_place_in_the_pipeline() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(32));
    let four = PlanInput { min_stages: 4, ..input(equal_devices(4, 1 << 30)) };
    let before = plan(&cost, &four).unwrap();
    for lost in 0..4 {
        let mut devices = holding(&before, &four.devices, 1);
        devices.remove(1 + before.stages[lost].device);
        let after = plan(&cost, &PlanInput { devices: devices.clone(), ..four.clone() }).unwrap();
        let added = added(&after, &devices);
        let read: usize = added.iter().sum();
        let lost_layers = before.stages[lost].shard.layers.len();
        assert_eq!(
            (added[lost], read),
            (lost_layers, lost_layers),
            "stage {lost} was lost: {:?}",
            after.stages
        );
    }
}

#[test]
fn what_devices_hold_never_costs_more_than_predictions_are_worth() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(12));
    let mut random = Random::new(11);
    for round in 0..200 {
        let count = 2 + random.below(5) as usize;
        let mut devices: Vec<PlanDevice> =
            (0..count).map(|i| device(&format!("w{i}"), 1 << 30, random.between(1e6, 3e6))).collect();
        let free = plan(&cost, &input(devices.clone())).unwrap();
        for device in &mut devices {
            let start = random.below(12) as usize;
            let end = start + 1 + random.below(12 - start as u64) as usize;
            device.held = (random.below(3) > 0).then_some(LayerRange { start, end });
        }
        let input = input(devices);
        let kept = plan(&cost, &input).unwrap();
        check(&kept, &cost, &input);
        let speed = |plan: &Plan| plan.predicted.throughput_tokens_per_s;
        // Stages that are nearly as fast, and a number of stages that is nearly as good.
        assert!(speed(&kept) * 1.1 > speed(&free), "round {round}: {} {}", speed(&kept), speed(&free));
    }
}
