//! What fails: processes, machines, devices, disks and the network between them.

use super::links::IDLE_US;
use super::worker::Process;
use super::world::{Happening, Life, LinkId, Machine, Place, World, worker_id};

impl World {
    /// How many workers are well.
    pub(super) fn well(&self) -> usize {
        let well = |machine: &&Machine| {
            machine.process.is_some() && machine.paused_us.is_none() && !machine.hung && !machine.disk_fails
        };
        self.machines[1..].iter().filter(well).count()
    }

    /// A process ends; its machine says so, or not.
    pub(super) fn crash(&mut self, place: Place, power_cut: bool) {
        let machine = &mut self.machines[place];
        if machine.process.take().is_none() {
            return;
        }
        let dead = Life { place, life: machine.life };
        machine.life += 1;
        machine.hung = false;
        machine.backlog.clear();
        machine.paused_us = power_cut.then_some(self.now_us);
        let session = machine.session.take();
        machine.welcomed = false;
        if let (Some(session), false) = (session, power_cut) {
            let us = self.random.between(200, 3000);
            self.after(us, Happening::Detached(session));
        }
        let affected: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.ends.contains(&dead)).map(|(id, _)| *id).collect();
        affected.into_iter().for_each(|link| self.after(IDLE_US, Happening::LinkIdle(link)));
    }

    /// Starts what is not running, after a while.
    pub(super) fn restart(&mut self, place: Place, us: u64) {
        if self.machines[place].process.is_none() {
            self.machines[place].paused_us = None;
        }
        self.after(us, Happening::Start(place));
    }

    /// Nothing of a machine runs, until it is resumed.
    pub(super) fn pause(&mut self, place: Place) {
        let now_us = self.now_us;
        self.machines[place].paused_us.get_or_insert(now_us);
        self.watch_links(|ends| ends.iter().any(|end| end.place == place));
    }

    pub(super) fn resume(&mut self, place: Place) {
        if self.machines[place].process.is_none() && place > 0 {
            return;
        }
        self.machines[place].paused_us = None;
        let backlog = std::mem::take(&mut self.machines[place].backlog);
        backlog.into_iter().for_each(|happening| self.after(0, happening));
    }

    /// A device does not get done any more, or does again.
    pub(super) fn hang(&mut self, place: Place, hung: bool) {
        self.machines[place].hung = hung;
        let life = Life { place, life: self.machines[place].life };
        if !hung {
            self.after(0, Happening::Computed(life));
        }
    }

    /// Nothing gets through between two machines, or it does again.
    pub(super) fn cut(&mut self, one: Place, other: Place, cut: bool) {
        let pair = (one.min(other), one.max(other));
        if cut {
            self.cut.entry(pair).or_insert(self.now_us);
            self.watch_links(|ends| {
                (ends[0].place.min(ends[1].place), ends[0].place.max(ends[1].place)) == pair
            });
            return;
        }
        self.cut.remove(&pair);
        let held = std::mem::take(&mut self.held);
        held.into_iter().for_each(|happening| self.after(0, happening));
    }

    /// A worker is to be emptied, or used again; whether that was taken.
    pub(super) fn drain(&mut self, place: Place, drain: bool) -> bool {
        let now = self.now();
        let taken = self.coordinator.drain(&worker_id(place), drain, now);
        self.settle();
        taken
    }

    /// Whether a machine's worker has a stage of the plan.
    pub(super) fn is_used(&self, place: Place) -> bool {
        self.coordinator.is_used(&worker_id(place))
    }

    /// Whether some worker keeps weights for a plan to come.
    pub(super) fn keeps_ahead(&self) -> bool {
        self.machines.iter().filter_map(|machine| machine.process.as_ref()).any(Process::keeps_ahead)
    }

    /// A disk takes so many times as long, or fails.
    pub(super) fn disk(&mut self, place: Place, slow: u64, fails: bool) {
        (self.machines[place].slow, self.machines[place].disk_fails) = (slow, fails);
    }
}
