//! Layers that are read again for every step: they change no bit and take little memory, and what goes wrong with their file
//! is told.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::rig::{Coordinator, DEPLOYMENT, Neighbour, Process, Worker, fence};
use super::tiny_model::{Pipeline, Random, TinyModel, load, request, room, scored, segment, step};
use brigade_proto::control::{DeviceKind, LoadStage, StageMemory, StageState, ToCoordinator, ToWorker};
use brigade_proto::ids::{Peer, SequenceId, StepId};
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Frame, Segment, SequenceStart, StepFrame};
use brigade_shard::cost::{Cost, STAGED_LAYERS};
use brigade_shard::model_file::{Header, Place};
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;
use brigade_shard::units::Bytes;
use brigade_worker::model::Converted;
use brigade_worker::stage::{
    HeldWeights, LoadProgress, PreparedWeights, Stage, StageOutput, StageRequest, missing_weights, plan_check,
};

const LAYERS: usize = 8;

/// Longest time that ending a stage may take: it waits for one read.
const ENDING: Duration = Duration::from_secs(10);

/// Where files lie on a disk, and not in memory as they may in the system's own place.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn written(model: &TinyModel) -> (tempfile::TempDir, Header) {
    let dir = folder();
    let header = model.write(&dir.path().join("model.gguf"));
    (dir, header)
}

fn deep(model: TinyModel) -> TinyModel {
    TinyModel { layers: LAYERS, ..model }
}

/// Models of every kind of product, deep enough for streaming to take less memory.
fn models() -> Vec<TinyModel> {
    vec![
        deep(TinyModel { hidden: 128, feed_forward: 256, ..TinyModel::q4_1() }),
        deep(TinyModel::f32()),
        deep(TinyModel { kind: TensorType::F16, ends: TensorType::BF16, ..TinyModel::f32() }),
        deep(TinyModel {
            kind: TensorType::Q5_0,
            tied: false,
            hidden: 128,
            feed_forward: 256,
            ..TinyModel::q4_1()
        }),
        deep(TinyModel::wide(TensorType::Q4K)),
        // One that is kept in rows.
        deep(TinyModel::wide(TensorType::IQ2_XS)),
    ]
}

fn streaming(header: &Header, layers: std::ops::Range<usize>, streamed_layers: usize) -> StageRequest {
    StageRequest { streamed_layers, ..request(header, layers, LAYERS) }
}

#[test]
fn streamed_layers_give_the_same_bits() {
    for model in models() {
        let (_dir, header) = written(&model);
        let tokens = Random::new(1).tokens(70, model.vocab);
        let whole = Pipeline::cut(&header, LAYERS, &[]).scores(1, &tokens, 64);
        for (streamed, threads, chunk) in [(4, 1, 64), (8, 3, 64), (8, 1, 7), (5, 2, 1), (4, 1, 33)] {
            let stage = load(StageRequest { threads, ..streaming(&header, 0..LAYERS, streamed) });
            let memory =
                plan_check(&header, &request(&header, 0..LAYERS, LAYERS).shard, 0, &room(), Converted::No)
                    .unwrap();
            assert!(
                stage.memory().weights < memory.weights,
                "{model:?} streams nothing of {streamed} layers"
            );
            let mut pipeline = Pipeline(vec![stage]);
            // A second time, with buffers that have gone round.
            for _ in 0..2 {
                let scores = pipeline.scores(1, &tokens, chunk);
                assert_eq!(scores, whole, "{model:?}, {streamed} layers in chunks of {chunk}");
            }
        }
        let stages = [streaming(&header, 0..3, 0), streaming(&header, 3..LAYERS, 4)];
        assert_eq!(Pipeline(stages.map(load).into()).scores(1, &tokens, 64), whole, "{model:?} cut in two");
    }
}

