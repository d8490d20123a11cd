//! Reading an architecture's hyper-parameters, and remembering which were read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::SpecError;
use crate::model_file::{Header, Value};

/// The metadata under an architecture's prefix.
pub(super) struct Hyperparameters<'h> {
    pub(super) header: &'h Header,
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'h> Hyperparameters<'h> {
    pub(super) fn new(header: &'h Header, architecture: &str) -> Hyperparameters<'h> {
        Hyperparameters { header, prefix: format!("{architecture}."), read: RefCell::default() }
    }

    /// The full name of a key, which counts as read from now on.
    fn key(&self, name: &str) -> String {
        let key = format!("{}{name}", self.prefix);
        self.read.borrow_mut().insert(key.clone());
        key
    }

    /// What the file calls a key.
    pub(super) fn full_name(&self, name: &str) -> String {
        self.header.key_name(&format!("{}{name}", self.prefix)).to_owned()
    }

    /// A count within `range`; `None` where the key is absent.
    pub(super) fn count(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<usize>, SpecError> {
        let key = self.key(name);
        self.header.u64(&key)?.map(|n| checked(self.header.key_name(&key), n, &range)).transpose()
    }

    /// A count within `range` that must be there.
    pub(super) fn required(&self, name: &str, range: RangeInclusive<u64>) -> Result<usize, SpecError> {
        self.count(name, range)?.ok_or_else(|| self.missing(name))
    }

    /// One count within `range` per layer, from one number for all or an array with one each; `None` where the key is
    /// absent.
    pub(super) fn per_layer(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
        layers: usize,
    ) -> Result<Option<Vec<usize>>, SpecError> {
        let key = self.key(name);
        if !matches!(self.header.get(&key), Some(Value::Array { .. })) {
            return Ok(self.count(name, range)?.map(|n| vec![n; layers]));
        }
        if let Some(found) = self.header.array_len(&key)?.filter(|found| *found != layers as u64) {
            let wanted = format!("it must have one entry for each of the {layers} layers");
            return Err(SpecError::Value { key, found: format!("an array of {found}"), wanted });
        }
        let counts = self.header.u64s(&key)?.unwrap_or_default();
        counts.into_iter().map(|n| checked(&key, n, &range)).collect::<Result<_, _>>().map(Some)
    }

    /// A finite number; `None` where the key is absent.
    pub(super) fn number(&self, name: &str) -> Result<Option<f32>, SpecError> {
        let key = self.key(name);
        match self.header.f32(&key)? {
            Some(x) if !x.is_finite() => {
                Err(invalid(self.header.key_name(&key), x, "it must be a finite number"))
            }
            x => Ok(x),
        }
    }

    /// A text; `None` where the key is absent.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'h str>, SpecError> {
        Ok(self.header.str(&self.key(name))?)
    }

    /// A bool; `None` where the key is absent.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, SpecError> {
        Ok(self.header.bool(&self.key(name))?)
    }

    pub(super) fn missing(&self, name: &str) -> SpecError {
        SpecError::Missing { key: self.full_name(name) }
    }

    pub(super) fn invalid(&self, name: &str, found: impl Display, wanted: &str) -> SpecError {
        invalid(&self.full_name(name), found, wanted)
    }

    pub(super) fn unsupported(&self, name: &str, found: impl Display, hint: &str) -> SpecError {
        let key = self.full_name(name);
        SpecError::Unsupported { key, found: found.to_string(), hint: hint.to_owned() }
    }

    /// Ends the reading: every key under the prefix must have been read, or be one of `harmless`, which say nothing
    /// about the computation.
    pub(super) fn finish(self, harmless: &[&str]) -> Result<(), SpecError> {
        let read = self.read.borrow();
        let unread = |key: &&str| {
            let Some(name) = key.strip_prefix(self.prefix.as_str()) else {
                return false;
            };
            !read.contains(*key) && !harmless.contains(&name)
        };
        let keys: Vec<String> =
            self.header.metadata().map(|(key, _)| key).filter(unread).map(str::to_owned).collect();
        if keys.is_empty() { Ok(()) } else { Err(SpecError::Unread { keys }) }
    }
}

fn invalid(key: &str, found: impl Display, wanted: &str) -> SpecError {
    SpecError::Value { key: key.to_owned(), found: found.to_string(), wanted: wanted.to_owned() }
}

fn checked(key: &str, n: u64, range: &RangeInclusive<u64>) -> Result<usize, SpecError> {
    if range.contains(&n) {
        // Every range ends far below the largest usize.
        return Ok(n as usize);
    }
    Err(invalid(key, n, &format!("it must be between {} and {}", range.start(), range.end())))
}
