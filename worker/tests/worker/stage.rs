//! Stages of tiny models: where and how a computation is cut changes nothing, and wrong frames break nothing.

use super::tiny_model::{Pipeline, Random, TinyModel, load, pages_of, request, room, scored, segment, step};
use brigade_proto::control::{CacheDtype, DeviceKind};
use brigade_proto::ids::SequenceId;
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Hidden, Segment, SequenceStart, StepFrame, TokenScore, WireDtype};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Place;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use brigade_worker::model::Converted;
use brigade_worker::stage::{
    CacheUsage, HeldWeights, LoadError, LoadProgress, PreparedWeights, Stage, StageOutput, StageRequest,
    StepError, missing_weights, plan_check,
};

fn written(model: &TinyModel) -> (tempfile::TempDir, brigade_shard::model_file::Header) {
    let dir = tempfile::tempdir().unwrap();
    let header = model.write(&dir.path().join("tiny.gguf"));
    (dir, header)
}

/// Models of every kind of product.
fn models() -> Vec<TinyModel> {
    vec![
        TinyModel::q4_1(),
        TinyModel::f32(),
        TinyModel { kind: TensorType::F16, ends: TensorType::BF16, ..TinyModel::f32() },
        TinyModel { kind: TensorType::Q5_0, ends: TensorType::Q4_0, tied: false, ..TinyModel::q4_1() },
        TinyModel::wide(TensorType::Q4K),
    ]
}

#[test]
fn cutting_at_any_boundary_gives_the_same_bits() {
    for model in models() {
        let (_dir, header) = written(&model);
        let tokens = Random::new(1).tokens(70, model.vocab);
        let whole = Pipeline::cut(&header, model.layers, &[]).scores(1, &tokens, 64);
        assert_eq!(whole.len(), 69);
        assert!(whole.iter().all(|s| s.logprob < 0.0 && s.top.len() == 3), "{:?}", whole[0]);
        for cut in 1..model.layers {
            let scores = Pipeline::cut(&header, model.layers, &[cut]).scores(1, &tokens, 64);
            assert_eq!(scores, whole, "{model:?} cut before layer {cut}");
        }
        let cuts: Vec<usize> = (1..model.layers).collect();
        let scores = Pipeline::cut(&header, model.layers, &cuts).scores(1, &tokens, 64);
        assert_eq!(scores, whole, "{model:?} cut everywhere");
    }
}

#[test]
fn what_a_stage_holds_or_was_read_ahead_is_not_read_again() {
    for model in models() {
        let (dir, header) = written(&model);
        let tokens = Random::new(1).tokens(70, model.vocab);
        let whole = Pipeline::cut(&header, model.layers, &[]).scores(1, &tokens, 64);
        let held = HeldWeights::default();
        let all = request(&header, 0..model.layers, model.layers);
        let missing = || missing_weights(&header, &all.shard, 0, &all.room, Converted::No, &held).unwrap();
        let everything = missing();
        assert_eq!(everything, plan_check(&header, &all.shard, 0, &all.room, Converted::No).unwrap().weights);
        let first = request(&header, 0..model.layers / 2, model.layers);
        let progress = LoadProgress::new();
        let first = Stage::load_sharing(first, &held, &progress).unwrap();
        let rest = missing();
        assert!(rest < everything && rest.0 > 0, "{rest} of {everything}");
        let ahead = PreparedWeights::read(all.clone(), &held, &progress).unwrap();
        assert!(missing().0 < rest.0 / 4, "{} of {rest} are norms", missing());
        drop(first);
        assert!(missing().0 < rest.0 / 4, "they stay although their stage has gone");
        // Nothing but norms is read: the matrices may be whatever they like in the file.
        let mut bytes = std::fs::read(dir.path().join("tiny.gguf")).unwrap();
        let matrices = header.tensors().iter().filter(|info| info.dims.len() > 1);
        for piece in matrices.flat_map(|info| &info.pieces) {
            let Place::File { offset, .. } = piece.place else { panic!("{piece:?}") };
            bytes[offset as usize..][..piece.bytes.0 as usize].fill(0xFF);
        }
        std::fs::write(dir.path().join("tiny.gguf"), bytes).unwrap();
        let stage = Stage::load_sharing(all.clone(), &held, &progress).unwrap();
        drop(ahead);
        assert_eq!(Pipeline(vec![stage]).scores(1, &tokens, 64), whole, "{model:?}");
        assert_eq!(missing(), everything, "nobody holds them any more");
    }
}

