//! The same event again and again is counted, and told once more at the end.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::Event;

/// For how long the same event is only counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Most different events that are remembered for that long; the oldest go first.
const MOST_REMEMBERED: usize = 1024;

/// Remembers what was told lately.
#[derive(Debug, Default)]
pub struct Damper {
    /// When each was told, and how often it has come since.
    told: HashMap<Event, (Instant, u32)>,
    /// The same events, the first told first.
    order: VecDeque<Event>,
}

impl Damper {
    /// Takes what has happened, and gives what is to be told of it now.
    pub fn take(&mut self, events: Vec<Event>, now: Instant) -> Vec<Event> {
        let mut tell = self.due(now);
        for event in events {
            if let Some((_, again)) = self.told.get_mut(&event) {
                *again += 1;
                continue;
            }
            if self.order.len() == MOST_REMEMBERED {
                tell.extend(self.forget_first());
            }
            self.told.insert(event.clone(), (now, 0));
            self.order.push_back(event.clone());
            tell.push(event);
        }
        tell
    }

    /// What has come again and is over by now, with how often that was.
    fn due(&mut self, now: Instant) -> Vec<Event> {
        let mut tell = Vec::new();
        while let Some(first) = self.order.front()
            && self.told.get(first).is_none_or(|(at, _)| now.saturating_duration_since(*at) >= WINDOW)
        {
            tell.extend(self.forget_first());
        }
        tell
    }

    fn forget_first(&mut self) -> Option<Event> {
        let event = self.order.pop_front()?;
        let (_, again) = self.told.remove(&event)?;
        (again > 0).then(|| {
            let text = format!("{} ({again} more within {} s)", event.text, WINDOW.as_secs());
            Event { text, ..event }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Kind;
    use crate::status::Severity;

    fn event(text: &str) -> Event {
        Event::new(Severity::Info, Kind::Worker, text)
    }

    #[test]
    fn what_comes_again_is_counted_and_told_once_more_at_the_end() {
        let mut damper = Damper::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(damper.take(vec![event("is lost")], at(0)), [event("is lost")]);
        assert_eq!(damper.take(vec![event("is lost"), event("attached")], at(1)), [event("attached")]);
        assert_eq!(damper.take(vec![event("is lost")], at(9)), []);
        assert_eq!(damper.take(Vec::new(), at(10)), [event("is lost (2 more within 10 s)")]);
        assert_eq!(damper.take(Vec::new(), at(11)), []);
        // Then it is news.
        assert_eq!(damper.take(vec![event("is lost")], at(12)), [event("is lost")]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut damper = Damper::default();
        let now = Instant::now();
        for number in 0..3 * MOST_REMEMBERED {
            let event = event(&number.to_string());
            assert_eq!(damper.take(vec![event.clone()], now), [event]);
        }
        assert_eq!((damper.order.len(), damper.told.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
    }
}
