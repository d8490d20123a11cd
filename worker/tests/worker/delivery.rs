//! Weights that come from elsewhere, with real sockets and files: cut off, damaged on the way and at rest, from several
//! sources, into a cache that has an end.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brigade_proto::delivery::{ChunkHash, ChunkReader, Document, Edition, Holder, PAGE_CHUNKS, Shelf};
use brigade_proto::identity::TransportIdentity;
use brigade_proto::ids::{Peer, WorkerId};
use brigade_proto::link::Transport;
use brigade_shard::model_file::Fingerprint;
use brigade_worker::delivery::Delivered;
use brigade_worker::stage::{LoadProgress, Stage, StageOutput};
use bytes::Bytes;

use super::desk::{ANY, AtDesk, Desk, EDITION, PATIENCE, World};
use super::tiny_model::{TinyModel, load, request, scored, step};

#[test]
fn all_of_a_model_comes_once_and_is_here_after_a_restart() {
    let world = World::new();
    let all = world.desk.all();
    assert!(all.len() > 100, "{} chunks are too few for the tests here", all.len());
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    worker.fetch(&kept, all.clone()).unwrap();
    world.assert_same(&kept, &all);
    assert_eq!(world.desk.given() as usize, all.len());
    drop(kept);
    world.stop(worker);
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    assert!(kept.missing(all.iter().copied()).is_empty());
    worker.fetch(&kept, all.clone()).unwrap();
    world.assert_same(&kept, &all);
    assert_eq!(world.desk.given() as usize, all.len());
    world.stop(worker);
}

#[test]
fn only_what_is_asked_for_comes() {
    let world = World::new();
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    let some = vec![40, 41, 42, 3, 90, 7];
    worker.fetch(&kept, some.clone()).unwrap();
    world.assert_same(&kept, &some);
    assert_eq!(kept.holdings(), [3..4, 7..8, 40..43, 90..91]);
    assert_eq!(world.desk.given(), 6);
    world.stop(worker);
}

#[test]
fn a_fetch_that_is_cut_at_every_tenth_goes_on_where_it_was() {
    for tenth in 1..10 {
        let world = World::new();
        let all = world.desk.all();
        let cut = all.len() as u32 * tenth / 10;
        world.desk.faults.lock().unwrap().ends_after = Some(cut);
        let worker = world.worker("w1", None);
        let kept = worker.obtain(&world);
        let ticket = worker.begin(&kept, all.clone());
        let deadline = Instant::now() + PATIENCE;
        while kept.missing(all.iter().copied()).len() > all.len() - cut as usize {
            assert!(Instant::now() < deadline, "it never came to {cut} chunks: {kept:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        drop((ticket, kept));
        world.stop(worker);
        world.desk.faults.lock().unwrap().ends_after = None;
        let worker = world.worker("w1", None);
        let kept = worker.obtain(&world);
        worker.fetch(&kept, all.clone()).unwrap();
        world.assert_same(&kept, &all);
        assert_eq!(world.desk.given() as usize, all.len(), "cut after {cut}: some came twice");
        world.stop(worker);
    }
}

#[test]
fn a_source_that_fails_for_a_while_is_asked_again() {
    let world = World::new();
    let all = world.desk.all();
    world.desk.faults.lock().unwrap().ends_after = Some(30);
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    let mended = {
        let desk = world.desk.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            desk.faults.lock().unwrap().ends_after = None;
        })
    };
    worker.fetch(&kept, all.clone()).unwrap();
    mended.join().unwrap();
    world.assert_same(&kept, &all);
    world.stop(worker);
}

