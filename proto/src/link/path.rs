//! Which of a peer's addresses is taken, and how people are told why.

use std::net::SocketAddr;
use std::time::Duration;

/// Round trips that differ by no more than this are the same: less than a busy end adds to one.
const SAME_ROUND_TRIP: Duration = Duration::from_micros(100);
/// The same for long ones: a tenth, which they vary by of themselves.
const SAME_PART: u32 = 10;

/// The one to take of some paths, each of which is named by its address's place in the list with its round trip: the
/// shortest, or of those about as short the first in the list.
pub(super) fn best(paths: impl Iterator<Item = (usize, Duration)> + Clone) -> Option<usize> {
    let shortest = paths.clone().map(|(_, round_trip)| round_trip).min()?;
    let same = is_same(shortest);
    paths.filter(|(_, round_trip)| same(*round_trip)).map(|(place, _)| place).min()
}

fn is_same(shortest: Duration) -> impl Fn(Duration) -> bool {
    let longest = shortest + SAME_ROUND_TRIP.max(shortest / SAME_PART);
    move |round_trip| round_trip <= longest
}

/// What came of dialling an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The peer, with this round trip.
    After(Duration),
    /// Somebody who is not the peer, or not of its version.
    Stranger,
    /// Nobody in time.
    Late,
    /// The way there does not exist, or has broken.
    Failed,
}

/// Why one address was taken, such as `0.21 ms; 10.0.0.2 took 3.1 ms, 192.168.1.5 did not answer in time`.
pub(super) fn told(taken: (SocketAddr, Duration), others: &[(SocketAddr, Answer)]) -> String {
    let (address, round_trip) = taken;
    if others.is_empty() {
        return format!("{}; no other address is known", milliseconds(round_trip));
    }
    // A worker has the same port at all its addresses.
    let same_port = others.iter().all(|(other, _)| other.port() == address.port());
    let others = others.iter().map(|(other, answer)| {
        let name = if same_port { other.ip().to_string() } else { other.to_string() };
        match answer {
            Answer::After(took) if is_same(*took.min(&round_trip))(*took.max(&round_trip)) => {
                format!("{name} took about as long ({})", milliseconds(*took))
            }
            Answer::After(took) => format!("{name} took {}", milliseconds(*took)),
            Answer::Stranger => format!("{name} is somebody else"),
            Answer::Late => format!("{name} did not answer in time"),
            Answer::Failed => format!("{name} cannot be reached"),
        }
    });
    format!("{}; {}", milliseconds(round_trip), others.collect::<Vec<_>>().join(", "))
}

fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..1.0 => format!("{ms:.2} ms"),
        ..100.0 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(round_trips_us: &[u64]) -> Option<usize> {
        best(round_trips_us.iter().map(|us| Duration::from_micros(*us)).enumerate())
    }

    #[test]
    fn the_shortest_is_taken_and_of_the_same_the_first() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3100, 210, 900]), Some(1));
        assert_eq!(of(&[310, 210, 900]), Some(0), "100 us are no difference");
        assert_eq!(of(&[311, 210, 900]), Some(1));
        assert_eq!(of(&[22_000, 900_000, 20_000]), Some(0), "nor is a tenth");
        assert_eq!(of(&[22_100, 900_000, 20_000]), Some(2));
        // They need not be told of in the list's order.
        let turned = [(4, Duration::from_micros(100)), (1, Duration::from_micros(120))];
        assert_eq!(best(turned.into_iter()), Some(1));
    }

    #[test]
    fn the_choice_is_told_with_what_was_not_chosen() {
        let at = |address: &str| -> SocketAddr { address.parse().unwrap() };
        let us = Duration::from_micros;
        let taken = (at("10.1.0.2:7"), us(210));
        assert_eq!(told(taken, &[]), "0.21 ms; no other address is known");
        let others = [
            (at("10.0.0.2:7"), Answer::After(us(3149))),
            (at("192.168.1.5:7"), Answer::Late),
            (at("172.17.0.1:7"), Answer::Stranger),
            (at("[2001:db8::7]:7"), Answer::After(us(190))),
        ];
        assert_eq!(
            told(taken, &others),
            "0.21 ms; 10.0.0.2 took 3.1 ms, 192.168.1.5 did not answer in time, 172.17.0.1 is somebody else, \
             2001:db8::7 took about as long (0.19 ms)"
        );
        assert_eq!(
            told((at("10.1.0.2:7"), us(150_400)), &[(at("10.1.0.2:8"), Answer::Failed)]),
            "150 ms; 10.1.0.2:8 cannot be reached"
        );
    }
}
