//! The clock: against a coordinator's, and who keeps it right. Certificates are valid from one time to another.

use std::path::Path;

use super::{Finding, Subject, Surroundings, System};

const CHECK: &str = "clock";

/// How far clocks may be apart, in seconds.
const FAR: f64 = 2.0;
/// Programs that keep the clock right, by the names that the system gives them.
const KEEPERS: [&str; 4] = ["chronyd", "ntpd", "systemd-timesyn", "openntpd"];

const SET: &str = "sudo timedatectl set-ntp true";

pub(super) fn check(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    let against = subject.url.iter().map(|url| against(url, machine));
    against.chain(source(machine)).collect()
}

fn against(url: &str, machine: &dyn Surroundings) -> Finding {
    let asked = machine.now();
    let headers = match machine.http_headers(url) {
        Ok(headers) => headers,
        Err(error) => {
            let remedy = "give the coordinator's URL: --url http://HOST:PORT, as `brigade serve` says it";
            return Finding::warn(CHECK, format!("no coordinator answers at {url}: {error}"), remedy);
        }
    };
    let now = (asked + machine.now()) / 2.0;
    let date = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| httpdate::parse_http_date(value.trim()).ok())?
    });
    let Some(date) = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok()) else {
        return Finding::ok(CHECK, format!("{url} does not tell the time"));
    };
    // The header counts whole seconds: its time is half a second later on average.
    let ahead = now - (date.as_secs_f64() + 0.5);
    // What is within the header's precision is not known to be apart.
    let apart = (ahead.abs() - 0.5).max(0.0);
    if apart <= FAR {
        return Finding::ok(CHECK, format!("it agrees with {url}, to within {:.0} s", apart.max(1.0)));
    }
    let way = if ahead > 0.0 { "ahead of" } else { "behind" };
    let set = match machine.system() {
        System::Linux => SET,
        System::MacOs => "sudo sntp -sS time.apple.com",
    };
    Finding::warn(
        CHECK,
        format!("it is {:.0} s {way} that of {url}", ahead.abs()),
        format!("{set}, on both machines"),
    )
}

fn source(machine: &dyn Surroundings) -> Option<Finding> {
    // macOS keeps its clock itself, and tells only administrators from where.
    if machine.system() != System::Linux {
        return None;
    }
    let told = machine.run("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]);
    let told = told.filter(|ran| ran.success).map(|ran| ran.output.trim().to_owned());
    Some(match told.as_deref() {
        Some("yes") => Finding::ok(CHECK, "it is kept by the network"),
        Some("no") => Finding::warn(CHECK, "it is not kept by the network yet", SET),
        _ => {
            let processes = machine.list(Path::new("/proc")).into_iter();
            let names = processes
                .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
                .filter_map(|id| machine.line(&format!("/proc/{id}/comm")));
            let mut keepers = names.filter(|name| KEEPERS.contains(&name.as_str()));
            match keepers.next() {
                Some(keeper) => Finding::ok(CHECK, format!("it is kept by {keeper}")),
                None => Finding::ok(CHECK, "who keeps it is not to be seen, as in a container"),
            }
        }
    })
}
