//! One layer of a giant at its true size, loaded and run, against what the planner believes that it takes.
//!
//! It needs disk and memory for the layer. Where there is too little, the test is reported as ignored, never as passed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use brigade_proto::control::{CacheDtype, StageRoom};
use brigade_shard::cost::Cost;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::units::Bytes;
use brigade_tests::setup;
use brigade_worker::backend::{Batch, Span};
use brigade_worker::cpu::CpuBackend;
use brigade_worker::model::{self, Input, StageModel, StageNeeds};
use brigade_worker::weights::{LoadProgress, ModelFiles};
use libtest_mimic::{Arguments, Failed, Trial};

/// Rows of the prompt that the layer is run with.
const ROWS: usize = 32;
/// What the process takes beside what is computed for the layer: stacks, and pages that the allocator keeps.
const OVERHEAD: u64 = 32 << 20;
/// Memory beyond the layer that must be free: the machine has other things to do.
const SPARE: u64 = 3 << 30;
/// Longest time for one row, far beyond what any machine with this much memory needs.
const ROW_DEADLINE: Duration = Duration::from_secs(10);

/// A giant and a layer of it whose matrices are all of the mix's smaller type.
#[derive(Clone, Copy)]
struct Giant {
    model: &'static str,
    layer: usize,
    /// Size of the layer's weights, and of the rope divisors that go with them: 4.5 bits for each value of a matrix.
    bytes: u64,
}

const GIANTS: [Giant; 2] = [
    Giant { model: "llama-405b", layer: 16, bytes: 1_793_196_288 },
    Giant { model: "deepseek-r1", layer: 10, bytes: 6_480_262_144 },
];

fn main() {
    let mut trials = Vec::new();
    for giant in GIANTS {
        let lacking = lacking(giant.bytes);
        if let Some(reason) = &lacking {
            println!("a layer of {} is not run here: {reason}", giant.model);
        }
        let name = format!("a_layer_of_{}_takes_what_the_planner_says", giant.model.replace('-', "_"));
        trials.push(Trial::test(name, move || run(giant)).with_ignored_flag(lacking.is_some()));
    }
    let mut arguments = Arguments::from_args();
    // Together they could need more memory than there is, and each looks at the memory of this process.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// What this machine has too little of, for a layer of `bytes`.
fn lacking(bytes: u64) -> Option<String> {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available =
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10;
    let free = free_disk(&setup::target_folder());
    for (what, has, needs) in [("memory", available, bytes + SPARE), ("disk", free, bytes + SPARE)] {
        if has < needs {
            return Some(format!("it needs {} of free {what}, there are {}", Bytes(needs), Bytes(has)));
        }
    }
    None
}

fn free_disk(folder: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt as _;
    let Ok(path) = std::ffi::CString::new(folder.as_os_str().as_bytes()) else {
        return 0;
    };
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in a zero byte, and zeroes are a valid `statvfs`.
    let (result, stat) = unsafe { (libc::statvfs(path.as_ptr(), stat.as_mut_ptr()), stat.assume_init()) };
    if result == 0 { stat.f_bavail * stat.f_frsize } else { 0 }
}

/// Memory of this process that is resident and its own: pages of the model's file, which the system may take back at any
/// time, do not count.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

fn file(folder: &Path, giant: Giant) -> Result<PathBuf, Failed> {
    let file = folder.join(format!("{}.gguf", giant.model));
    let script = setup::repository().join("tests/reference/make_true_size.py");
    let mut make = Command::new(setup::python());
    make.arg(script).arg(&file).arg(giant.model).args(["--layer", &giant.layer.to_string()]);
    let output = make.output()?;
    if output.status.success() {
        Ok(file)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }
}

/// Runs rows of one sequence that start at `start`, and gives their hidden states.
fn step(
    model: &mut StageModel<CpuBackend>,
    hidden: &[f32],
    width: usize,
    start: usize,
) -> Result<Vec<f32>, Failed> {
    let rows = hidden.len() / width;
    let pages = (0..(start + rows).div_ceil(32) as u32).collect();
    let batch = Batch { spans: vec![Span { rows: 0..rows, start, pages }] };
    model.run(Input::Hidden(hidden), &batch)?;
    Ok(model.hidden(<[f32]>::to_vec)?)
}

/// Numbers of about 1, the same on every run.
fn random(count: usize) -> Vec<f32> {
    let mut state = 31u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (next() + next() + next() + next()) * 1.7).collect()
}