#[test]
fn a_stage_may_hold_an_end_without_layers() {
    let model = TinyModel::q4_1();
    let (_dir, header) = written(&model);
    let tokens = Random::new(1).tokens(20, model.vocab);
    let whole = Pipeline::cut(&header, 4, &[]).scores(1, &tokens, 64);
    let range = |start, end| LayerRange::new(start, end).unwrap();
    let shards = [
        Shard { layers: range(0, 0), embedding: true, head: false },
        Shard { layers: range(0, 4), embedding: false, head: false },
        Shard { layers: range(4, 4), embedding: false, head: true },
    ];
    let stages = shards.map(|shard| load(StageRequest { shard, ..request(&header, 0..4, 4) }));
    assert_eq!(Pipeline(stages.into()).scores(1, &tokens, 64), whole);
}

#[test]
fn chunks_of_a_prompt_give_the_same_bits() {
    for model in models() {
        let (_dir, header) = written(&model);
        let tokens = Random::new(2).tokens(64, model.vocab);
        let mut pipeline = Pipeline::cut(&header, model.layers, &[1]);
        let whole = pipeline.scores(1, &tokens, 64);
        for chunk in [1, 7, 31, 32, 33] {
            assert_eq!(pipeline.scores(1, &tokens, chunk), whole, "{model:?} in chunks of {chunk}");
        }
    }
}

#[test]
fn neighbours_in_a_batch_change_no_bit() {
    for model in models() {
        let (_dir, header) = written(&model);
        let mut random = Random::new(3);
        let mut pipeline = Pipeline::cut(&header, model.layers, &[]);
        let sequences: Vec<Vec<u32>> = [13, 1, 22].iter().map(|&n| random.tokens(n, model.vocab)).collect();
        let alone: Vec<_> = sequences.iter().map(|tokens| pipeline.scores(9, tokens, 64)).collect();
        let mut together = vec![Vec::new(); 3];
        // Two steps, so that the second mixes sequences at different positions.
        for half in 0..2 {
            let mut segments = Vec::new();
            for (i, tokens) in sequences.iter().enumerate() {
                let middle = tokens.len() / 2;
                let range = if half == 0 { 0..middle } else { middle..tokens.len() };
                if !range.is_empty() {
                    let next = tokens.get(range.end).copied();
                    let begin = segment(1, 0, tokens).begin.filter(|_| half == 0 || middle == 0);
                    segments.push(Segment {
                        begin,
                        ..scored(i as u64, range.start, &tokens[range.clone()], next)
                    });
                }
            }
            for output in pipeline.outputs(segments) {
                together[output.sequence.0 as usize].extend(output.scores);
            }
        }
        assert_eq!(together, alone, "{model:?}");
    }
}

#[test]
fn threads_change_no_bit() {
    for model in models() {
        let (_dir, header) = written(&model);
        let tokens = Random::new(4).tokens(64, model.vocab);
        let run = |threads| {
            let request = StageRequest { threads, ..request(&header, 0..model.layers, model.layers) };
            Pipeline(vec![load(request)]).scores(1, &tokens, 40)
        };
        let one = run(1);
        assert_eq!(run(2), one, "{model:?}");
        assert_eq!(run(5), one, "{model:?}");
    }
}

#[test]
fn weights_that_stay_in_their_file_give_the_same_bits() {
    for model in models() {
        let (_dir, header) = written(&model);
        let tokens = Random::new(4).tokens(64, model.vocab);
        let run = |mapped| {
            let request =
                StageRequest { mapped, threads: 2, ..request(&header, 0..model.layers, model.layers) };
            Pipeline(vec![load(request)]).scores(1, &tokens, 40)
        };
        assert_eq!(run(true), run(false), "{model:?}");
    }
}

#[test]
fn an_f32_cache_is_close_to_an_f16_one() {
    let (_dir, header) = written(&TinyModel::f32());
    let tokens = Random::new(5).tokens(64, 200);
    let run = |cache_dtype| {
        let mut request = request(&header, 0..4, 4);
        request.room.cache_dtype = cache_dtype;
        Pipeline(vec![load(request)]).scores(1, &tokens, 64)
    };
    let pairs = run(CacheDtype::F16).into_iter().zip(run(CacheDtype::F32));
    let differences: Vec<f32> = pairs.map(|(a, b)| (a.logprob - b.logprob).abs()).collect();
    let largest = differences.iter().fold(0f32, |a, &b| a.max(b));
    assert!(largest > 0.0 && largest < 0.1, "{largest}");
}

