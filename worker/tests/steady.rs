//! In the steady state, a step of a dense model asks for no memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "this program needs a part of it")]
#[path = "worker/tiny_model.rs"]
mod tiny_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::tensor_type::TensorType;
use brigade_worker::backend::{BackendError, Batch, Span};
use brigade_worker::cpu::CpuBackend;
use brigade_worker::model::{self, Input, StageModel, StageNeeds};
use brigade_worker::weights::{LoadProgress, ModelFiles};
use tiny_model::{TinyModel, room};

/// Counts what all threads ask for.
struct Counting;

static ASKED: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs steps of `rows` rows and gives how often each asked for memory.
fn asked(model: &mut StageModel<CpuBackend>, rows: usize, steps: usize) -> Vec<u64> {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    let mut each = Vec::with_capacity(steps);
    for step in 0..steps {
        let start = step * rows;
        let pages = (0..(start + rows).div_ceil(32) as u32).collect();
        let batch = Batch { spans: vec![Span { rows: 0..rows, start, pages }] };
        let wanted = [rows - 1];
        let before = ASKED.load(Ordering::Relaxed);
        model.run(Input::Tokens(&tokens), &batch).unwrap();
        let mut largest = f32::NEG_INFINITY;
        model
            .logits(&wanted, |_, logits| {
                largest = logits.iter().copied().fold(largest, f32::max);
                Ok::<(), BackendError>(())
            })
            .unwrap();
        each.push(ASKED.load(Ordering::Relaxed) - before);
        assert!(largest.is_finite());
    }
    each
}

#[test]
fn a_step_asks_for_no_memory() {
    for (tiny, threads) in
        [(TinyModel::q4_1(), 1), (TinyModel::wide(TensorType::Q4K), 3), (TinyModel::f32(), 2)]
    {
        let dir = tempfile::tempdir().unwrap();
        let header = tiny.write(&dir.path().join("tiny.gguf"));
        let shard = Shard { layers: LayerRange::new(0, tiny.layers).unwrap(), embedding: true, head: true };
        let needs = StageNeeds::new(&header, &shard, &room()).unwrap();
        let progress = LoadProgress::new();
        let files = ModelFiles::open(&header, &progress).unwrap();
        let backend = CpuBackend::new(threads).unwrap();
        let mut model =
            model::load(backend, &files, &needs.spec, &needs.table, &shard, &room(), &progress).unwrap();
        model.settle();
        // The first steps of either kind take what they need from then on; both cross pages.
        for rows in [1, 16] {
            asked(&mut model, rows, 2);
            let steps = asked(&mut model, rows, 112 / rows);
            // A thread that gets work of a kind for the first time takes memory for it then; which does is left to chance.
            let some = steps.iter().filter(|asked| **asked > 0).count();
            assert!(some < threads, "{tiny:?}, steps of {rows} rows on {threads} threads: {steps:?}");
        }
    }
}
