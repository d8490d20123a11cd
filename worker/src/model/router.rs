//! Which experts a row takes, and how much each counts.

use brigade_shard::spec::Gating;

use crate::backend::Routes;
use crate::exponential::exp;

/// Chooses `used` experts for every row of `scores`, `[rows, experts]`: those with the highest scores, the first of equal
/// ones before the others.
pub(super) fn choose(gating: Gating, scores: &[f32], experts: usize, used: usize, routes: &mut Routes) {
    routes.used = used;
    routes.experts.clear();
    routes.weights.clear();
    let mut order: Vec<u32> = Vec::with_capacity(experts);
    for scores in scores.chunks_exact(experts) {
        order.clear();
        order.extend(0..experts as u32);
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        let taken = &order[..used];
        routes.experts.extend(taken);
        match gating {
            // Divided by their sum, the weights are those of a softmax over the experts taken.
            Gating::RenormalisedSoftmax => {
                let largest = scores[taken[0] as usize];
                let weight = |expert: &u32| exp(scores[*expert as usize] - largest);
                let sum: f32 = taken.iter().map(weight).sum();
                routes.weights.extend(taken.iter().map(|expert| weight(expert) / sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_experts_are_taken_and_their_weights_add_up_to_one() {
        let mut routes = Routes::default();
        let scores = [0.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5];
        choose(Gating::RenormalisedSoftmax, &scores, 4, 2, &mut routes);
        assert_eq!((routes.used, routes.experts.as_slice()), (2, &[1, 3, 0, 1][..]));
        let wanted = [1.0 / (1.0 + (-1f32).exp()), 1.0 / (1.0 + 1f32.exp()), 0.5, 0.5];
        for (found, wanted) in routes.weights.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-6, "{:?}", routes.weights);
        }
    }

    #[test]
    fn scores_that_are_no_numbers_choose_some_expert_and_show() {
        let mut routes = Routes::default();
        choose(Gating::RenormalisedSoftmax, &[f32::NAN; 3], 3, 2, &mut routes);
        assert_eq!(routes.experts.len(), 2);
        assert!(routes.weights.iter().all(|weight| weight.is_nan()));
    }
}
