//! Dates as templates ask for them: the common directives of C's `strftime`, in UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `time` as `format` asks for it. Directives that are not known stay as they are; a time before 1970 counts as its
/// first second.
pub(super) fn format(time: SystemTime, format: &str) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let date = Date::of(days);
    let month = MONTHS[date.month as usize - 1];
    let weekday = DAYS[((days + 4) % 7) as usize];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = characters.next();
        // Writing to a string cannot fail.
        let _ = match directive {
            Some('Y') => write!(text, "{}", date.year),
            Some('y') => write!(text, "{:02}", date.year % 100),
            Some('m') => write!(text, "{:02}", date.month),
            Some('B') => write!(text, "{month}"),
            Some('b' | 'h') => write!(text, "{}", &month[..3]),
            Some('d') => write!(text, "{:02}", date.day),
            Some('e') => write!(text, "{:2}", date.day),
            Some('j') => write!(text, "{:03}", date.day_of_year),
            Some('A') => write!(text, "{weekday}"),
            Some('a') => write!(text, "{}", &weekday[..3]),
            Some('H') => write!(text, "{hour:02}"),
            Some('I') => write!(text, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(text, "{minute:02}"),
            Some('S') => write!(text, "{second:02}"),
            Some('F') => write!(text, "{}-{:02}-{:02}", date.year, date.month, date.day),
            Some('T') => write!(text, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => write!(text, "UTC"),
            Some('z') => write!(text, "+0000"),
            Some('%') => write!(text, "%"),
            Some(other) => write!(text, "%{other}"),
            None => write!(text, "%"),
        };
    }
    text
}

/// A day of the Gregorian calendar.
struct Date {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
}

impl Date {
    /// The day so many days after 1970-01-01.
    fn of(days: u64) -> Date {
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        // 400 years always have 146,097 days.
        let (mut year, mut left) = (1970 + days / 146_097 * 400, days % 146_097);
        while left >= 365 + u64::from(is_leap(year)) {
            left -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let day_of_year = left + 1;
        let mut month = 1;
        for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if left < length {
                break;
            }
            left -= length;
            month += 1;
        }
        Date { year, month, day: left + 1, day_of_year }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu 001"),
            (951_782_400, "2000-02-29 00:00:00 Tue 060"),
            (1_721_995_199, "2024-07-26 11:59:59 Fri 208"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue 366"),
            (4_102_444_800, "2100-01-01 00:00:00 Fri 001"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(format(time, "%F %T %a %j"), expected);
        }
    }

    #[test]
    fn directives_are_those_that_templates_use() {
        let time = UNIX_EPOCH + Duration::from_secs(1_721_952_000 + 13 * 3600);
        assert_eq!(format(time, "%d %b %Y, %A %B %y %I %p %e"), "26 Jul 2024, Friday July 24 01 PM 26");
        assert_eq!(format(time, "100%% %Q %"), "100% %Q %");
    }
}