fn run(giant: Giant) -> Result<(), Failed> {
    let folder = tempfile::tempdir_in(setup::target_folder())?;
    let header = Header::open(&file(folder.path(), giant)?)?;
    let shard = Shard {
        layers: LayerRange { start: giant.layer, end: giant.layer + 1 },
        embedding: false,
        head: false,
    };
    let room = StageRoom {
        cache_tokens: 2 * ROWS as u32,
        context: 2 * ROWS as u32,
        step_rows: ROWS as u32,
        sequences: 1,
        cache_dtype: CacheDtype::F16,
    };
    let needs = StageNeeds::new(&header, &shard, &room)?;
    let cost = Cost::new(&needs.spec, &needs.table).layers()[giant.layer];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let backend = CpuBackend::new(threads)?;
    let work = backend.work();

    let before = resident();
    let progress = LoadProgress::new();
    let files = ModelFiles::open(&header, &progress)?;
    let start = Instant::now();
    let mut model = model::load(backend, &files, &needs.spec, &needs.table, &shard, &room, &progress)?;
    let loading = start.elapsed();
    assert_eq!(needs.memory.weights.0, giant.bytes, "the layer's weights");
    assert_eq!(progress.loaded(), needs.memory.weights, "bytes read");

    let width = needs.spec.hidden;
    let hidden = random(ROWS * width);
    let start = Instant::now();
    let together = step(&mut model, &hidden, width, 0)?;
    let prompt = start.elapsed();
    let flops = 2 * work.multiply_adds();
    assert_eq!(flops, cost.flops * ROWS as u64, "floating-point operations of {ROWS} rows");
    let start = Instant::now();
    let next = step(&mut model, &hidden[..width], width, ROWS)?;
    let row = start.elapsed();
    let taken = resident() - before;
    let stated = needs.memory.weights + needs.memory.cache + needs.memory.workspace;

    println!(
        "{}: {} of weights loaded in {:.1} s; {} resident, stated {} (weights {}, cache {}, workspace {})",
        giant.model,
        needs.memory.weights,
        loading.as_secs_f64(),
        Bytes(taken),
        stated,
        needs.memory.weights,
        needs.memory.cache,
        needs.memory.workspace
    );
    println!(
        "{}: a row in {:.1} ms ({:.1} GB/s of its {}), {ROWS} rows in {:.0} ms ({:.1} GFLOP/s), {threads} threads",
        giant.model,
        row.as_secs_f64() * 1e3,
        cost.active.0 as f64 / row.as_secs_f64() / 1e9,
        cost.active,
        prompt.as_secs_f64() * 1e3,
        cost.flops as f64 * ROWS as f64 / prompt.as_secs_f64() / 1e9,
    );
    assert!(taken >= needs.memory.weights.0, "{} resident: the weights are not", Bytes(taken));
    assert!(taken <= stated.0 + OVERHEAD, "{} resident, stated {stated}", Bytes(taken));
    assert!(row <= ROW_DEADLINE, "a row took {row:?}");

    for (name, values) in [("the prompt", &together), ("the next row", &next)] {
        let size = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(
            size.is_finite() && (0.1..100.0).contains(&size),
            "hidden states of {name} have the size {size}"
        );
    }
    let alone = step(&mut model, &hidden[..width], width, 0)?;
    assert_eq!(alone, together[..width], "a row alone, and in a prompt");
    assert_ne!(together[..width], hidden[..width], "the layer changes what it reads");
    Ok(())
}
