//! What follows from a comparison: whether to split, for one stream and for many.

use brigade_shard::plan::WORTHWHILE_GAIN;

use super::{ComparisonVerdict, Figure, Quantity, Side, SideKind};

/// What follows from what was measured. A side counts as faster only where the intervals of both do not overlap, and
/// splitting pays from the same gain on that plans ask of it.
pub fn verdict(sides: &[Side]) -> ComparisonVerdict {
    let one_box =
        sides.iter().find(|side| matches!(side.kind, SideKind::OneBox | SideKind::OneBoxWithOffload));
    let cluster = sides.iter().find(|side| side.kind == SideKind::Cluster);
    let (one_box, cluster) = match (one_box, cluster) {
        (Some(one_box), Some(cluster)) => (one_box, cluster),
        (None, Some(_)) => {
            return undecided("No worker holds the model alone: the cluster is the only way to run it.");
        }
        (Some(_), None) => return undecided("There is no cluster to compare the one box with."),
        (None, None) => return undecided("Neither one box nor a cluster was measured."),
    };
    let most = streams(one_box).filter(|n| streams(cluster).any(|other| other == *n)).max();
    let for_one = Compared::of(one_box, cluster, 1);
    let for_many = most.filter(|most| *most > 1).and_then(|most| Compared::of(one_box, cluster, most));
    let sentences: Vec<String> = for_one.iter().chain(&for_many).map(Compared::sentence).collect();
    let text = match sentences.is_empty() {
        true => "Nothing was measured on both sides.".to_owned(),
        false => sentences.join(" "),
    };
    ComparisonVerdict {
        split_for_one_stream: for_one.and_then(|compared| compared.splitting_pays()),
        split_for_many_streams: for_many.and_then(|compared| compared.splitting_pays()),
        text,
    }
}

fn undecided(text: &str) -> ComparisonVerdict {
    ComparisonVerdict { split_for_one_stream: None, split_for_many_streams: None, text: text.to_owned() }
}

/// Numbers of streams that were decoded at the same time.
fn streams(side: &Side) -> impl Iterator<Item = u32> {
    side.figures.iter().filter_map(|figure| match figure.quantity {
        Quantity::Decode { streams } => Some(streams),
        _ => None,
    })
}

/// The same number of streams on both sides.
struct Compared<'a> {
    streams: u32,
    one_box: &'a Figure,
    cluster: &'a Figure,
}

