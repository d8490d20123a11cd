//! Room in the state directory and in those with models.

use std::path::Path;

use super::{Bytes, Finding, Role, Subject, Surroundings};

const CHECK: &str = "disk";

/// Less than this in the state directory, and nothing can be kept.
const NOTHING: Bytes = Bytes::mib(64);
/// Less than this is little.
const LITTLE: Bytes = Bytes::mib(1024);

pub(super) fn check(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    let state = subject.state.iter().map(|state| room(state, "state", machine));
    let models = subject.models.iter().map(|models| {
        if machine.mode(models).is_some() {
            return room(models, "models", machine);
        }
        let found = format!("there are no models at {}", models.display());
        match subject.role {
            Role::Worker => Finding::warn(CHECK, found, "name the directory that has them: --models DIR"),
            Role::Coordinator => Finding::ok(CHECK, found),
        }
    });
    state.chain(models).collect()
}

fn room(path: &Path, what: &str, machine: &dyn Surroundings) -> Finding {
    let at = path.display();
    // What is not there yet will be made in the nearest folder that is.
    let there = path.ancestors().find(|folder| machine.mode(folder).is_some()).unwrap_or(Path::new("/"));
    let ran = there.to_str().and_then(|there| machine.run("df", &["-Pk", there]));
    let Some(free) = ran.filter(|ran| ran.success).and_then(|ran| free(&ran.output)) else {
        return Finding::ok(CHECK, format!("{at} ({what}): how much is free is not to be found out"));
    };
    let found = format!("{free} free at {at} ({what})");
    let remedy = format!("make room: du -xh --max-depth=1 {} | sort -h", there.display());
    if what == "state" && free < NOTHING {
        Finding::fail(CHECK, found, remedy)
    } else if free < LITTLE {
        Finding::warn(CHECK, found, remedy)
    } else {
        Finding::ok(CHECK, found)
    }
}

/// The fourth column of what `df -Pk` says, in KiB.
fn free(output: &str) -> Option<Bytes> {
    let line = output.lines().nth(1)?;
    // A device's name may hold spaces: the percentage comes right behind.
    let fields: Vec<&str> = line.split_whitespace().collect();
    let percent = fields.iter().position(|field| field.ends_with('%'))?;
    Some(Bytes(fields.get(percent.checked_sub(1)?)?.parse::<u64>().ok()? << 10))
}
