//! Tests that look at pages, each with the machine to itself. Where no browser can be driven they are reported as ignored,
//! never as passed.

use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::browser;

/// Within this a page is there, or is again: it tries at least every 8 s.
pub const THERE: Duration = Duration::from_secs(20);
/// The smallest phone.
pub const PHONE: (u32, u32) = (360, 640);
/// What is wrong for those who cannot see, or not well: fields and buttons without a name, pictures without words, and
/// texts that stand out too little (WCAG 2.2, 1.4.3 and 4.1.2).
pub const BARRIERS: &str = include_str!("../browser/barriers.js");

/// The tests of one program.
#[derive(Debug)]
pub struct Trials {
    lacks_browser: bool,
    trials: Vec<Trial>,
}

impl Trials {
    /// None yet. Where no browser can be driven, that is said of `what`.
    pub fn of(what: &str) -> Trials {
        let missing = browser::missing();
        if let Some(missing) = &missing {
            println!("{what} cannot be looked at here, so the tests of that are skipped: {missing}");
        }
        Trials { lacks_browser: missing.is_some(), trials: Vec::new() }
    }

    /// Adds one that needs no browser.
    pub fn plain<T>(mut self, name: &str, test: fn() -> T) -> Trials
    where
        T: Future<Output = Result<(), Failed>> + 'static,
    {
        self.trials.push(Trial::test(name, move || run(test())));
        self
    }

    /// Adds one that needs a browser.
    pub fn seen<T>(mut self, name: &str, test: fn() -> T) -> Trials
    where
        T: Future<Output = Result<(), Failed>> + 'static,
    {
        self.trials.push(Trial::test(name, move || run(test())).with_ignored_flag(self.lacks_browser));
        self
    }

    /// Runs them one after another, and ends this program.
    pub fn run(self) -> ! {
        let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
        libtest_mimic::run(&arguments, self.trials).exit()
    }
}

fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test)
}

/// Fails with what is seen `otherwise`.
///
/// # Errors
/// Where it does not hold.
pub fn check(holds: bool, otherwise: impl Into<String>) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(otherwise.into().into()) }
}
