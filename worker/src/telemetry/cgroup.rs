//! The memory limits of the control groups that this process is in. The formats are cgroups(7)'s.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use brigade_shard::units::Bytes;

use super::linux_texts::value;

/// Most groups within each other that are looked at.
const MAX_DEPTH: usize = 16;

/// The groups that may limit this process's memory, from the innermost out.
#[derive(Debug, Default)]
pub(super) struct MemoryGroups(Vec<Group>);

#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    names: Names,
}

/// What the files of a version are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// Page cache in `memory.stat`, of the group and those within it.
    cache: [&'static str; 2],
}

const FIRST: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file ", "total_active_file "],
};
const SECOND: Names =
    Names { limit: "memory.max", usage: "memory.current", cache: ["inactive_file ", "active_file "] };

/// The tightest limit, and what is left within all limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) limit: Bytes,
    pub(super) available: Bytes,
}

impl MemoryGroups {
    /// The groups named in `/proc/self/cgroup`, as found below `mounted`.
    pub(super) fn find(membership: &str, mounted: &Path) -> MemoryGroups {
        let mut groups = Vec::new();
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (base, names) = match controllers {
                "" => (mounted.to_owned(), SECOND),
                _ if controllers.split(',').any(|name| name == "memory") => (mounted.join("memory"), FIRST),
                _ => continue,
            };
            groups.extend(chain(&base, path, names));
        }
        MemoryGroups(groups)
    }

    /// What limits this process; `None` where nothing is below `total`.
    pub(super) fn room(&self, total: Bytes) -> Option<Room> {
        let rooms = self.0.iter().filter_map(|group| group.room(total));
        rooms.reduce(|a, b| Room { limit: a.limit.min(b.limit), available: a.available.min(b.available) })
    }
}

/// The group at `path` and those around it. In a container the path may be the host's, and what is mounted the
/// container's own group.
fn chain(base: &Path, path: &str, names: Names) -> Vec<Group> {
    let inner = Path::new(path.trim_start_matches('/'));
    // What leads out of the mounted folder is not below it.
    let inner = if inner.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        inner
    } else {
        Path::new("")
    };
    let folders = inner.ancestors().take(MAX_DEPTH).map(|ancestor| base.join(ancestor));
    let limited = folders.filter(|folder| folder.join(names.limit).is_file());
    limited.map(|folder| Group { folder, names }).collect()
}

impl Group {
    fn room(&self, total: Bytes) -> Option<Room> {
        let number = |name| read_to_string(self.folder.join(name)).ok()?.trim().parse::<u64>().ok();
        // The second version says `max` where there is no limit, the first a number larger than any machine.
        let limit = Bytes(number(self.names.limit)?);
        if limit >= total {
            return None;
        }
        let stat = read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let cached = |name: &&str| value(&stat, name).and_then(|bytes| bytes.parse::<u64>().ok());
        let cached: u64 = self.names.cache.iter().filter_map(cached).sum();
        let taken = Bytes(number(self.names.usage)?.saturating_sub(cached));
        Some(Room { limit, available: limit.saturating_sub(taken) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tree;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_tightest_of_all_groups_around_counts() {
        let root = tree(&[
            ("memory.stat", "inactive_file 0\n"),
            ("a.slice/memory.max", "104857600\n"),
            ("a.slice/memory.current", "94371840\n"),
            ("a.slice/memory.stat", "anon 1\ninactive_file 10485760\nactive_file 10485760\n"),
            ("a.slice/b.scope/memory.max", "max\n"),
            ("a.slice/b.scope/memory.current", "1048576\n"),
        ]);
        let groups = MemoryGroups::find("0::/a.slice/b.scope\n", root.path());
        let room = groups.room(Bytes(1 << 40));
        assert_eq!(room, Some(Room { limit: Bytes(100 * MIB), available: Bytes(30 * MIB) }));
        assert_eq!(groups.room(Bytes(64 * MIB)), None, "the machine itself is smaller");
    }

    #[test]
    fn the_first_version_is_read_where_it_is_mounted() {
        let root = tree(&[
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "5\n"),
            ("memory/box/memory.limit_in_bytes", "104857600\n"),
            ("memory/box/memory.usage_in_bytes", "52428800\n"),
            ("memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\ntotal_active_file 0\n"),
        ]);
        let groups = MemoryGroups::find("8:pids:/\n4:memory:/box\n0::/\n", root.path());
        let room = groups.room(Bytes(1 << 40));
        assert_eq!(room, Some(Room { limit: Bytes(100 * MIB), available: Bytes(51 * MIB) }));
    }

    #[test]
    fn a_path_of_the_host_leads_to_the_containers_own_group() {
        let root = tree(&[("memory.max", "1048576\n"), ("memory.current", "0\n")]);
        for path in ["/system.slice/docker-1.scope", "/../..", "/"] {
            let groups = MemoryGroups::find(&format!("0::{path}\n"), root.path());
            let room = groups.room(Bytes(1 << 40));
            assert_eq!(room, Some(Room { limit: Bytes(MIB), available: Bytes(MIB) }), "{path}");
        }
        assert_eq!(MemoryGroups::find("nonsense\n", root.path()).room(Bytes(1 << 40)), None);
    }
}