#[test]
fn prompts_beside_answers_draw_the_same_tokens() {
    let (_dir, header) = written(&deep(TinyModel::wide(TensorType::Q4K)));
    let sampling =
        Sampling { temperature: 1.2, top_p: 0.9, seed: 77, logprobs: Some(3), ..Sampling::default() };
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| Random::new(i).tokens(20 + i as usize, 200)).collect();
    let answers = |streamed| {
        let mut pipeline = Pipeline(vec![load(streaming(&header, 0..LAYERS, streamed))]);
        let mut last: Vec<(usize, u32)> = Vec::new();
        let mut outputs = Vec::new();
        // In each step one more sequence brings its prompt, and those before it a token.
        for round in 0..8 {
            let mut segments = Vec::new();
            for (i, (start, token)) in last.iter().enumerate() {
                segments.push(Segment { sample: true, ..segment(i as u64, *start, &[*token]) });
            }
            if let Some(prompt) = prompts.get(round) {
                let start = SequenceStart { sampling: sampling.clone(), prompt_tokens: prompt.len() as u32 };
                let begin = Some(start);
                segments.push(Segment { begin, sample: true, ..scored(round as u64, 0, prompt, None) });
                last.push((prompt.len() - 1, 0));
            }
            let step = pipeline.outputs(segments);
            for (i, output) in step.iter().enumerate() {
                last[i] = (last[i].0 + 1, output.sampled[0].token);
            }
            outputs.push(step);
        }
        outputs
    };
    assert_eq!(answers(6), answers(0));
}