#[test]
fn a_replay_from_any_position_gives_the_same_bits() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let tokens = Random::new(6).tokens(60, 200);
    let mut pipeline = Pipeline::cut(&header, 4, &[2]);
    let whole = pipeline.scores(1, &tokens, 64);
    pipeline.outputs(vec![segment(1, 0, &tokens[..50])]);
    for start in [49, 33, 32, 31, 5, 1] {
        let wrong = Random::new(7).tokens(10, 200);
        pipeline.outputs(vec![segment(1, start, &wrong)]);
        let replayed = pipeline.outputs(vec![scored(1, start, &tokens[start..], None)]).remove(0);
        assert_eq!(replayed.scores, whole[start..], "from {start}");
    }
}

#[test]
fn sampling_is_the_same_however_it_is_cut_and_replayed() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let prompt = Random::new(8).tokens(20, 200);
    let sampling = Sampling {
        temperature: 1.2,
        top_p: 0.9,
        seed: 77,
        repetition_penalty: 1.1,
        frequency_penalty: 0.3,
        ..Sampling::default()
    };
    let begin = |prompt_tokens| Some(SequenceStart { sampling: sampling.clone(), prompt_tokens });
    let drawn = |pipeline: &mut Pipeline, start: usize, tokens: &[u32], begun: bool| {
        let begin = begin(20).filter(|_| begun);
        let segment = Segment { begin, sample: true, ..segment(1, start, tokens) };
        pipeline.outputs(vec![segment]).remove(0).sampled[0].token
    };
    let answer = |cuts: &[usize]| {
        let mut pipeline = Pipeline::cut(&header, 4, cuts);
        let mut all = prompt.clone();
        all.push(drawn(&mut pipeline, 0, &prompt, true));
        for _ in 0..30 {
            let last = all.len() - 1;
            let next = drawn(&mut pipeline, last, &all[last..], false);
            all.push(next);
        }
        all
    };
    let whole = answer(&[]);
    assert_eq!(answer(&[1, 2, 3]), whole);
    assert!(whole[20..].iter().collect::<std::collections::HashSet<_>>().len() > 5, "{whole:?}");
    // A replay of prompt and answer so far goes on with the same token.
    for known in [21, 32, 40] {
        let mut pipeline = Pipeline::cut(&header, 4, &[1]);
        assert_eq!(drawn(&mut pipeline, 0, &whole[..known], true), whole[known], "after {known}");
    }
}

/// Everything that the sampler looks at.
fn sampled_like(prompt_tokens: u32) -> SequenceStart {
    let sampling = Sampling {
        temperature: 1.1,
        top_p: 0.95,
        seed: 9,
        repetition_penalty: 1.1,
        frequency_penalty: 0.3,
        logprobs: Some(2),
        ..Sampling::default()
    };
    SequenceStart { sampling, prompt_tokens }
}

/// `count` tokens after `prompt`, drawn one by one.
fn answer_of(pipeline: &mut Pipeline, prompt: &[u32], count: usize) -> Vec<TokenScore> {
    let begin = Some(sampled_like(prompt.len() as u32));
    let first = Segment { begin, sample: true, ..segment(1, 0, prompt) };
    let mut answer = pipeline.outputs(vec![first]).remove(0).sampled;
    while answer.len() < count {
        let last = answer.last().unwrap().token;
        let next = Segment { sample: true, ..segment(1, prompt.len() + answer.len() - 1, &[last]) };
        answer.extend(pipeline.outputs(vec![next]).remove(0).sampled);
    }
    answer
}

/// A segment whose tokens but the first are drafts.
fn drafted(start: usize, tokens: &[u32]) -> Segment {
    Segment { sample: true, drafts: tokens.len() as u32 - 1, ..segment(1, start, tokens) }
}

