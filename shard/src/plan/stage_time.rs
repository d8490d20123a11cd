//! How long a device computes a step of a stage.
//!
//! For a device whose kernels were measured:
//!
//! `time(rows) = sum over types of weights / speed(type, rows) + cached values / speed(attention, queries)
//!  + sequences / speed(opening, queries)
//!  + passed values / speed(passing, rows) + framed values / speed(framing, rows)
//!  + layers / speed(handing, sequences) + logits / speed(drawing) + fixed part`
//!
//! with each kernel's speed between the numbers of rows that were measured, so that what rows cost each (1 to 4 rows next
//! to nothing, many rows the more the slower) is the kernels' own. Of experts the different ones that the rows take are
//! multiplied, each with its share of the rows. Attention reads a sequence's keys and values once for all of its rows,
//! and the query heads that share them pass over them as rows pass over a matrix. Types that were not measured are as fast
//! as the one whose weights take about as many bytes. On devices of which two figures are all that is known, everything takes
//! as long as reading the bytes or as the arithmetic, whichever is longer.

use super::{Kernel, KernelSpeed, PlanDevice, STAGE_OVERHEAD_S};
use crate::cost::{AttentionCost, Cost, Product};
use crate::layers::{LayerRange, Shard};
use crate::tensor_type::TensorType;

/// What handing over a layer's operations costs a measured device where that was not measured, in seconds: some ten of
/// them, at about a microsecond each.
const HANDING_S: f64 = 10e-6;
/// From so many rows on a product's time is the rows', and not the weights'.
const MANY_ROWS: f64 = 32.0;
/// Bytes of a value that passes beside the products.
const PASSED_BYTES: f64 = 4.0;

/// A step, as far as it decides how long a stage computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StepShape {
    /// Its rows.
    pub(super) rows: f64,
    /// Those of each sequence, which look at the same cache: all of a prompt's chunk, one where sequences decode.
    pub(super) sequence_rows: f64,
    /// Cached positions that a row sees on average, where no window hides them.
    pub(super) seen: f64,
    /// Rows whose logits are computed, where the stage holds the head.
    pub(super) head_rows: f64,
}

impl StepShape {
    /// A token of each of `rows` sequences, which have `context` tokens each.
    pub(super) fn decode(rows: f64, context: f64) -> StepShape {
        StepShape { rows, sequence_rows: 1.0, seen: context, head_rows: rows }
    }

    /// `rows` tokens of a prompt, with `before` tokens of it before them; the `last` of all is what the answer follows.
    pub(super) fn chunk(rows: f64, before: f64, last: bool) -> StepShape {
        let head_rows = if last { 1.0 } else { 0.0 };
        StepShape { rows, sequence_rows: rows, seen: before + rows / 2.0, head_rows }
    }
}

/// What a stage computes, added up over its layers.
#[derive(Clone, Debug)]
pub(super) struct StageWork {
    products: Vec<Product>,
    /// Each kind of attention, with the number of layers that have it.
    attention: Vec<(AttentionCost, f64)>,
    passed_values: f64,
    framed_values: f64,
    layers: f64,
    /// Logits of a row, where the stage holds the head.
    logits: f64,
    /// Weight bytes read and operations for one row, without the head.
    active: f64,
    flops: f64,
    /// Those of the head.
    head_active: f64,
    head_flops: f64,
    head: Option<Product>,
    /// Bytes that are read again for every step.
    streamed: f64,
    cache_value_bytes: f64,
}

