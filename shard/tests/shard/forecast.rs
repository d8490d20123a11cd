//! What is expected of plans, against the formulas' parts added up by hand.

use brigade_shard::cost::{Cost, Room};
use brigade_shard::kernels::Kernels;
use brigade_shard::plan::{
    Forecast, HopCost, Kernel, KernelSpeed, Links, Load, Objective, Plan, PlanDevice, PlanInput,
    STAGE_OVERHEAD_S, SharedHost, forecast, plan,
};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::tiny_llama;

const LAYERS: usize = 12;

/// A device that multiplies as many weights of any type per second, but twice as long for 8 rows as for one, and ten times
/// as long for 64.
fn device(name: &str, weights_per_s: f64) -> PlanDevice {
    let kinds = [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0, TensorType::F16];
    let speeds = kinds.iter().flat_map(|kind| {
        [(1, 1.0), (8, 0.5), (64, 0.1)].map(|(rows, share)| KernelSpeed {
            kernel: Kernel::Product(*kind),
            rows,
            per_s: share * weights_per_s,
        })
    });
    PlanDevice {
        name: name.to_owned(),
        budget: Bytes::mib(1),
        bandwidth_bytes_per_s: 1e12,
        flops_per_s: 1e12,
        threads: Some(1),
        kernels: Kernels::CPU,
        held: None,
        kernel_speeds: speeds.collect(),
        host: None,
        offload_bytes_per_s: None,
    }
}

fn input(devices: Vec<PlanDevice>) -> PlanInput {
    PlanInput {
        min_stages: devices.len(),
        devices,
        context: Some(64),
        parallel: 1,
        split: Vec::new(),
        step_rows: 32,
        cache_value_bytes: 2,
        wire_value_bytes: 4,
        links: Links::all(HopCost { rtt_us: 0.0, bytes_per_s: 1e15 }),
        hosts: Vec::new(),
        objective: Objective::default(),
        apart: Vec::new(),
    }
}

fn cost() -> Cost {
    tiny_llama::read(&tiny_llama::file(LAYERS as u32)).3
}

fn load(streams: u32, prompt_tokens: u32) -> Load {
    Load { streams, prompt_tokens, context: 0 }
}

fn expected(input: &PlanInput, load: Load) -> (Plan, Forecast) {
    let cost = cost();
    let plan = plan(&cost, input).unwrap();
    let forecast = forecast(&cost, input, &plan, &load);
    (plan, forecast)
}

#[track_caller]
fn assert_near(found: f64, wanted: f64, share: f64) {
    assert!((found / wanted - 1.0).abs() <= share, "{found} instead of {wanted}");
}

/// Weights of all layers, and of the head.
fn weights() -> (f64, f64) {
    let (hidden, kv, wide) =
        (tiny_llama::HIDDEN as f64, tiny_llama::KV as f64, tiny_llama::FEED_FORWARD as f64);
    let layer = 2.0 * hidden * hidden + 2.0 * hidden * kv + 3.0 * hidden * wide;
    (LAYERS as f64 * layer, hidden * tiny_llama::VOCAB as f64)
}

#[test]
fn a_token_takes_its_weights_at_the_kernels_speeds() {
    // Slow, so that what is fixed does not count.
    let speed = 1e4;
    let (layers, head) = weights();
    let one = expected(&input(vec![device("w", speed)]), load(1, 1)).1;
    assert_near(1.0 / one.decode_tokens_per_s, (layers + head) / speed, 1e-3);
    assert_near(one.ttft_ms / 1e3, (layers + head) / speed, 2e-3);
    let eight = expected(&input(vec![device("w", speed)]), load(8, 1)).1;
    assert_near(8.0 / eight.decode_tokens_per_s, (layers + head) / speed / 0.5, 1e-3);
}

#[test]
fn a_lone_streams_token_goes_around_all_stages_and_links_and_a_stage_alone_needs_no_link() {
    let (speed, rtt_us) = (1e8, 4_000.0);
    let far = |devices: Vec<PlanDevice>| {
        let links = Links::all(HopCost { rtt_us, bytes_per_s: 1e15 });
        1.0 / expected(&PlanInput { links, ..input(devices) }, load(1, 1)).1.decode_tokens_per_s
    };
    let alone_s = 1.0 / expected(&input(vec![device("w", speed)]), load(1, 1)).1.decode_tokens_per_s;
    // The coordinator is as far, and too far to be waited for.
    assert_near(far(vec![device("w", speed)]), alone_s, 1e-9);
    let three = far(vec![device("a", speed), device("b", speed), device("c", speed)]);
    assert_near(three, alone_s + 2.0 * STAGE_OVERHEAD_S + 3.0 * rtt_us * 0.5e-6, 1e-9);
}