#[test]
fn memory_is_that_of_two_layers_and_known_beforehand() {
    for model in models() {
        let (_dir, header) = written(&model);
        let spec = ModelSpec::from_header(&header).unwrap();
        let cost = Cost::new(&spec, &TensorTable::new(&header, &spec).unwrap());
        let shard = request(&header, 0..LAYERS, LAYERS).shard;
        let memory = |streamed| plan_check(&header, &shard, streamed, &room(), Converted::No).unwrap();
        let all = memory(0);
        for few in 1..=STAGED_LAYERS as usize {
            assert_eq!(memory(few), all, "buffers for {few} layers would take no less than they do");
        }
        for streamed in 4..=LAYERS {
            let layers = &cost.layers()[LAYERS - streamed..];
            let matrices: Bytes = layers.iter().map(|layer| layer.matrices).sum();
            let largest = layers.iter().map(|layer| layer.staged).max().unwrap();
            let weights = all.weights - matrices + largest * STAGED_LAYERS;
            assert_eq!(memory(streamed), StageMemory { weights, ..all }, "{model:?}, {streamed}");
            assert_eq!(load(streaming(&header, 0..LAYERS, streamed)).memory(), memory(streamed));
        }
        let budget = memory(LAYERS).total();
        let fits = |streamed, budget| {
            let request = StageRequest { budget, ..streaming(&header, 0..LAYERS, streamed) };
            Stage::load(request, &LoadProgress::new()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(fits(LAYERS, budget), Ok(()));
        for (streamed, budget) in [(0, budget), (LAYERS, budget - Bytes(1))] {
            assert!(fits(streamed, budget).is_err_and(|error| error.contains("raise --memory")));
        }
    }
}

#[test]
fn what_is_streamed_is_neither_held_nor_read_ahead() {
    let model = deep(TinyModel { hidden: 128, feed_forward: 256, ..TinyModel::q4_1() });
    let (_dir, header) = written(&model);
    let tokens = Random::new(1).tokens(70, model.vocab);
    let whole = Pipeline::cut(&header, LAYERS, &[]).scores(1, &tokens, 64);
    let (held, progress) = (HeldWeights::default(), LoadProgress::new());
    let all = streaming(&header, 0..LAYERS, 0);
    let some = streaming(&header, 0..LAYERS, 5);
    let missing = |of: &StageRequest| {
        missing_weights(&header, &of.shard, of.streamed_layers, &of.room, Converted::No, &held).unwrap()
    };
    let (of_all, of_some) = (missing(&all), missing(&some));
    assert!(of_some.0 * 2 < of_all.0, "{of_some} of {of_all} are to be there beforehand");
    let ahead = PreparedWeights::read(some.clone(), &held, &progress).unwrap();
    assert!(missing(&some).0 < of_some.0 / 4, "{} of {of_some} are norms", missing(&some));
    let stage = Stage::load_sharing(some.clone(), &held, &progress).unwrap();
    drop(ahead);
    let rest = missing(&all);
    assert!(rest.0 * 2 > of_all.0, "{rest} of {of_all} are streamed and norms");
    // A stage that holds all of it shares what the first one holds, and leaves it what it streams.
    let (mut first, mut second) =
        (Pipeline(vec![stage]), Pipeline(vec![Stage::load_sharing(all, &held, &progress).unwrap()]));
    assert_eq!(second.scores(1, &tokens, 64), whole);
    drop(second);
    assert_eq!(first.scores(1, &tokens, 64), whole);
    let mut again = Pipeline(vec![Stage::load_sharing(some, &held, &progress).unwrap()]);
    assert_eq!(again.scores(1, &tokens, 64), whole);
}

/// A stage that streams most of a model, which is in a file that the test may damage.
struct Damaged {
    _dir: tempfile::TempDir,
    path: PathBuf,
    header: Header,
    stage: Stage,
    tokens: Vec<u32>,
}

impl Damaged {
    fn new() -> Damaged {
        let model = deep(TinyModel { hidden: 128, feed_forward: 256, ..TinyModel::q4_1() });
        let (dir, header) = written(&model);
        let stage = load(streaming(&header, 0..LAYERS, 7));
        let tokens = Random::new(3).tokens(20, model.vocab);
        Damaged { path: dir.path().join("model.gguf"), _dir: dir, header, stage, tokens }
    }

    /// Where a tensor begins in the file.
    fn offset(&self, tensor: &str) -> u64 {
        let Place::File { offset, .. } = self.header.tensor(tensor).unwrap().pieces[0].place else {
            panic!("it is in the file");
        };
        offset
    }

    fn run(&mut self) -> Result<Vec<brigade_proto::step::SegmentOutput>, String> {
        let frame =
            StepFrame { release: vec![SequenceId(1)], ..step(vec![scored(1, 0, &self.tokens, None)]) };
        match self.stage.run(frame) {
            Ok(StageOutput::Finish(result)) => Ok(result.outputs),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What a step fails with, within some steps: two layers have been read already. No sequence is left behind.
    fn fails(&mut self) -> String {
        let error = (0..3).find_map(|_| self.run().err()).expect("a step fails");
        assert_eq!(self.stage.usage().sequences, 0, "after {error}");
        error
    }

    fn ends(self) {
        let began = Instant::now();
        drop(self.stage);
        assert!(began.elapsed() < ENDING, "{:?}", began.elapsed());
    }
}

fn writable(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn a_file_that_is_cut_short_fails_steps_until_it_is_whole_again() {
    let mut damaged = Damaged::new();
    let whole = damaged.run().unwrap();
    let bytes = std::fs::read(&damaged.path).unwrap();
    let modified = std::fs::metadata(&damaged.path).unwrap().modified().unwrap();
    let at = damaged.offset("blk.5.ffn_up.weight");
    writable(&damaged.path).set_len(at + 100).unwrap();
    for _ in 0..2 {
        let error = damaged.fails();
        assert!(error.contains("failed to read the weights that are read for every step"), "{error}");
        let short = error.contains("the file ends before it")
            && error.contains("for tensor `blk.5.")
            && error.contains("at byte ");
        assert!(short || error.contains("has changed since its header was read"), "{error}");
        assert!(error.contains("model.gguf"), "{error}");
    }
    // The same file again, as far as anybody can tell.
    std::fs::write(&damaged.path, &bytes).unwrap();
    writable(&damaged.path).set_modified(modified).unwrap();
    assert_eq!(damaged.run().unwrap(), whole);
    assert_eq!(damaged.run().unwrap(), whole);
    writable(&damaged.path).set_len(at).unwrap();
    damaged.fails();
    damaged.ends();
}

#[test]
fn a_file_that_is_written_to_is_used_no_more() {
    let mut damaged = Damaged::new();
    damaged.run().unwrap();
    let mut bytes = std::fs::read(&damaged.path).unwrap();
    let at = damaged.offset("blk.6.attn_q.weight") as usize;
    bytes[at..at + 64].fill(0x5a);
    // Clocks of files may stand still for some milliseconds.
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(&damaged.path, &bytes).unwrap();
    for _ in 0..2 {
        let error = damaged.fails();
        assert!(error.contains("model.gguf is not the file any more that it was"), "{error}");
    }
    damaged.ends();
}

#[test]
fn a_file_that_is_removed_or_replaced_is_read_to_the_end() {
    let mut damaged = Damaged::new();
    let whole = damaged.run().unwrap();
    std::fs::remove_file(&damaged.path).unwrap();
    std::fs::write(&damaged.path, "another one").unwrap();
    for _ in 0..3 {
        assert_eq!(damaged.run().unwrap(), whole);
    }
    // A stage is not made of it any more.
    let request = streaming(&damaged.header, 0..LAYERS, 7);
    let error = Stage::load(request, &LoadProgress::new()).err().unwrap().to_string();
    assert!(error.contains("has changed since its header was read"), "{error}");
    damaged.ends();
}

#[test]
fn a_stage_ends_at_once_whatever_is_read_ahead() {
    for _ in 0..20 {
        Damaged::new().ends();
    }
}

#[test]
fn devices_that_cannot_stream_say_so() {
    let (_dir, header) = written(&deep(TinyModel::f32()));
    for (device, name) in [(DeviceKind::Cuda(1), "cuda:1"), (DeviceKind::Metal, "metal")] {
        let request = StageRequest { device, ..streaming(&header, 0..LAYERS, 5) };
        let error = Stage::load(request.clone(), &LoadProgress::new()).err().unwrap().to_string();
        assert!(error.contains(&format!("{name} cannot read 5 layers")), "{error}");
        assert!(error.contains("--offload"), "{error}");
        let ahead = PreparedWeights::read(request, &HeldWeights::default(), &LoadProgress::new());
        assert_eq!(ahead.err().unwrap().to_string(), error);
    }
}

/// Pages of a file that the system keeps, of those that lie in the given bytes alone.
#[cfg(target_os = "linux")]
fn cached(path: &Path, ranges: &[std::ops::Range<usize>]) -> (usize, usize) {
    let file = File::open(path).unwrap();
    // SAFETY: nobody shortens the file while the test looks at it.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    // SAFETY: the call takes a number alone.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let mut kept = vec![0u8; map.len().div_ceil(page)];
    // SAFETY: the map is as long as is said, and there is a byte for each of its pages.
    let told = unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), kept.as_mut_ptr()) };
    assert_eq!(told, 0);
    let pages = ranges.iter().flat_map(|range| range.start.div_ceil(page)..range.end / page);
    let pages: Vec<usize> = pages.collect();
    (pages.iter().filter(|at| kept[**at] & 1 == 1).count(), pages.len())
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_streamed_does_not_stay_in_the_systems_cache() {
    let model = TinyModel { hidden: 512, feed_forward: 1536, ..deep(TinyModel::wide(TensorType::Q4K)) };
    let (dir, header) = written(&model);
    let path = dir.path().join("model.gguf");
    // What is not on the disk yet cannot be dropped.
    File::open(&path).unwrap().sync_all().unwrap();
    let matrices =
        header.tensors().iter().filter(|info| info.dims.len() == 2 && info.name.starts_with("blk."));
    let ranges: Vec<std::ops::Range<usize>> = matrices
        .map(|info| {
            let Place::File { offset, .. } = info.pieces[0].place else { panic!("{info:?}") };
            offset as usize..(offset + info.bytes.0) as usize
        })
        .collect();
    std::fs::read(&path).unwrap();
    let (before, pages) = cached(&path, &ranges);
    assert!(before > pages / 2 && pages > 1000, "{before} of {pages} pages were in the cache");
    let tokens = Random::new(1).tokens(40, model.vocab);
    let mut pipeline = Pipeline(vec![load(streaming(&header, 0..LAYERS, LAYERS))]);
    pipeline.scores(1, &tokens, 8);
    let (after, _) = cached(&path, &ranges);
    println!("{before} of {pages} pages were in the cache before, and {after} after ten steps");
    assert!(after <= pages / 100, "{after} of {pages} pages are in the cache");
}

/// A coordinator with a model that is deep enough for streaming, under the name of the tiny one.
async fn coordinator() -> Coordinator {
    let coordinator = Coordinator::start().await;
    let model = TinyModel { layers: LAYERS, hidden: 128, feed_forward: 256, ..TinyModel::q4_1() };
    model.write(&coordinator.models().join("tiny.gguf"));
    coordinator
}

fn order(coordinator: &Coordinator, streamed_layers: u32) -> LoadStage {
    let shard = request(&coordinator.header(), 0..LAYERS, LAYERS).shard;
    LoadStage { shard, stages: 1, streamed_layers, ..coordinator.load(1, 0, LAYERS) }
}

async fn worker(coordinator: &mut Coordinator, name: &str, flags: &[&str]) -> Worker {
    let mut command = coordinator.command(name);
    command.args(flags).env("BRIGADE_TOKEN", coordinator.token.to_string());
    let process = Process::start(command);
    let session = coordinator.attached().await;
    Worker { process, session }
}

/// A worker that streams, ready for steps.
async fn serving(coordinator: &mut Coordinator, name: &str, streamed: u32) -> (Worker, Neighbour) {
    let mut worker = worker(coordinator, name, &["--offload", "--offload-rate", "2GB/s"]).await;
    assert_eq!(worker.session.hello().offload_bytes_per_s, Some(2e9));
    worker.session.loaded(order(coordinator, streamed)).await;
    worker.session.connect(1, Peer::Coordinator, Peer::Coordinator, Vec::new()).await;
    let link = coordinator.link().await;
    worker.session.connected().await;
    worker.session.activate(1).await;
    (worker, link)
}

fn frame(number: u64, tokens: &[u32]) -> Frame {
    Frame::Step(StepFrame {
        fence: fence(1),
        deployment: DEPLOYMENT,
        step: StepId(number),
        release: vec![SequenceId(1)],
        ..step(vec![Segment { pages: vec![0, 1], ..scored(1, 0, tokens, None) }])
    })
}

#[tokio::test]
async fn a_worker_streams_what_it_is_told_to_and_outlives_its_file() {
    let mut coordinator = coordinator().await;
    let tokens = Random::new(9).tokens(16, 200);
    let (_plain, mut link) = serving(&mut coordinator, "plain", 0).await;
    link.sender.send(&frame(1, &tokens)).await.unwrap();
    let expected = link.result().await.outputs;
    let (mut worker, mut link) = serving(&mut coordinator, "streaming", LAYERS as u32).await;
    for number in 1..4 {
        link.sender.send(&frame(number, &tokens)).await.unwrap();
        assert_eq!(link.result().await.outputs, expected);
    }
    let path = coordinator.models().join("tiny.gguf");
    let bytes = std::fs::metadata(&path).unwrap().len();
    writable(&path).set_len(bytes / 2).unwrap();
    // Two layers have been read ahead; a step later it is found out.
    for number in 4..6 {
        link.sender.send(&frame(number, &tokens)).await.unwrap();
        let failed = |message| match message {
            ToCoordinator::StepFailed { reason, .. } => Some(reason),
            _ => None,
        };
        let reason = worker.session.until("a failed step", failed).await;
        assert!(reason.contains("tiny.gguf") && reason.contains("read for every step"), "{reason}");
    }
    // It still loads and ends when it is told to.
    worker.session.telemetry().await;
    worker.process.signal("TERM");
    let (status, _) = worker.process.ended().await;
    let log = worker.process.log();
    assert!(status.success(), "{log}");
    assert!(log.contains("layers 0..8 are read again for every step"), "{log}");
}

#[tokio::test]
async fn workers_that_were_not_started_for_it_stream_nothing() {
    let mut coordinator = coordinator().await;
    let mut plain = worker(&mut coordinator, "plain", &[]).await;
    assert_eq!(plain.session.hello().offload_bytes_per_s, None);
    plain.session.tell(ToWorker::Load(order(&coordinator, 5))).await;
    let StageState::Failed { reason } = plain.session.state().await else { panic!("it was not refused") };
    assert!(reason.contains("read 5 layers of") && reason.contains("--offload"), "{reason}");
    // There is no file that is large enough to measure the disk with.
    let unknown = worker(&mut coordinator, "unknown", &["--offload"]).await;
    assert_eq!(unknown.session.hello().offload_bytes_per_s, None);
    std::fs::write(coordinator.models().join("large.gguf"), vec![1; 8 << 20]).unwrap();
    let known = worker(&mut coordinator, "known", &["--offload"]).await;
    assert!(known.session.hello().offload_bytes_per_s.is_some_and(|rate| rate > 1e6));
}