#[test]
fn drafts_are_taken_as_far_as_they_are_what_is_drawn() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let prompt = Random::new(11).tokens(20, 200);
    for cuts in [&[][..], &[1, 3]] {
        let mut pipeline = Pipeline::cut(&header, 4, cuts);
        let alone = answer_of(&mut pipeline, &prompt, 40);
        let tokens: Vec<u32> = alone.iter().map(|score| score.token).collect();
        for (right, wrong) in [(0, 1), (0, 4), (1, 0), (1, 3), (5, 0), (7, 6), (13, 2)] {
            let mut found = answer_of(&mut pipeline, &prompt, 1);
            while found.len() + right + wrong < alone.len() {
                let at = found.len();
                let mut guess = tokens[at - 1..at + right].to_vec();
                guess.extend((0..wrong).map(|i| (tokens[at + right + i] + 1) % 200));
                let drawn = pipeline.outputs(vec![drafted(prompt.len() + at - 1, &guess)]).remove(0).sampled;
                assert_eq!(drawn.len(), right + 1, "{right} right and {wrong} wrong drafts");
                found.extend(drawn);
            }
            assert_eq!(found, alone[..found.len()], "{right} right and {wrong} wrong drafts");
        }
    }
}

#[test]
fn what_runs_ahead_counts_only_where_all_before_it_was_drawn() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let prompt = Random::new(12).tokens(20, 200);
    let mut pipeline = Pipeline::cut(&header, 4, &[2]);
    let alone = answer_of(&mut pipeline, &prompt, 30);
    let tokens: Vec<u32> = alone.iter().map(|score| score.token).collect();
    let ahead = |at: usize, tokens: &[u32]| Segment {
        sample: true,
        drafts: tokens.len() as u32,
        ..segment(1, prompt.len() + at, tokens)
    };
    // Three segments follow each other, of which the second and the third run ahead.
    answer_of(&mut pipeline, &prompt, 1);
    let mut found = alone[..1].to_vec();
    found.extend(pipeline.outputs(vec![drafted(prompt.len(), &tokens[..4])]).remove(0).sampled);
    assert_eq!(found.len(), 5, "three drafts and the token after them");
    found.extend(pipeline.outputs(vec![ahead(4, &tokens[4..8])]).remove(0).sampled);
    found.extend(pipeline.outputs(vec![ahead(8, &tokens[8..10])]).remove(0).sampled);
    assert_eq!(found, alone[..11]);
    // A wrong draft, and what ran ahead of it is not drawn; nor is what ran ahead of that.
    let mut wrong = tokens[10..14].to_vec();
    wrong[3] = (wrong[3] + 1) % 200;
    found.extend(pipeline.outputs(vec![drafted(prompt.len() + 10, &wrong)]).remove(0).sampled);
    assert_eq!(found, alone[..14]);
    for (at, tokens) in [(14, &tokens[14..16]), (16, &tokens[16..18])] {
        assert_eq!(pipeline.outputs(vec![ahead(at, tokens)]).remove(0).sampled, []);
    }
    // It goes on behind what was drawn.
    found.extend(pipeline.outputs(vec![drafted(prompt.len() + 13, &tokens[13..18])]).remove(0).sampled);
    found.extend(pipeline.outputs(vec![ahead(18, &tokens[18..20])]).remove(0).sampled);
    assert_eq!(found, alone[..21]);
}

#[test]
fn scores_are_log_probabilities() {
    let (_dir, header) = written(&TinyModel::f32());
    let mut pipeline = Pipeline::cut(&header, 4, &[]);
    let tokens = Random::new(9).tokens(5, 200);
    // The probabilities of all possible next tokens add up to 1.
    let mut sum = 0.0;
    for next in 0..200 {
        let scores = pipeline.outputs(vec![scored(1, 0, &tokens, Some(next))]).remove(0).scores;
        assert_eq!(scores.len(), 5);
        assert_eq!(scores[4].token, next);
        sum += f64::from(scores[4].logprob).exp();
    }
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let greedy = SequenceStart {
        sampling: Sampling { temperature: 0.0, logprobs: Some(2), ..Sampling::default() },
        prompt_tokens: 5,
    };
    let segment = Segment { begin: Some(greedy), sample: true, ..scored(1, 0, &tokens, None) };
    let output = pipeline.outputs(vec![segment]).remove(0);
    let sampled = &output.sampled[0];
    assert_eq!(output.scores.len(), 4);
    assert_eq!(sampled.top[0], (sampled.token, sampled.logprob));
    assert!(sampled.top[1].1 <= sampled.top[0].1);
}