impl StageWork {
    /// That of the layers in `range` with the ends that they touch; the last `streamed_layers` are read for every step.
    pub(super) fn of(
        cost: &Cost,
        range: LayerRange,
        streamed_layers: usize,
        cache_value_bytes: u32,
    ) -> StageWork {
        let shard = Shard::of(range, cost.layer_count());
        let (mut products, mut attention) = (Vec::<Product>::new(), Vec::<(AttentionCost, f64)>::new());
        let (mut passed_values, mut framed_values) = (0, 0);
        for work in &cost.work()[range.iter()] {
            for of in &work.products {
                match products.iter_mut().find(|sum| (sum.kind, sum.experts) == (of.kind, of.experts)) {
                    Some(sum) => sum.weights += of.weights,
                    None => products.push(*of),
                }
            }
            match attention.iter_mut().find(|(kind, _)| *kind == work.attention) {
                Some((_, layers)) => *layers += 1.0,
                None => attention.push((work.attention, 1.0)),
            }
            passed_values += work.passed_values;
            framed_values += work.framed_values;
        }
        let layers = &cost.layers()[range.iter()];
        let embedding_active = if shard.embedding { cost.embedding().active.0 } else { 0 };
        let streamed = &cost.layers()[cost.streamed(&shard, streamed_layers).iter()];
        StageWork {
            products,
            attention,
            passed_values: passed_values as f64,
            framed_values: framed_values as f64,
            logits: if shard.head { cost.vocab() as f64 } else { 0.0 },
            layers: layers.len() as f64,
            active: (layers.iter().map(|layer| layer.active.0).sum::<u64>() + embedding_active) as f64,
            flops: layers.iter().map(|layer| layer.flops).sum::<u64>() as f64,
            head_active: if shard.head { cost.head().active.0 as f64 } else { 0.0 },
            head_flops: if shard.head { cost.head().flops as f64 } else { 0.0 },
            head: cost.head_product().filter(|_| shard.head),
            streamed: streamed.iter().map(|layer| layer.matrices.0).sum::<u64>() as f64,
            cache_value_bytes: f64::from(cache_value_bytes),
        }
    }

    /// Bytes of weights, keys and values that a step reads.
    pub(super) fn read_bytes(&self, step: StepShape) -> f64 {
        let head = if step.head_rows > 0.0 { self.head_active } else { 0.0 };
        self.layer_bytes(step) + head
    }

    fn layer_bytes(&self, step: StepShape) -> f64 {
        // The bytes for one row have one row's experts in them.
        let more = self.products.iter().filter_map(|product| {
            let experts = product.experts?;
            let more = experts.distinct(step.rows) - experts.distinct(1.0);
            Some(more / experts.count.max(1) as f64 * product.weights as f64 * bytes_per_weight(product.kind))
        });
        let cached = self.attention.iter().map(|(attention, layers)| {
            layers * attention.cached_values as f64 * seen(attention, step) * self.cache_value_bytes
        });
        self.active + more.sum::<f64>() + cached.sum::<f64>() * step.rows / step.sequence_rows
    }

    fn layer_flops(&self, step: StepShape) -> f64 {
        let attention = self
            .attention
            .iter()
            .map(|(attention, layers)| layers * 2.0 * attention.multiply_adds as f64 * seen(attention, step));
        step.rows * (self.flops + attention.sum::<f64>())
    }
}

fn seen(attention: &AttentionCost, step: StepShape) -> f64 {
    attention.window.map_or(step.seen, |window| step.seen.min(window as f64))
}

fn bytes_per_weight(kind: TensorType) -> f64 {
    kind.block_bytes() as f64 / kind.block_values() as f64
}

/// A device's speeds, ready to be asked often.
#[derive(Clone, Debug)]
pub(super) struct DeviceTimes {
    bandwidth_bytes_per_s: f64,
    flops_per_s: f64,
    offload_bytes_per_s: Option<f64>,
    /// By kernel: rows, and seconds per unit with so many of them, more of both from one to the next.
    curves: Vec<(Kernel, Vec<(f64, f64)>)>,
}

impl DeviceTimes {
    /// Those of a device.
    pub(super) fn of(device: &PlanDevice) -> DeviceTimes {
        let mut curves: Vec<(Kernel, Vec<(f64, f64)>)> = Vec::new();
        let sound = |speed: &&KernelSpeed| speed.rows > 0 && speed.per_s.is_finite() && speed.per_s > 0.0;
        for speed in device.kernel_speeds.iter().filter(sound) {
            let point = (f64::from(speed.rows), 1.0 / speed.per_s);
            match curves.iter_mut().find(|(kernel, _)| *kernel == speed.kernel) {
                Some((_, points)) => points.push(point),
                None => curves.push((speed.kernel, vec![point])),
            }
        }
        for (_, points) in &mut curves {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            // Fewer rows never take longer than more: where they seem to, something else ran just then.
            let mut least = f64::INFINITY;
            for (_, unit_s) in points.iter_mut().rev() {
                least = least.min(*unit_s);
                *unit_s = least;
            }
        }
        DeviceTimes {
            bandwidth_bytes_per_s: device.bandwidth_bytes_per_s,
            flops_per_s: device.flops_per_s,
            offload_bytes_per_s: device.offload_bytes_per_s,
            curves,
        }
    }

