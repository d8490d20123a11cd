//! Plans with a certain number of stages, compared with each other and put in words.

use super::best::Best;
use super::error::lacking_everywhere;
use super::offload::overlapped_s;
use super::predict::Predictor;
use super::rooms::{largest_room, least_room, longest_context, room_within, sequence_tokens};
use super::search::Search;
use super::{
    COMFORTABLE_CONTEXT, Objective, Plan, PlanInput, PlannedStage, Prediction, UnusedDevice, WORTHWHILE_GAIN,
};
use crate::cost::{Cost, Room};

/// The best partition into a certain number of stages.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    room: Room,
    best: Best,
    predicted: Prediction,
}

impl Candidate {
    /// The best with all layers resident; `None` where they do not fit into as many stages, or where `fewer` of them are
    /// surely no slower.
    pub(super) fn resident(
        search: &Search<'_>,
        predictor: &Predictor<'_>,
        cost: &Cost,
        input: &PlanInput,
        stages: usize,
        fewer: Option<&Candidate>,
    ) -> Option<Candidate> {
        let room = largest_room(search, cost, input, stages)?;
        let comfort = |room: &Room| room.context.min(COMFORTABLE_CONTEXT);
        let rival = fewer.filter(|fewer| comfort(&fewer.room) >= comfort(&room));
        let best = search.best(&room, stages, rival.map_or(f64::INFINITY, |rival| rival.best.round_s))?;
        let predicted = predictor.predict(search, &best.partition);
        Some(Candidate { room, best, predicted })
    }

    /// The best where devices that may do so read layers again for every step that do not fit, as few as possible.
    pub(super) fn streaming(
        search: &Search<'_>,
        predictor: &Predictor<'_>,
        cost: &Cost,
        input: &PlanInput,
        stages: usize,
    ) -> Option<Candidate> {
        let best = search.best_streaming(&least_room(cost, input), stages)?;
        let holds = |room: &Room| {
            let mut stages = best.partition.streaming_stages(search);
            stages.all(|(device, shard, streamed)| {
                cost.memory_streaming(&shard, streamed, room).total() <= search.budgets()[device]
            })
        };
        // What is left beside the layers that are resident makes the context longer.
        let room = room_within(cost, input, holds)?;
        let predicted = predictor.predict(search, &best.partition);
        Some(Candidate { room, best, predicted })
    }

    /// Whether it is worth its stages where the other has fewer.
    pub(super) fn is_worth_more_than(&self, other: &Candidate, objective: Objective) -> bool {
        let comfort = |candidate: &Candidate| candidate.room.context.min(COMFORTABLE_CONTEXT);
        let gain = objective.speed(&self.predicted) / objective.speed(&other.predicted);
        comfort(self) > comfort(other) || (comfort(self) == comfort(other) && gain > WORTHWHILE_GAIN)
    }

    pub(super) fn into_plan(
        self,
        search: &Search<'_>,
        predictor: &Predictor<'_>,
        input: &PlanInput,
        cost: &Cost,
        single: Option<&Candidate>,
    ) -> Plan {
        let stages = self.best.partition.streaming_stages(search).map(|(device, shard, streamed_layers)| {
            let streaming_s = search.streaming_s(device, shard.layers, streamed_layers);
            let rows = f64::from(input.step_rows.max(1));
            let decode_s = predictor.decode_s(search, device, shard.layers, 1);
            let chunk_s = predictor.prefill_s_per_row(search, device, shard.layers) * rows;
            PlannedStage {
                device,
                shard,
                memory: cost.memory_streaming(&shard, streamed_layers, &self.room),
                streamed_layers,
                decode_ms: overlapped_s(decode_s, streaming_s) * 1e3,
                prefill_ms_per_token: overlapped_s(chunk_s, streaming_s) / rows * 1e3,
            }
        });
        let stages: Vec<PlannedStage> = stages.collect();
        Plan {
            bottleneck: predictor.bottleneck(search, &stages),
            unused: unused(search, &self, input, cost),
            notes: notes(&self, input, cost, single),
            stages,
            context: self.room.context,
            cache_tokens: self.room.cache_tokens,
            predicted: self.predicted,
            optimality: search.optimality(&self.best, &self.room),
        }
    }
}

fn unused(search: &Search<'_>, chosen: &Candidate, input: &PlanInput, cost: &Cost) -> Vec<UnusedDevice> {
    let stages = chosen.best.partition.order.len();
    let idle = (0..input.devices.len()).filter(|device| !chosen.best.partition.order.contains(device));
    let reason = |device: usize| {
        let smallest = search.smallest_shard(&chosen.room);
        let (budget, kernels) = (input.devices[device].budget, input.devices[device].kernels);
        if let Some(lacking) = lacking_everywhere(cost, kernels) {
            format!("it has no kernels for {lacking}")
        } else if smallest > budget {
            format!("its budget of {budget} holds not even one layer, which takes {smallest}")
        } else if !input.split.is_empty() {
            format!("the split that was asked for has {stages} stages")
        } else if stages == search.layers() {
            "every layer has a stage of its own already".to_owned()
        } else {
            format!("more stages than {stages} would not make answers faster")
        }
    };
    idle.map(|device| UnusedDevice { device, reason: reason(device) }).collect()
}

fn notes(chosen: &Candidate, input: &PlanInput, cost: &Cost, single: Option<&Candidate>) -> Vec<String> {
    let mut notes = Vec::new();
    let streamed: usize = chosen.best.partition.streamed.iter().sum();
    if streamed > 0 {
        notes.push(format!(
            "{streamed} of the model's {} layers do not fit and are read again for every step",
            cost.layer_count()
        ));
    }
    let stages = chosen.best.partition.order.len();
    if let Some(single) = single.filter(|_| stages > 1) {
        let name = &input.devices[single.best.partition.order[0]].name;
        let (alone, split) = (single.predicted.decode_tokens_per_s, chosen.predicted.decode_tokens_per_s);
        let advice = if alone > split { "don't split for speed: " } else { "" };
        notes.push(format!(
            "{advice}{name} alone holds the model and would decode {alone:.1} tokens/s for one stream, \
             against {split:.1} over {stages} stages"
        ));
    }
    let model = longest_context(cost);
    if input.context.is_none() && chosen.room.context < model {
        notes.push(format!(
            "memory limits the context to {} of the model's {model} tokens",
            chosen.room.context
        ));
    }
    let wanted = sequence_tokens(chosen.room.context) * u64::from(input.parallel.max(1));
    if u64::from(chosen.room.cache_tokens) < wanted {
        let (tokens, parallel) = (chosen.room.cache_tokens, input.parallel);
        notes.push(format!(
            "the cache holds {tokens} tokens: {parallel} sequences cannot all be of full length"
        ));
    }
    notes
}
