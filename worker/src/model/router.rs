//! Which experts a row takes, and how much each counts.

use brigade_shard::spec::{ExpertGroups, Experts, Gating, GroupMerit, Routing};

use crate::backend::Routes;
use crate::exponential::exp;

/// The least sum that weights are divided by, the smallest normal number of half precision: gates that are all next to
/// nothing are not to be blown up.
const LEAST_SUM: f32 = 6.103_515_6e-5;

/// Chooses `experts.used` experts for every row of `scores`, `[rows, experts]`: those with the highest gates, the first
/// of equal ones before the others. `bias` has a value per expert, or none.
pub(super) fn choose(experts: &Experts, bias: &[f32], scores: &[f32], routes: &mut Routes) {
    let &Experts { count, used, routing, .. } = experts;
    routes.used = used;
    routes.experts.clear();
    routes.weights.clear();
    let (mut gates, mut merits) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut order: Vec<u32> = Vec::with_capacity(count);
    for scores in scores.chunks_exact(count) {
        gate(routing.gating, scores, &mut gates);
        merits.clear();
        match (bias.is_empty(), routing.groups) {
            // Gates rise with the scores, which are not rounded away where a gate is close to 0 or 1.
            (true, None) => merits.extend_from_slice(scores),
            (true, Some(_)) => merits.extend_from_slice(&gates),
            (false, _) => merits.extend(gates.iter().zip(bias).map(|(gate, bias)| gate + bias)),
        }
        if let Some(groups) = routing.groups {
            keep_best_groups(groups, &mut merits, &mut order);
        }
        let taken = &best(&merits, &mut order)[..used];
        routes.experts.extend(taken);
        weigh(&routing, taken.iter().map(|&expert| gates[expert as usize]), &mut routes.weights);
    }
}

/// Makes gates of a row's scores.
fn gate(gating: Gating, scores: &[f32], gates: &mut Vec<f32>) {
    gates.clear();
    match gating {
        Gating::Softmax => {
            let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            gates.extend(scores.iter().map(|score| exp(score - largest)));
            let sum: f32 = gates.iter().sum();
            gates.iter_mut().for_each(|gate| *gate /= sum);
        }
        Gating::Sigmoid => gates.extend(scores.iter().map(|score| 1.0 / (1.0 + exp(-score)))),
    }
}

/// All indices of `merits`, the best first.
fn best<'a>(merits: &[f32], order: &'a mut Vec<u32>) -> &'a [u32] {
    order.clear();
    order.extend(0..merits.len() as u32);
    order.sort_by(|&a, &b| merits[b as usize].total_cmp(&merits[a as usize]).then(a.cmp(&b)));
    order
}

/// Takes all merit from the experts outside the best groups.
fn keep_best_groups(groups: ExpertGroups, merits: &mut [f32], order: &mut Vec<u32>) {
    let size = merits.len() / groups.count;
    let of_group = |group: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &merit in group {
            if merit > first {
                (first, second) = (merit, first);
            } else if merit > second {
                second = merit;
            }
        }
        match groups.merit {
            GroupMerit::Best => first,
            GroupMerit::TwoBest => first + second,
        }
    };
    let of_groups: Vec<f32> = merits.chunks_exact(size).map(of_group).collect();
    for &group in &best(&of_groups, order)[groups.used..] {
        merits[group as usize * size..][..size].fill(f32::NEG_INFINITY);
    }
}

/// Makes weights of the gates of the experts taken.
fn weigh(routing: &Routing, gates: impl Iterator<Item = f32> + Clone, weights: &mut Vec<f32>) {
    let divisor = match routing.renormalised {
        true => gates.clone().sum::<f32>().max(LEAST_SUM),
        false => 1.0,
    };
    weights.extend(gates.map(|gate| gate / divisor * routing.scale));
}

#[cfg(test)]
mod tests {
    use brigade_shard::spec::{Activation, Weighing};

    use super::*;

    fn experts(count: usize, used: usize, gating: Gating) -> Experts {
        let routing = Routing {
            gating,
            selection_bias: false,
            groups: None,
            renormalised: true,
            scale: 1.0,
            weighing: Weighing::Outputs,
        };
        Experts {
            count,
            used,
            width: 1,
            activation: Activation::Silu,
            routing,
            shared_width: None,
            biases: false,
        }
    }