impl<'a> Compared<'a> {
    fn of(one_box: &'a Side, cluster: &'a Side, streams: u32) -> Option<Compared<'a>> {
        let figure = |side: &'a Side| {
            side.figures.iter().find(|figure| figure.quantity == Quantity::Decode { streams })
        };
        Some(Compared { streams, one_box: figure(one_box)?, cluster: figure(cluster)? })
    }

    /// `None` where the intervals overlap, or there are none.
    fn cluster_is_faster(&self) -> Option<bool> {
        let ((one_low, one_high), (low, high)) = (self.one_box.interval?, self.cluster.interval?);
        match () {
            () if low > one_high => Some(true),
            () if high < one_low => Some(false),
            () => None,
        }
    }

    /// `None` where nobody knows which is faster.
    fn splitting_pays(&self) -> Option<bool> {
        let is_faster = self.cluster_is_faster()?;
        Some(is_faster && self.cluster.mean > self.one_box.mean * WORTHWHILE_GAIN)
    }

    fn sentence(&self) -> String {
        let (one, cluster) = (self.one_box.mean, self.cluster.mean);
        let streams = match self.streams {
            1 => "one stream".to_owned(),
            streams => format!("{streams} streams"),
        };
        let speeds = format!("{cluster:.1} tokens/s against {one:.1} on one box");
        match (self.cluster_is_faster(), self.splitting_pays()) {
            (Some(true), Some(true)) => {
                format!("Splitting pays for {streams}: {speeds}, {:.2} times as much.", cluster / one)
            }
            (Some(true), _) => {
                let (more, wanted) = ((cluster / one - 1.0) * 100.0, (WORTHWHILE_GAIN - 1.0) * 100.0);
                format!(
                    "Don't split for {streams}: {speeds}, {more:.0}% more, and {wanted:.0}% are worth it."
                )
            }
            (Some(false), _) => {
                format!("Don't split for {streams}: {speeds}, {:.0}% less.", (1.0 - cluster / one) * 100.0)
            }
            (None, _) if self.one_box.interval.is_none() => {
                format!("For {streams}, {speeds}; one round says nothing about how sure that is.")
            }
            (None, _) => format!("For {streams} there is no difference to be sure of: {speeds}."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(kind: SideKind, decode: &[(u32, [f64; 3])]) -> Side {
        let figures = decode.iter().filter_map(|(streams, samples)| {
            Figure::of(Quantity::Decode { streams: *streams }, samples.to_vec(), None)
        });
        Side {
            kind,
            name: String::new(),
            plan: None,
            figures: figures.collect(),
            shares: Vec::new(),
            resident: Vec::new(),
        }
    }

    #[test]
    fn a_side_is_faster_only_where_intervals_do_not_overlap() {
        let one =
            side(SideKind::OneBox, &[(1, [10.0, 10.1, 9.9]), (8, [20.0, 20.1, 19.9]), (16, [1.0, 1.0, 1.0])]);
        let cluster = side(SideKind::Cluster, &[(1, [8.0, 8.1, 7.9]), (8, [30.0, 30.1, 29.9])]);
        let found = verdict(&[one.clone(), cluster]);
        assert_eq!((found.split_for_one_stream, found.split_for_many_streams), (Some(false), Some(true)));
        assert_eq!(
            found.text,
            "Don't split for one stream: 8.0 tokens/s against 10.0 on one box, 20% less. Splitting pays for 8 streams: \
             30.0 tokens/s against 20.0 on one box, 1.50 times as much."
        );
        let noisy = side(SideKind::Cluster, &[(1, [5.0, 11.0, 12.0])]);
        let found = verdict(&[one, noisy]);
        assert_eq!((found.split_for_one_stream, found.split_for_many_streams), (None, None));
        assert!(found.text.contains("no difference to be sure of"), "{}", found.text);
    }

    #[test]
    fn a_cluster_that_is_hardly_faster_is_not_worth_its_machines() {
        let one = side(SideKind::OneBox, &[(1, [100.0, 100.1, 99.9]), (8, [100.0, 100.1, 99.9])]);
        let cluster = side(SideKind::Cluster, &[(1, [104.0, 104.1, 103.9]), (8, [106.0, 106.1, 105.9])]);
        let found = verdict(&[one, cluster]);
        assert_eq!((found.split_for_one_stream, found.split_for_many_streams), (Some(false), Some(true)));
        assert_eq!(
            found.text,
            "Don't split for one stream: 104.0 tokens/s against 100.0 on one box, 4% more, and 5% are worth it. Splitting \
             pays for 8 streams: 106.0 tokens/s against 100.0 on one box, 1.06 times as much."
        );
    }

    #[test]
    fn without_two_sides_nothing_is_decided() {
        let cluster = side(SideKind::Cluster, &[(1, [8.0, 8.1, 7.9])]);
        let found = verdict(&[cluster, side(SideKind::Other, &[(1, [1.0, 1.0, 1.0])])]);
        assert_eq!((found.split_for_one_stream, found.split_for_many_streams), (None, None));
        assert!(found.text.contains("the only way"), "{}", found.text);
    }

    #[test]
    fn one_round_decides_nothing() {
        let once = |kind, speed| {
            let mut side = side(kind, &[(1, [speed; 3])]);
            side.figures =
                Figure::of(Quantity::Decode { streams: 1 }, vec![speed], None).into_iter().collect();
            side
        };
        let found = verdict(&[once(SideKind::OneBox, 1.0), once(SideKind::Cluster, 9.0)]);
        assert_eq!(found.split_for_one_stream, None);
        assert!(found.text.contains("one round says nothing"), "{}", found.text);
    }
}