    /// Whether kernels were measured, and not only the memory and the arithmetic.
    pub(super) fn are_measured(&self) -> bool {
        !self.curves.is_empty()
    }

    /// Seconds of a step, from when it comes to when it goes.
    pub(super) fn stage_s(&self, work: &StageWork, step: StepShape) -> f64 {
        let computed_s =
            if self.are_measured() { self.measured_s(work, step) } else { self.rated_s(work, step) };
        // What is read for every step is read while other layers are computed.
        let read_s = self.offload_bytes_per_s.map_or(0.0, |rate| work.streamed / rate);
        computed_s.max(read_s) + STAGE_OVERHEAD_S
    }

    fn measured_s(&self, work: &StageWork, step: StepShape) -> f64 {
        self.layers_s(work, step) + self.head_s(work, step)
    }

    /// Seconds of a measured device's layers.
    pub(super) fn layers_s(&self, work: &StageWork, step: StepShape) -> f64 {
        let products_s: f64 = work.products.iter().map(|product| self.product_s(product, step.rows)).sum();
        let attention_s: f64 =
            work.attention.iter().map(|(of, layers)| layers * self.attention_s(of, work, step)).sum();
        let passed_s = work.passed_values * self.unit_s(Kernel::Passing, step.rows);
        let framed_s = work.framed_values * self.unit_s(Kernel::Framing, step.rows);
        let sequences = step.rows / step.sequence_rows;
        products_s + attention_s + passed_s + framed_s + work.layers * self.unit_s(Kernel::Handing, sequences)
    }

    /// Seconds of a measured device's head, and of drawing from its logits.
    pub(super) fn head_s(&self, work: &StageWork, step: StepShape) -> f64 {
        let head = work.head.as_ref().filter(|_| step.head_rows > 0.0);
        let drawn_s = step.head_rows * work.logits * self.unit_s(Kernel::Drawing, 1.0);
        head.map_or(0.0, |head| self.product_s(head, step.head_rows) + drawn_s)
    }

    fn rated_s(&self, work: &StageWork, step: StepShape) -> f64 {
        let longer =
            |bytes: f64, flops: f64| (bytes / self.bandwidth_bytes_per_s).max(flops / self.flops_per_s);
        let (bytes, flops) = (work.layer_bytes(step), work.layer_flops(step));
        if step.head_rows == step.rows {
            return longer(bytes + work.head_active, flops + step.rows * work.head_flops);
        }
        let head_s = if step.head_rows > 0.0 {
            longer(work.head_active, step.head_rows * work.head_flops)
        } else {
            0.0
        };
        longer(bytes, flops) + head_s
    }

    fn product_s(&self, product: &Product, rows: f64) -> f64 {
        let weights = product.weights as f64;
        match product.experts {
            None => weights * self.unit_s(Kernel::Product(product.kind), rows),
            Some(experts) => {
                let distinct = experts.distinct(rows);
                let rows_each = rows * experts.used as f64 / distinct.max(f64::MIN_POSITIVE);
                let taken = weights * distinct / experts.count.max(1) as f64;
                taken * self.unit_s(Kernel::Product(product.kind), rows_each)
            }
        }
    }

    fn attention_s(&self, of: &AttentionCost, work: &StageWork, step: StepShape) -> f64 {
        // A cache is read like a matrix, where no more is known.
        let alike = if work.cache_value_bytes > 2.0 { TensorType::F32 } else { TensorType::F16 };
        let is_known = self.curve(Kernel::Attention).is_some();
        let kernel = if is_known { Kernel::Attention } else { Kernel::Product(alike) };
        let heads = of.multiply_adds as f64 / of.cached_values.max(1) as f64;
        let sequences = step.rows / step.sequence_rows;
        let rows = heads * step.sequence_rows;
        let position_s = self.unit_s(kernel, rows);
        // With many rows the positions decide, and what beginning takes was measured among them.
        let opening_s = self.unit_s(Kernel::Opening, rows.min(MANY_ROWS));
        sequences * of.cached_values as f64 * (seen(of, step) * position_s + opening_s)
    }