    fn chosen(experts: &Experts, bias: &[f32], scores: &[f32]) -> Routes {
        let mut routes = Routes::default();
        choose(experts, bias, scores, &mut routes);
        routes
    }

    fn assert_weights(routes: &Routes, wanted: &[f32]) {
        assert_eq!(routes.weights.len(), wanted.len());
        for (found, wanted) in routes.weights.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-6, "{:?} instead of {wanted:?}", routes.weights);
        }
    }

    fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn the_best_experts_are_taken_and_their_weights_add_up_to_one() {
        let routes = chosen(&experts(4, 2, Gating::Softmax), &[], &[0.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5]);
        assert_eq!((routes.used, routes.experts.as_slice()), (2, &[1, 3, 0, 1][..]));
        assert_weights(&routes, &[1.0 / (1.0 + (-1f32).exp()), 1.0 / (1.0 + 1f32.exp()), 0.5, 0.5]);
    }

    #[test]
    fn weights_may_be_those_of_the_softmax_over_all_times_a_factor() {
        let mut experts = experts(3, 2, Gating::Softmax);
        (experts.routing.renormalised, experts.routing.scale) = (false, 16.0);
        let routes = chosen(&experts, &[], &[0.0, 2f32.ln(), 5f32.ln()]);
        assert_eq!(routes.experts, [2, 1]);
        assert_weights(&routes, &[16.0 * 5.0 / 8.0, 16.0 * 2.0 / 8.0]);
    }

    #[test]
    fn a_selection_bias_chooses_and_does_not_weigh() {
        let mut experts = experts(4, 2, Gating::Sigmoid);
        (experts.routing.selection_bias, experts.routing.scale) = (true, 2.5);
        let scores = [1.0, 0.5, -1.0, 0.0];
        let routes = chosen(&experts, &[0.0, 0.0, 2.0, 0.0], &scores);
        assert_eq!(routes.experts, [2, 0]);
        let sum = sigmoid(-1.0) + sigmoid(1.0);
        assert_weights(&routes, &[2.5 * sigmoid(-1.0) / sum, 2.5 * sigmoid(1.0) / sum]);
    }

    #[test]
    fn a_group_is_as_good_as_its_best_expert_or_its_two_best() {
        let mut experts = experts(6, 2, Gating::Sigmoid);
        let groups = ExpertGroups { count: 2, used: 1, merit: GroupMerit::TwoBest };
        experts.routing.groups = Some(groups);
        // The best expert is alone in its group, and the other group has the better pair.
        let routes = chosen(&experts, &[], &[3.0, -4.0, -4.0, 0.5, 1.0, -2.0]);
        assert_eq!(routes.experts, [4, 3]);
        experts.routing.groups = Some(ExpertGroups { merit: GroupMerit::Best, ..groups });
        assert_eq!(chosen(&experts, &[], &[3.0, -4.0, -3.0, 0.5, 1.0, -2.0]).experts, [0, 2]);
        experts.routing.groups = None;
        assert_eq!(chosen(&experts, &[], &[3.0, -4.0, -4.0, 0.5, 1.0, -2.0]).experts, [0, 4]);
    }

    #[test]
    fn gates_next_to_nothing_are_not_blown_up() {
        let routes = chosen(&experts(2, 1, Gating::Sigmoid), &[], &[-20.0, -30.0]);
        assert_weights(&routes, &[sigmoid(-20.0) / LEAST_SUM]);
    }

    #[test]
    fn scores_that_are_no_numbers_choose_some_expert_and_show() {
        for gating in [Gating::Softmax, Gating::Sigmoid] {
            let mut experts = experts(4, 2, gating);
            let groups = ExpertGroups { count: 2, used: 1, merit: GroupMerit::TwoBest };
            for groups in [None, Some(groups)] {
                experts.routing.groups = groups;
                let routes = chosen(&experts, &[], &[f32::NAN; 4]);
                assert_eq!(routes.experts.len(), 2);
                assert!(routes.weights.iter().all(|weight| weight.is_nan()));
            }
        }
    }
}