#[test]
fn release_and_clear_free_the_cache() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let mut pipeline = Pipeline::cut(&header, 4, &[]);
    pipeline.outputs(vec![segment(1, 0, &[1; 40]), segment(2, 0, &[2; 20])]);
    assert_eq!(pipeline.0[0].usage(), CacheUsage { tokens: 60, sequences: 2 });
    pipeline.run(StepFrame { release: vec![SequenceId(1), SequenceId(99)], ..step(Vec::new()) });
    assert_eq!(pipeline.0[0].usage(), CacheUsage { tokens: 20, sequences: 1 });
    // A step may release and begin at once: the pages are there in time.
    for _ in 0..20 {
        let segments = vec![segment(1, 0, &[3; 64])];
        pipeline.run(StepFrame { release: vec![SequenceId(1), SequenceId(2)], ..step(segments) });
    }
    assert_eq!(pipeline.0[0].usage(), CacheUsage { tokens: 64, sequences: 1 });
    pipeline.0[0].clear();
    assert_eq!(pipeline.0[0].usage(), CacheUsage::default());
}

#[test]
fn half_precision_wires_carry_what_they_can() {
    let (_dir, header) = written(&TinyModel::f32());
    let tokens = Random::new(10).tokens(30, 200);
    let mut pipeline = Pipeline::cut(&header, 4, &[2]);
    let exact = pipeline.scores(1, &tokens, 64);
    for (wire, bound) in [(WireDtype::F16, 0.02), (WireDtype::Bf16, 0.2)] {
        pipeline.0[0].set_wire(wire);
        let Ok(StageOutput::Pass(frame)) = pipeline.0[0].run(step(vec![segment(2, 0, &tokens)])) else {
            panic!("the first stage passes on");
        };
        assert_eq!(frame.hidden.map(|hidden| hidden.dtype), Some(wire));
        let scores = pipeline.scores(1, &tokens, 64);
        let differences = scores.iter().zip(&exact).map(|(a, b)| (a.logprob - b.logprob).abs());
        let largest = differences.fold(0f32, f32::max);
        assert!(largest > 0.0 && largest < bound, "{wire:?}: {largest}");
    }
}

/// A frame that must be refused with a message that holds `says`, while sequence 1 stays as it was.
fn refused(stage: &mut Stage, frame: StepFrame, says: &str) {
    let before = stage.usage();
    let error = stage.run(frame).unwrap_err();
    assert!(error.to_string().contains(says), "{error} does not say {says}");
    assert_eq!(stage.usage(), before, "after: {error}");
}

#[test]
fn wrong_frames_are_refused_and_break_nothing() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let mut pipeline = Pipeline::cut(&header, 4, &[]);
    let tokens = Random::new(12).tokens(60, 200);
    let whole = pipeline.scores(1, &tokens, 64);
    pipeline.outputs(vec![segment(1, 0, &tokens[..30])]);
    let stage = &mut pipeline.0[0];
    let go_on = |tokens: &[u32]| Segment { begin: None, ..segment(5, 0, tokens) };
    refused(stage, step(vec![go_on(&[1])]), "sequence 5 is not known");
    refused(stage, step(vec![segment(1, 31, &[1])]), "sequence 1 holds 30 tokens and was to go on at 31");
    refused(stage, step(vec![segment(1, 30, &[200])]), "token 200");
    refused(stage, step(vec![scored(1, 30, &[1], Some(u32::MAX))]), "token 4294967295");
    refused(stage, step(vec![segment(1, 30, &[])]), "no tokens");
    refused(stage, step(vec![segment(1, 30, &[1; 65])]), "65 rows");
    refused(stage, step(vec![segment(1, 30, &[1]), segment(1, 31, &[1])]), "two segments");
    let begins = (2..6).map(|sequence| segment(sequence, 0, &[1])).collect();
    refused(stage, step(begins), "5 sequences");
    let hidden = Hidden::from_f32(&[0.0; 64], 1, 64, WireDtype::F32).unwrap();
    refused(stage, StepFrame { hidden: Some(hidden), ..step(vec![segment(1, 30, &[1])]) }, "wrong order");
    let sampling = Sampling { top_p: f32::NAN, ..Sampling::default() };
    let begin = Some(SequenceStart { sampling, prompt_tokens: 1 });
    refused(stage, step(vec![Segment { begin, ..segment(2, 0, &[1]) }]), "top_p");
    let long = segment(2, 0, &[1; 64]);
    pipeline.outputs(vec![long.clone()]);
    let long = Segment { begin: None, pages: Vec::new(), ..long };
    pipeline.outputs(vec![Segment { start: 64, ..long.clone() }]);
    let stage = &mut pipeline.0[0];
    refused(stage, step(vec![Segment { start: 128, ..long }]), "192 tokens, and the context is 128");
    // Sequence 1 goes on as if nothing had been.
    let rest = pipeline.outputs(vec![scored(1, 30, &tokens[30..], None)]).remove(0);
    assert_eq!(rest.scores, whole[30..]);
}