#[test]
fn a_slow_link_is_charged_where_it_is() {
    let devices = || vec![device("a", 1e6), device("b", 1e6)];
    let near = input(devices());
    let mut far = input(devices());
    far.links.pairs.insert((0, 1), HopCost { rtt_us: 10_000.0, bytes_per_s: 1e6 });
    let seconds = |input: &PlanInput| 1.0 / expected(input, load(1, 1)).1.decode_tokens_per_s;
    let row_bytes = tiny_llama::HIDDEN as f64 * 4.0;
    assert_near(seconds(&far) - seconds(&near), 2.0 * 5e-3 + row_bytes / 1e6, 1e-6);
}

#[test]
fn streams_go_in_groups_at_the_pace_of_the_slowest_stage() {
    let speed = 1e4;
    let (plan, eight) = expected(&input(vec![device("a", speed), device("b", speed)]), load(8, 1));
    let slowest_ms = plan.stages.iter().map(|stage| stage.decode_ms).fold(0.0, f64::max);
    // Four rows take 1 + 3/7 times as long as one; two groups keep both stages busy.
    assert_near(eight.decode_tokens_per_s, 8.0 / (2.0 * slowest_ms / 1e3 * (10.0 / 7.0)), 1e-3);
}

#[test]
fn devices_of_one_machine_share_its_processors_and_its_memory() {
    let speed = 1e4;
    let three = |host: Option<SharedHost>| {
        let devices = ["a", "b", "c"].map(|name| PlanDevice { host: host.map(|_| 0), ..device(name, speed) });
        PlanInput { hosts: host.into_iter().collect(), ..input(devices.to_vec()) }
    };
    let host = |processors, bandwidth_bytes_per_s| {
        Some(SharedHost { bandwidth_bytes_per_s, processors, speedup: f64::from(processors) })
    };
    let of = |host, load| expected(&three(host), load).1;
    let (free, ample) = (of(None, load(12, 200)), of(host(3, 1e12), load(12, 200)));
    assert_near(ample.decode_tokens_per_s, free.decode_tokens_per_s, 1e-3);
    assert_near(ample.prompt_tokens_per_s, free.prompt_tokens_per_s, 1e-3);
    // One processor does what three did, and no more; a lone stream's stages take turns anyway.
    let (one, alone) = (of(host(1, 1e12), load(12, 200)), of(host(1, 1e12), load(1, 200)));
    assert_near(alone.decode_tokens_per_s, of(None, load(1, 200)).decode_tokens_per_s, 1e-9);
    let box_of_one = expected(&input(vec![device("w", speed)]), load(12, 200)).1;
    assert!(one.decode_tokens_per_s <= box_of_one.decode_tokens_per_s * 1.001, "{one:?} {box_of_one:?}");
    assert!(one.prompt_tokens_per_s <= box_of_one.prompt_tokens_per_s * 1.001, "{one:?} {box_of_one:?}");
    assert!(free.decode_tokens_per_s > 1.5 * one.decode_tokens_per_s);
    // Three processors that are one and a half times as fast as one, since they share cores.
    let cores = SharedHost { bandwidth_bytes_per_s: 1e12, processors: 3, speedup: 1.5 };
    let shared = of(Some(cores), load(12, 200));
    let times = shared.decode_tokens_per_s / one.decode_tokens_per_s;
    assert!((1.05..=1.5).contains(&times), "{shared:?} {one:?}");
    let times = shared.prompt_tokens_per_s / one.prompt_tokens_per_s;
    assert!((1.4..1.6).contains(&times), "{shared:?} {one:?}");
    // Memory that gives a tenth of what they read.
    let slow = of(host(3, 0.1 * 0.5 * speed), load(12, 200));
    assert!(slow.decode_tokens_per_s < 0.5 * free.decode_tokens_per_s, "{slow:?} {free:?}");
}