    /// Seconds for each of what a kernel's speed counts, with `rows` rows.
    fn unit_s(&self, kernel: Kernel, rows: f64) -> f64 {
        let Some(points) = self.curve(kernel) else {
            let alike = if let Kernel::Product(kind) = kernel { self.most_alike(kind) } else { None };
            let alike_s = alike.map_or(0.0, |alike| self.unit_s(alike, rows));
            return self.rated_unit_s(kernel, rows).max(alike_s);
        };
        let after = points.partition_point(|(at, _)| *at < rows);
        match (after.checked_sub(1).map(|before| points[before]), points.get(after)) {
            (None, Some((_, unit_s))) => *unit_s,
            (Some((below, low_s)), Some((above, high_s))) => {
                low_s + (high_s - low_s) * (rows - below) / (above - below)
            }
            // Beyond what was measured every row costs as much as the others, once there are so many that they decide.
            (Some((most, unit_s)), None)
                if most >= MANY_ROWS || !matches!(kernel, Kernel::Product(_) | Kernel::Attention) =>
            {
                unit_s * rows / most
            }
            (Some((most, unit_s)), None) => unit_s + 2.0 * (rows - most) / self.flops_per_s,
            (None, None) => 0.0,
        }
    }

    fn curve(&self, kernel: Kernel) -> Option<&[(f64, f64)]> {
        self.curves.iter().find(|(of, _)| *of == kernel).map(|(_, points)| points.as_slice())
    }

