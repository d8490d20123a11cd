//! Plans over more devices than are tried in every order: how good they are, and how long they take.

use std::time::Duration;

use brigade_shard::plan::{Objective, Optimality, PlanInput, SharedHost, plan};

use crate::clock::{computed, longest};
use crate::plan::{device, input};
use crate::plan_orders::{every_partition, measure_s, placed, random_hop, room};
use crate::random::Random;
use crate::tiny_llama;

#[test]
fn sixteen_devices_and_126_layers_are_planned_at_once_whatever_the_plan_is_for() {
    let cost = tiny_llama::read(&tiny_llama::wide(126).key("llama.context_length", 131072)).3;
    let mut random = Random::new(31);
    let mut plain = PlanInput { parallel: 4, ..input(Vec::new()) };
    let whole = cost.memory(&cost.whole(), &room(&plain)).total().0 as f64;
    for index in 0..16 {
        let budget = random.between(0.1, 0.4) * whole;
        plain.devices.push(device(&format!("w{index}"), budget as u64, random.between(1e6, 4e6)));
    }
    let mut linked = plain.clone();
    for one in 0..16 {
        for other in one + 1..16 {
            linked.links.pairs.insert((one, other), random_hop(&mut random));
        }
        linked.links.coordinator.insert(one, random_hop(&mut random));
    }
    let mut shared = plain.clone();
    shared.hosts = vec![SharedHost { bandwidth_bytes_per_s: 5e6, processors: 4, speedup: 4.0 }; 4];
    for (index, device) in shared.devices.iter_mut().enumerate() {
        device.host = (index < 12).then_some(index % 4);
    }
    let mut offloading = plain.clone();
    for device in &mut offloading.devices {
        device.budget.0 /= 5;
        device.offload_bytes_per_s = Some(1e6);
    }
    // As many as are tried in every order, with as much memory together.
    let eight = |of: &PlanInput| {
        let mut eight = of.only(&[0, 1, 2, 3, 4, 5, 6, 7]);
        eight.devices.iter_mut().for_each(|device| device.budget.0 *= 2);
        eight
    };
    let at_once = longest(Duration::from_millis(100));
    println!("here {at_once:?} are allowed for 100 ms");
    // Trying every order takes a little longer than trying the most promising.
    let exact = longest(Duration::from_millis(400));
    for (name, given, limit) in [
        ("eight, plain", eight(&plain), exact),
        ("eight, with links", eight(&linked), exact),
        ("eight, on shared machines", eight(&shared), exact),
        ("eight, offloading", eight(&offloading), exact),
        ("plain", plain, at_once),
        ("with links", linked, at_once),
        ("on shared machines", shared, at_once),
        ("offloading", offloading, at_once),
    ] {
        for objective in [Objective::ManyStreams, Objective::OneStream] {
            // The cache of a longer context leaves nothing to stream.
            let contexts = if name.contains("offloading") { &[Some(64)][..] } else { &[Some(64), None] };
            for context in contexts.iter().copied() {
                let input = PlanInput { objective, context, ..given.clone() };
                // One run in time is enough: others on the machine slow it in other ways, too.
                let (mut least, mut share) = (Duration::MAX, 0.0);
                for _ in 0..40 {
                    let started = computed();
                    let found = plan(&cost, &input).unwrap();
                    least = least.min(computed() - started);
                    share = match found.optimality {
                        Optimality::Exact => 1.0,
                        Optimality::Within(share) => share,
                    };
                    assert!((0.25..=1.0).contains(&share), "{name}, {objective:?}: within {share}");
                    if least < limit {
                        break;
                    }
                }
                println!("{name}, {objective:?}, {context:?}: {least:?}, {share:.3}");
                assert!(
                    least < limit,
                    "{name}, {objective:?}, {context:?}: {least:?} in the fastest of 40 runs"
                );
            }
        }
    }
}

#[test]
fn nothing_is_better_than_the_bound_that_is_stated() {
    let mut random = Random::new(32);
    let (mut stated, mut proven) = (0, 0);
    for round in 0..120 {
        let cost = tiny_llama::read(&tiny_llama::untied(2 + round % 3)).3;
        let parallel = 1 + random.below(6) as u32;
        let objective = [Objective::ManyStreams, Objective::OneStream][random.below(2) as usize];
        let mut input = PlanInput { parallel, objective, ..input(Vec::new()) };
        let room = room(&input);
        let whole = cost.memory(&cost.whole(), &room).total().0 as f64;
        input.hosts =
            vec![SharedHost { bandwidth_bytes_per_s: random.between(1e6, 4e6), processors: 3, speedup: 3.0 }];
        for index in 0..9 {
            let budget = random.between(0.2, 0.9) * whole;
            let mut device = device(&format!("w{index}"), budget as u64, random.between(1e5, 4e6));
            device.host = (round % 4 == 0 || random.below(4) == 0).then_some(0);
            input.devices.push(device);
            for other in (0..index).filter(|_| round % 2 == 0) {
                input.links.pairs.insert((other, index), random_hop(&mut random));
            }
        }
        let Ok(found) = plan(&cost, &input) else { continue };
        let taken_s = measure_s(&cost, &input, &placed(&found));
        let share = match found.optimality {
            Optimality::Exact => 1.0,
            Optimality::Within(share) => share,
        };
        let mut least_s = f64::INFINITY;
        every_partition(&cost, &input, &room, found.stages.len(), false, &mut |partition| {
            least_s = least_s.min(measure_s(&cost, &input, partition));
        });
        assert!(
            least_s >= taken_s * share * (1.0 - 3e-6),
            "round {round}: {least_s} s is possible, {taken_s} s was found and called {:?}",
            found.optimality
        );
        stated += 1;
        proven += usize::from(share == 1.0);
    }
    assert!(stated > 60 && proven < stated, "{proven} of {stated} plans were called the best");
}