#[test]
fn a_prompt_is_pipelined_through_the_stages_in_chunks() {
    let speed = 1e4;
    let alone = expected(&input(vec![device("w", speed)]), load(1, 240)).1;
    let two = expected(&input(vec![device("a", speed), device("b", speed)]), load(1, 240)).1;
    let gain = two.prompt_tokens_per_s / alone.prompt_tokens_per_s;
    assert!((1.4..2.0).contains(&gain), "{gain}");
    assert_near(alone.ttft_ms / 1e3, 240.0 / alone.prompt_tokens_per_s, 1e-9);
    // One chunk of 32 rows after another, with the head for the last row alone; attention comes on top.
    let (layers, head) = weights();
    let chunk_s = layers / speed * (2.0 + 8.0 * 24.0 / 56.0);
    let without_attention_s = 7.5 * chunk_s + head / speed;
    assert!(alone.ttft_ms / 1e3 > without_attention_s, "{} {without_attention_s}", alone.ttft_ms);
    assert!(alone.ttft_ms / 1e3 < 2.0 * without_attention_s, "{} {without_attention_s}", alone.ttft_ms);
}

#[test]
fn a_longer_context_costs_attention() {
    let input = input(vec![device("w", 1e6)]);
    let at = |context| expected(&input, Load { context, ..load(4, 1) }).1.decode_tokens_per_s;
    assert!(at(0) > at(100) && at(100) > at(200));
}

#[test]
fn a_plans_own_prediction_is_the_forecast_for_what_it_is_made_for() {
    let speed = 1e5;
    let devices = ["a", "b"].map(|name| PlanDevice { host: Some(0), ..device(name, speed) });
    let hosts = vec![SharedHost { bandwidth_bytes_per_s: 1e9, processors: 2, speedup: 2.0 }];
    let input = PlanInput { parallel: 4, hosts, ..input(devices.to_vec()) };
    let (plan, many) = expected(&input, load(4, 512));
    let (_, one) = expected(&input, load(1, 512));
    assert_eq!(plan.predicted.throughput_tokens_per_s, many.decode_tokens_per_s);
    assert_eq!(plan.predicted.decode_tokens_per_s, one.decode_tokens_per_s);
    assert_eq!(plan.predicted.ttft_ms, one.ttft_ms);
    let room: Room = plan.room(&input);
    assert_eq!(room.sequences, 4);
}

#[test]
fn layers_that_are_read_for_every_step_take_as_long_as_their_bytes() {
    let cost = tiny_llama::read(&tiny_llama::wide(LAYERS as u32)).3;
    let budget = Bytes::mib(16);
    let slow = PlanDevice { budget, offload_bytes_per_s: Some(1e4), ..device("w", 1e9) };
    let input = input(vec![slow]);
    let mut plan = plan(&cost, &input).unwrap();
    let resident = forecast(&cost, &input, &plan, &load(1, 1));
    plan.stages[0].streamed_layers = 5;
    let streamed: u64 = cost.layers()[LAYERS - 5..].iter().map(|layer| layer.matrices.0).sum();
    let found = forecast(&cost, &input, &plan, &load(1, 1));
    assert!(resident.decode_tokens_per_s > 10.0 * found.decode_tokens_per_s);
    assert_near(1.0 / found.decode_tokens_per_s, streamed as f64 / 1e4 + STAGE_OVERHEAD_S, 1e-6);
}

#[test]
fn a_faster_kernel_decides_where_the_model_is_cut_and_planning_stays_quick() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(126).key("llama.context_length", 131_072));
    let whole = cost.memory(&cost.whole(), &least_room()).total().0;
    let devices = (0..16).map(|i| PlanDevice {
        budget: Bytes(whole / 6),
        host: Some(i / 2),
        ..device(&format!("w{i}"), 1e6 * (1.0 + i as f64 / 8.0))
    });
    let devices: Vec<PlanDevice> = devices.collect();
    let hosts = vec![SharedHost { bandwidth_bytes_per_s: 1e12, processors: 2, speedup: 2.0 }; 8];
    let input = PlanInput { min_stages: 1, parallel: 4, hosts, ..input(devices) };
    let mut times = (0..40).map(|_| {
        let began = std::time::Instant::now();
        let plan = plan(&cost, &input).unwrap();
        (began.elapsed(), plan)
    });
    let in_time = times.find(|(took, _)| *took < std::time::Duration::from_millis(200));
    let (_, plan) = in_time.expect("no plan within 200 ms in 40 runs");
    let layers = |name: &str| {
        let place = plan.stages.iter().find(|stage| input.devices[stage.device].name == name);
        place.map_or(0, |stage| stage.shard.layers.len())
    };
    assert!(layers("w15") >= layers("w0"), "{:?}", plan.stages);
}

fn least_room() -> Room {
    Room { cache_tokens: 64, context: 64, step_rows: 32, sequences: 1, cache_value_bytes: 2 }
}