#[test]
fn a_later_stage_checks_its_hidden_states() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let mut stage = load(request(&header, 2..4, 4));
    let with = |values: &[f32], rows, width| StepFrame {
        hidden: Some(Hidden::from_f32(values, rows, width, WireDtype::F32).unwrap()),
        ..step(vec![Segment { sample: true, ..segment(1, 0, &[1, 2]) }])
    };
    refused(&mut stage, step(vec![segment(1, 0, &[1])]), "without hidden states");
    refused(&mut stage, with(&[0.0; 64], 1, 64), "1 x 64, wanted 2 x 64");
    refused(&mut stage, with(&[0.0; 256], 2, 128), "2 x 128, wanted 2 x 64");
    let mut values = vec![0.5; 128];
    values[100] = f32::NAN;
    refused(&mut stage, with(&values, 2, 64), "logit of token 0");
    let mut middle = load(request(&header, 2..3, 4));
    refused(&mut middle, with(&values, 2, 64), "sequence 1 at position 1 is not finite");
    // The residual stream carries it to the next link, which holds it, or says that it does not.
    values[100] = 70_000.0;
    middle.set_wire(WireDtype::F16);
    refused(&mut middle, with(&values, 2, 64), "serve this model with --wire bf16");
    for wire in [WireDtype::Bf16, WireDtype::F32] {
        middle.set_wire(wire);
        assert!(matches!(middle.run(with(&values, 2, 64)), Ok(StageOutput::Pass(_))), "{wire:?}");
    }
    values[100] = 0.5;
    assert!(matches!(stage.run(with(&values, 2, 64)), Ok(StageOutput::Finish(_))));
    assert!(matches!(stage.run(with(&values, 2, 64)).map(|_| ()), Ok(())));
    let short = Hidden { data: vec![0; 4].into(), ..with(&values, 2, 64).hidden.unwrap() };
    let frame = StepFrame { hidden: Some(short), ..with(&values, 2, 64) };
    assert!(matches!(stage.run(frame), Err(StepError::HiddenBytes(_))));
}

#[test]
fn pages_are_those_of_one_sequence_until_they_are_computed() {
    let (_dir, header) = written(&TinyModel::q4_1());
    let mut request = request(&header, 0..4, 4);
    request.room.cache_tokens = 96;
    let mut stage = load(request);
    let with = |sequence, start, tokens: &[u32], pages: &[u32]| {
        let begin = segment(sequence, 0, tokens).begin;
        step(vec![Segment { begin, pages: pages.to_vec(), ..segment(sequence, start, tokens) }])
    };
    stage.run(with(1, 0, &[1; 40], &[2, 0])).unwrap();
    refused(&mut stage, with(2, 0, &[1; 33], &[1]), "33 tokens in 1 cache pages");
    refused(&mut stage, with(2, 0, &[1; 33], &[1, 3]), "cache page 3, and there are 3");
    refused(&mut stage, with(2, 0, &[1; 33], &[1, 0]), "cache page 0 was to be written for sequence 2");
    refused(&mut stage, with(2, 32, &[1], &[0, 1]), "cache page 0, which holds 8 tokens so far");
    refused(&mut stage, with(2, 31, &[1], &[2, 1]), "was to begin at 31");
    stage.run(with(2, 32, &[1], &[2, 1])).unwrap();
    assert_eq!(stage.usage(), CacheUsage { tokens: 41, sequences: 2 });
    // Neither may write what both have.
    refused(&mut stage, step(vec![segment(1, 31, &[1])]), "cache page 2 was to be written for sequence 1");
    stage.run(StepFrame { release: vec![SequenceId(1)], ..step(Vec::new()) }).unwrap();
    stage.run(step(vec![segment(2, 31, &[1])])).unwrap();
}