#[test]
fn another_source_takes_over_when_one_is_killed_in_the_middle() {
    let world = World::new();
    let all = world.desk.all();
    // A worker that has all of it, and takes as long for each chunk as the coordinator's machine does.
    let second = Desk::new(&world.identity, &world.header, &world.folder.path().join("model.gguf"));
    let slowly = Duration::from_millis(5);
    for desk in [&world.desk, &second] {
        desk.faults.lock().unwrap().delay = slowly;
    }
    let other = {
        let _within = world.runtime.enter();
        let identity = TransportIdentity::from(&world.enrolled("other"));
        Transport::bind_shelf(ANY.parse().unwrap(), identity, Arc::new(AtDesk(second.clone()))).unwrap()
    };
    let peer = Peer::Worker(WorkerId::try_from("other".to_owned()).unwrap());
    *world.desk.holders.lock().unwrap() =
        vec![Holder { peer: peer.clone(), addresses: vec![other.local_addr()] }];
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    let ticket = worker.begin(&kept, all.clone());
    let deadline = Instant::now() + PATIENCE;
    while world.desk.given() < 5 || second.given() < 5 {
        assert!(Instant::now() < deadline, "one of two sources gives nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    world.runtime.block_on(world.home.close());
    assert!(kept.missing(all.iter().copied()).len() > all.len() / 4, "it is killed in the middle");
    all.iter().for_each(|number| kept.wait(*number, &|| Instant::now() > deadline).unwrap());
    world.assert_same(&kept, &all);
    let sources: Vec<Peer> = ticket.progress().sources().into_iter().map(|(peer, _)| peer).collect();
    assert!(sources.contains(&peer) && sources.contains(&Peer::Coordinator), "{sources:?}");
    drop(ticket);
    world.stop(worker);
    world.runtime.block_on(other.close());
}

#[test]
fn a_byte_that_is_flipped_on_the_way_is_fetched_again_and_one_that_always_is_is_named() {
    let world = World::new();
    let all = world.desk.all();
    world.desk.faults.lock().unwrap().flipped = BTreeMap::from([(5, 1), (77, 1)]);
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    worker.fetch(&kept, all.clone()).unwrap();
    world.assert_same(&kept, &all);
    assert_eq!(world.desk.given() as usize, all.len() + 2);
    drop(kept);
    world.stop(worker);
    world.desk.faults.lock().unwrap().flipped = BTreeMap::from([(77, u32::MAX)]);
    let worker = world.worker("w2", None);
    let kept = worker.obtain(&world);
    let refused = worker.fetch(&kept, vec![77]).unwrap_err();
    for word in ["chunk 77", "tensor `", "came twice from the coordinator", "damaged"] {
        assert!(refused.contains(word), "`{word}` is missing in: {refused}");
    }
    assert!(!kept.has(77));
    world.stop(worker);
}

#[test]
fn a_worker_gives_nothing_on_that_has_rotted_in_its_cache() {
    let world = World::new();
    let all = world.desk.all();
    let first = world.worker("w1", None);
    let kept = first.obtain(&world);
    first.fetch(&kept, all.clone()).unwrap();
    let chunk = kept.chunks().get(20).unwrap();
    let part = world.folder.path().join("w1").join(world.desk.model.to_string()).join("part-0");
    let file = fs::OpenOptions::new().write(true).open(part).unwrap();
    file.write_all_at(&[!world.desk.chunk(20)[3]], chunk.offset + 3).unwrap();
    *world.desk.holders.lock().unwrap() = vec![first.holder()];
    let second = world.worker("w2", None);
    let kept_there = second.obtain(&world);
    second.fetch(&kept_there, all.clone()).unwrap();
    world.assert_same(&kept_there, &all);
    world.stop(second);
    world.stop(first);
}

/// A worker that gives other bytes than it has.
struct Liar(AtDesk);

impl Shelf for Liar {
    fn outline(&self, model: &Fingerprint) -> Result<Option<Document>, String> {
        self.0.outline(model)
    }

    fn hashes(&self, _: &Fingerprint, edition: Edition, page: u32) -> Result<Option<Document>, String> {
        let content = vec![7; (self.0.0.chunks.count().min(PAGE_CHUNKS) as usize) * ChunkHash::BYTES];
        let _ = page;
        Ok(Some(Document { edition, content: content.into(), signature: Bytes::from_static(b"trust me") }))
    }

    fn holdings(&self, model: &Fingerprint) -> Result<Vec<Range<u32>>, String> {
        self.0.holdings(model)
    }

    fn holders(&self, _: &Fingerprint) -> Vec<Holder> {
        Vec::new()
    }

    fn reader(&self, _: &Fingerprint) -> Result<Option<Box<dyn ChunkReader>>, String> {
        Ok(Some(Box::new(Lies(self.0.0.clone()))))
    }

    fn is_busy(&self) -> bool {
        false
    }
}

struct Lies(Arc<Desk>);

impl ChunkReader for Lies {
    fn read(&mut self, number: u32) -> Result<Option<Bytes>, String> {
        Ok(Some(vec![1; self.0.chunk(number).len()].into()))
    }
}

#[test]
fn what_a_worker_makes_up_is_not_taken() {
    let world = World::new();
    let all = world.desk.all();
    let liar = {
        let _within = world.runtime.enter();
        let identity = TransportIdentity::from(&world.enrolled("liar"));
        let shelf = Arc::new(Liar(AtDesk(world.desk.clone())));
        Transport::bind_shelf(ANY.parse().unwrap(), identity, shelf).unwrap()
    };
    let peer = Peer::Worker(WorkerId::try_from("liar".to_owned()).unwrap());
    *world.desk.holders.lock().unwrap() =
        vec![Holder { peer: peer.clone(), addresses: vec![liar.local_addr()] }];
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    let ticket = worker.begin(&kept, all.clone());
    let deadline = Instant::now() + PATIENCE;
    all.iter().for_each(|number| kept.wait(*number, &|| Instant::now() > deadline).unwrap());
    world.assert_same(&kept, &all);
    assert!(ticket.progress().sources().iter().all(|(source, _)| *source != peer));
    drop(ticket);
    world.stop(worker);
    world.runtime.block_on(liar.close());
}

#[test]
fn a_stage_is_loaded_while_its_weights_come_and_is_the_same() {
    let model = TinyModel { layers: 4, ..TinyModel::q4_1() };
    let world = World::with(model);
    let scores = |stage: &mut Stage| {
        let segments = vec![scored(0, 0, &[1, 2, 3, 4, 5], Some(6))];
        match stage.run(step(segments)).unwrap() {
            StageOutput::Finish(result) => result.outputs,
            StageOutput::Pass(_) => panic!("a whole model finishes"),
        }
    };
    let mut wanted = load(request(&world.header, 0..4, 4));
    let wanted = scores(&mut wanted);
    for (mapped, streamed_layers) in [(false, 0), (true, 0), (false, 2)] {
        let worker = world.worker(&format!("w{}{streamed_layers}", u8::from(mapped)), None);
        world.desk.faults.lock().unwrap().delay = Duration::from_millis(4);
        let kept = worker.obtain(&world);
        let ticket = worker.begin(&kept, world.desk.all());
        let given_up = Arc::new(AtomicBool::new(false));
        let delivered = Arc::new(Delivered::new(kept.clone(), worker.delivery.clone(), given_up));
        let mut request = request(&kept.header(), 0..4, 4);
        (request.delivered, request.mapped, request.streamed_layers) =
            (Some(delivered), mapped, streamed_layers);
        let mut stage = Stage::load(request, &LoadProgress::new()).unwrap();
        assert_eq!(scores(&mut stage), wanted, "mapped: {mapped}, {streamed_layers} layers streamed");
        drop((stage, ticket, kept));
        world.stop(worker);
    }
}

#[test]
fn a_load_that_is_given_up_does_not_wait_for_what_does_not_come() {
    let world = World::new();
    world.desk.faults.lock().unwrap().ends_after = Some(10);
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    let _ticket = worker.begin(&kept, world.desk.all());
    let given_up = Arc::new(AtomicBool::new(false));
    let delivered = Arc::new(Delivered::new(kept.clone(), worker.delivery.clone(), given_up.clone()));
    let mut request = request(&kept.header(), 0..12, 12);
    request.delivered = Some(delivered);
    let loading = std::thread::spawn(move || Stage::load(request, &LoadProgress::new()).err());
    std::thread::sleep(Duration::from_millis(100));
    given_up.store(true, Ordering::Relaxed);
    let error = loading.join().unwrap().unwrap();
    assert_eq!(error.to_string(), "loading was cancelled");
}

#[test]
fn the_cache_makes_room_by_what_was_used_the_longest_ago() {
    let small = TinyModel { layers: 2, ..TinyModel::q4_1() };
    let (one, other) = (World::with(small), World::new());
    let bytes = |world: &World| world.desk.chunks.bytes(world.desk.all()).0;
    let limit = bytes(&one).max(bytes(&other)) + 1000;
    let worker = one.worker("w1", Some(limit));
    let kept = worker.obtain(&one);
    let cache = worker.delivery.cache();
    cache.make_room(&kept, &one.desk.all(), brigade_shard::units::Bytes(bytes(&one))).unwrap();
    worker.fetch(&kept, one.desk.all()).unwrap();
    // Another cluster's model would not be signed by the right one: the same cluster has it.
    let second = Desk::new(&one.identity, &other.header, &other.folder.path().join("model.gguf"));
    let model = *other.header.fingerprint();
    let kept_other = cache.add(&model, &second.outline).unwrap();
    let all: Vec<u32> = second.all();
    let needed = brigade_shard::units::Bytes(bytes(&other));
    let refused = cache.make_room(&kept_other, &all, needed).unwrap_err();
    assert!(refused.contains("are missing") && refused.contains("may hold"), "{refused}");
    assert!(cache.list().iter().any(|listed| listed.bytes.0 == bytes(&one) && listed.in_use));
    drop(kept);
    cache.make_room(&kept_other, &all, needed).unwrap();
    assert!(cache.list().iter().all(|listed| listed.model == model), "{:?}", cache.list());
    one.stop(worker);
}

#[test]
fn chunks_of_another_shard_make_room_for_those_of_this_one() {
    let world = World::new();
    let all = world.desk.all();
    let (first, second) = all.split_at(all.len() / 2);
    let bytes = |numbers: &[u32]| world.desk.chunks.bytes(numbers.iter().copied());
    let worker = world.worker("w1", Some(bytes(first).0.max(bytes(second).0) + 1000));
    let kept = worker.obtain(&world);
    let cache = worker.delivery.cache();
    cache.make_room(&kept, first, bytes(first)).unwrap();
    worker.fetch(&kept, first.to_vec()).unwrap();
    // What fetched the others may not have ended yet, and counts as somebody who uses them.
    let deadline = Instant::now() + PATIENCE;
    while let Err(refused) = cache.make_room(&kept, second, bytes(second)) {
        assert!(Instant::now() < deadline, "{refused}");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(kept.holdings().is_empty());
    worker.fetch(&kept, second.to_vec()).unwrap();
    world.assert_same(&kept, second);
    world.stop(worker);
}

#[test]
fn nothing_leads_out_of_the_cache() {
    let world = World::new();
    let outside = world.folder.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    let precious = outside.join("part-0");
    fs::write(&precious, b"precious").unwrap();
    let model = world.desk.model.to_string();
    // A link in the place of a model's folder.
    let place = world.folder.path().join("w1");
    fs::create_dir_all(&place).unwrap();
    std::os::unix::fs::symlink(&outside, place.join(&model)).unwrap();
    let worker = world.worker("w1", None);
    let refused = worker.delivery.obtain(world.header.fingerprint(), EDITION, &|| false).unwrap_err();
    assert!(refused.contains("not a directory of the cache"), "{refused}");
    assert_eq!(worker.delivery.cache().remove(world.header.fingerprint()), Ok(None));
    world.stop(worker);
    // A link in the place of a file.
    let place = world.folder.path().join("w2").join(&model);
    fs::create_dir_all(&place).unwrap();
    std::os::unix::fs::symlink(&precious, place.join("part-0")).unwrap();
    let worker = world.worker("w2", None);
    let refused = worker.delivery.obtain(world.header.fingerprint(), EDITION, &|| false).unwrap_err();
    assert!(refused.contains("part-0"), "{refused}");
    world.stop(worker);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
}

#[test]
fn a_document_that_is_not_the_coordinators_is_not_taken() {
    let (world, stranger) = (World::new(), World::new());
    let worker = world.worker("w1", None);
    let model = *world.header.fingerprint();
    let error = worker.delivery.cache().add(&model, &stranger.desk.outline).unwrap_err();
    assert!(error.to_string().contains("not signed by this cluster's coordinator"), "{error}");
    world.stop(worker);
}

#[test]
fn who_does_not_have_a_model_says_so() {
    let world = World::new();
    let worker = world.worker("w1", None);
    let other = Fingerprint::new([1; 32]);
    let refused = worker.delivery.obtain(&other, EDITION, &|| false).unwrap_err();
    assert!(refused.contains("coordinator"), "{refused}");
    world.runtime.block_on(world.home.close());
    let refused = worker.delivery.obtain(world.header.fingerprint(), EDITION, &|| false).unwrap_err();
    assert!(refused.contains("cannot reach"), "{refused}");
    world.stop(worker);
}
