//! A disk that becomes full while weights are fetched to it. The test is ignored where no file system can be mounted.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[expect(dead_code, reason = "nothing fails here but the disk")]
#[path = "worker/desk.rs"]
mod desk;
#[path = "../../tests/src/small_disk.rs"]
mod small_disk;
#[expect(dead_code, reason = "no model is run here")]
#[path = "worker/tiny_model.rs"]
mod tiny_model;

use std::fs;
use std::io::Write as _;

use libtest_mimic::{Arguments, Failed, Trial};

use desk::World;
use small_disk::SmallDisk;

fn main() {
    let obstacle = SmallDisk::obstacle().unwrap();
    if let Some(obstacle) = &obstacle {
        println!("no file system can be mounted here, so this test is skipped: {obstacle}");
    }
    let name = "a_disk_that_becomes_full_in_the_middle_is_told_and_nothing_is_made_up";
    let trials = vec![Trial::test(name, full_in_the_middle).with_ignored_flag(obstacle.is_some())];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn full_in_the_middle() -> Result<(), Failed> {
    let world = World::new();
    let all = world.desk.all();
    let disk = SmallDisk::mount(&world.folder.path().join("w1"), 1 << 20).unwrap();
    let worker = world.worker("w1", None);
    let kept = worker.obtain(&world);
    // Somebody else writes so much that half of the model finds no room.
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let mut filled = 0;
    while let Ok(written) = file.write(&[1; 4096]) {
        filled += written as u64;
    }
    file.set_len(filled - world.desk.file.len() as u64 / 2).unwrap();
    let refused = worker.fetch(&kept, all.clone()).unwrap_err();
    for words in ["failed to write", "No space left", "free some space", "--cache"] {
        assert!(refused.contains(words), "`{words}` is missing in: {refused}");
    }
    let here: Vec<u32> = kept.holdings().into_iter().flatten().collect();
    assert!(here.len() > all.len() / 4 && here.len() < all.len(), "{} chunks", here.len());
    world.assert_same(&kept, &here);
    drop(file);
    fs::remove_file(&filler).unwrap();
    let before = world.desk.given();
    worker.fetch(&kept, all.clone()).unwrap();
    world.assert_same(&kept, &all);
    assert!(world.desk.given() - before <= (all.len() - here.len()) as u32 + 2, "some came again");
    drop(kept);
    world.stop(worker);
    Ok(())
}