#[test]
fn what_begins_with_pages_of_others_gives_the_bits_that_it_gives_alone() {
    for model in models() {
        let (_dir, header) = written(&model);
        let mut random = Random::new(13);
        let first = random.tokens(90, model.vocab);
        let sampling = Sampling {
            temperature: 1.1,
            seed: 3,
            repetition_penalty: 1.3,
            frequency_penalty: 0.5,
            logprobs: Some(5),
            ..Sampling::default()
        };
        let begin = |tokens: &[u32]| {
            Some(SequenceStart { sampling: sampling.clone(), prompt_tokens: tokens.len() as u32 })
        };
        for shared in [32, 64] {
            let mut tokens = first[..shared].to_vec();
            tokens.extend(random.tokens(20, model.vocab));
            // Scores of what is not shared, and a draw whose penalties look at all that was said.
            let last = |start: usize, begin, pages| Segment {
                begin,
                pages,
                sample: true,
                ..scored(2, start, &tokens[start..], None)
            };
            let mut alone = Pipeline::cut(&header, model.layers, &[1]);
            alone.outputs(vec![Segment { begin: begin(&tokens), ..segment(2, 0, &tokens[..shared]) }]);
            let expected = alone.outputs(vec![last(shared, None, Vec::new())]);

            let mut pipeline = Pipeline::cut(&header, model.layers, &[1]);
            pipeline.outputs(vec![segment(1, 0, &first[..50])]);
            pipeline.outputs(vec![segment(1, 50, &first[50..])]);
            let pages = [&pages_of(1)[..shared / 32], &pages_of(2)[..2]].concat();
            let sharing = pipeline.outputs(vec![last(shared, begin(&tokens), pages.clone())]);
            assert_eq!(sharing, expected, "{model:?} sharing {shared} tokens");
            // Pages outlive the sequences that had them.
            let release = vec![SequenceId(1), SequenceId(2)];
            let again = StepFrame { release, ..step(vec![last(shared, begin(&tokens), pages)]) };
            assert_eq!(pipeline.run(again).outputs, expected, "{model:?} again after {shared} tokens");
        }
    }
}

#[test]
fn loading_tells_what_is_wrong_before_it_reads() {
    let (dir, header) = written(&TinyModel::q4_1());
    let whole = || request(&header, 0..4, 4);
    let fails = |request: StageRequest, says: &str| {
        let error = Stage::load(request, &LoadProgress::new()).err().unwrap();
        assert!(error.to_string().contains(says), "{error} does not say {says}");
    };
    let memory = plan_check(&header, &whole().shard, 0, &room(), Converted::No).unwrap();
    assert_eq!(load(whole()).memory(), memory);
    let budget = memory.total() - Bytes(1);
    fails(StageRequest { budget, ..whole() }, "raise --memory");
    let cancelled = LoadProgress::new();
    cancelled.cancel();
    assert!(matches!(Stage::load(whole(), &cancelled), Err(LoadError::Cancelled)));
    fails(StageRequest { device: DeviceKind::Cuda(0), ..whole() }, "feature `cuda`");
    fails(StageRequest { device: DeviceKind::Metal, ..whole() }, "feature `metal`");
    let layers = LayerRange::new(3, 5).unwrap();
    fails(StageRequest { shard: Shard::of(layers, 5), ..whole() }, "layers 3..5");
    let mut odd = whole();
    odd.room.cache_tokens = 33;
    fails(odd, "cache_tokens = 33");
    let progress = LoadProgress::new();
    Stage::load(whole(), &progress).unwrap();
    assert_eq!((progress.loaded(), progress.total()), (memory.weights, memory.weights));
    let path = dir.path().join("tiny.gguf");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(header.file_bytes().0 - 1).unwrap();
    fails(whole(), "has changed");
}

#[test]
fn a_damaged_norm_or_an_unknown_type_is_named() {
    let model = TinyModel { kind: TensorType::Q8_1, ..TinyModel::q4_1() };
    let (_dir, header) = written(&model);
    let error = Stage::load(request(&header, 0..4, 4), &LoadProgress::new()).err().unwrap();
    assert!(error.to_string().contains("tensor `blk.0.attn_q.weight` is Q8_1"), "{error}");

    let (dir, header) = written(&TinyModel::q4_1());
    let path = dir.path().join("tiny.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let norm = header.tensor("blk.3.ffn_norm.weight").unwrap();
    let Place::File { offset, .. } = norm.pieces[0].place else { panic!("{norm:?}") };
    bytes[offset as usize + 8..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Stage::load(request(&header, 0..4, 4), &LoadProgress::new()).err().unwrap();
    assert!(error.to_string().contains("tensor `blk.3.ffn_norm.weight` holds NaN at 2"), "{error}");
}