    /// The product of those measured whose weights take about as many bytes as those of `kind`.
    fn most_alike(&self, kind: TensorType) -> Option<Kernel> {
        let bytes = bytes_per_weight(kind).ln();
        let apart = |kernel: &Kernel| match kernel {
            Kernel::Product(other) => Some((bytes_per_weight(*other).ln() - bytes).abs()),
            _ => None,
        };
        let products = self.curves.iter().filter_map(|(kernel, _)| Some((*kernel, apart(kernel)?)));
        products.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(kernel, _)| kernel)
    }

    /// The same where it was not measured.
    fn rated_unit_s(&self, kernel: Kernel, rows: f64) -> f64 {
        let longer = |bytes: f64| (bytes / self.bandwidth_bytes_per_s).max(2.0 * rows / self.flops_per_s);
        match kernel {
            Kernel::Product(kind) => longer(bytes_per_weight(kind)),
            Kernel::Attention => longer(bytes_per_weight(TensorType::F16)),
            Kernel::Passing => rows * PASSED_BYTES / self.bandwidth_bytes_per_s,
            Kernel::Handing => HANDING_S,
            // Small beside the rest, and part of what was measured where nobody has told it apart.
            Kernel::Opening | Kernel::Framing | Kernel::Drawing => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::ExpertShare;
    use crate::kernels::Kernels;
    use crate::units::Bytes;

    fn device(speeds: &[(TensorType, u32, f64)]) -> DeviceTimes {
        let speed = |&(kind, rows, per_s): &(TensorType, u32, f64)| KernelSpeed {
            kernel: Kernel::Product(kind),
            rows,
            per_s,
        };
        DeviceTimes::of(&PlanDevice {
            name: "w".to_owned(),
            budget: Bytes::mib(1),
            bandwidth_bytes_per_s: 1e9,
            flops_per_s: 1e10,
            threads: None,
            kernels: Kernels::CPU,
            held: None,
            kernel_speeds: speeds.iter().map(speed).collect(),
            host: None,
            offload_bytes_per_s: None,
        })
    }

    #[track_caller]
    fn assert_near(found: f64, wanted: f64) {
        assert!((found / wanted - 1.0).abs() < 1e-9, "{found} instead of {wanted}");
    }

    #[test]
    fn speeds_are_met_where_they_were_measured_and_times_grow_evenly_between() {
        let speeds = [(TensorType::Q4K, 4, 0.5e9), (TensorType::Q4K, 1, 1e9), (TensorType::Q4K, 16, 1e8)];
        let device = device(&speeds);
        for (rows, wanted_ns) in [(0.5, 1.0), (1.0, 1.0), (4.0, 2.0), (10.0, 6.0), (16.0, 10.0), (64.0, 19.6)]
        {
            assert_near(device.unit_s(Kernel::Product(TensorType::Q4K), rows), wanted_ns * 1e-9);
        }
    }

    #[test]
    fn fewer_rows_never_take_longer_than_more() {
        let device = device(&[(TensorType::Q8_0, 1, 1e8), (TensorType::Q8_0, 4, 1e9)]);
        assert_near(device.unit_s(Kernel::Product(TensorType::Q8_0), 1.0), 1e-9);
    }

    #[test]
    fn types_that_were_not_measured_are_as_fast_as_those_most_like_them() {
        let device =
            device(&[(TensorType::Q8_0, 1, 1e8), (TensorType::Q4K, 1, 2e8), (TensorType::Q4K, 8, 1e8)]);
        assert_near(device.unit_s(Kernel::Product(TensorType::Q4_1), 1.0), 5e-9);
        assert_near(device.unit_s(Kernel::Product(TensorType::Q4_1), 8.0), 10e-9);
        assert_near(device.unit_s(Kernel::Product(TensorType::F16), 1.0), 10e-9);
    }

    #[test]
    fn what_was_not_measured_takes_its_bytes_or_its_arithmetic() {
        let device = device(&[]);
        assert_near(device.unit_s(Kernel::Product(TensorType::F32), 1.0), 4e-9);
        assert_near(device.unit_s(Kernel::Product(TensorType::F32), 100.0), 20e-9);
    }

    #[test]
    fn of_experts_those_are_multiplied_that_rows_take() {
        let device = device(&[(TensorType::Q4K, 1, 1e9), (TensorType::Q4K, 100, 1e8)]);
        let experts = ExpertShare { count: 8, used: 2 };
        let all = Product { kind: TensorType::Q4K, weights: 8_000, experts: Some(experts) };
        assert_near(device.product_s(&all, 1.0), 2_000e-9);
        // 8 (1 - 0.75^2) = 3.5 experts, each with 4 / 3.5 rows.
        let per_weight = 1e-9 + 9e-9 * (4.0 / 3.5 - 1.0) / 99.0;
        assert_near(device.product_s(&all, 2.0), 3_500.0 * per_weight);
        // With many rows every expert has its share of them.
        assert_near(device.product_s(&all, 400.0), 8_000.0 * 10e-9);
    }

    #[test]
    fn attention_passes_over_a_sequences_cache_once_and_windows_hide_the_rest() {
        let device = device(&[(TensorType::F16, 1, 1e9), (TensorType::F16, 100, 1e8)]);
        let attention = AttentionCost { cached_values: 10, multiply_adds: 40, window: Some(50) };
        let work = StageWork {
            products: Vec::new(),
            attention: vec![(attention, 1.0)],
            passed_values: 0.0,
            framed_values: 0.0,
            layers: 0.0,
            logits: 0.0,
            active: 0.0,
            flops: 0.0,
            head_active: 0.0,
            head_flops: 0.0,
            head: None,
            streamed: 0.0,
            cache_value_bytes: 2.0,
        };
        let weight_s = |rows: f64| 1e-9 + 9e-9 * (rows - 1.0) / 99.0;
        // Three sequences with 20 tokens each; four heads share a key.
        let decode = StepShape::decode(3.0, 20.0);
        assert_near(device.measured_s(&work, decode), 3.0 * 10.0 * 20.0 * weight_s(4.0));
        let chunk = StepShape::chunk(25.0, 30.0, false);
        assert_near(device.measured_s(&work, chunk), 10.0 * 42.5 * weight_s(100.0));
        let late = StepShape::chunk(25.0, 3000.0, false);
        assert_near(device.measured_s(&work, late), 10.0 * 50.0 * weight_s(100.0));
        assert_near(work.read_bytes(decode), 3.0 * 20.0 * 10.0 * 2.0);
    }
}
