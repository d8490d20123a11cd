//! Reading a model's tensors while they come.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use brigade_shard::model_file::TensorInfo;

use super::kept::{KeepError, KeptModel};
use super::service::Delivery;
use crate::weights::LoadError;

/// Chunks that stay at hand: threads read a tensor in smaller pieces, each some of them.
const AT_HAND: usize = 4;

/// A model of the cache, to be read by one load: whatever is not here yet is waited for, and whatever is here is checked.
pub struct Delivered {
    kept: Arc<KeptModel>,
    delivery: Delivery,
    given_up: Arc<AtomicBool>,
    /// The chunks that were read last, the newest first.
    at_hand: Mutex<VecDeque<(u32, Vec<u8>)>>,
}

impl Delivered {
    /// A reader of `kept`, until `given_up` is true; what turns out to be damaged is asked for again by `delivery`.
    pub fn new(kept: Arc<KeptModel>, delivery: Delivery, given_up: Arc<AtomicBool>) -> Delivered {
        Delivered { kept, delivery, given_up, at_hand: Mutex::default() }
    }

    /// The model.
    pub fn kept(&self) -> &Arc<KeptModel> {
        &self.kept
    }

    /// Fills `out` with the bytes of a part's file from `offset` on.
    pub(crate) fn read(&self, part: usize, offset: u64, out: &mut [u8]) -> Result<(), LoadError> {
        let mut at_hand = self.at_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let number = self.kept.chunks().at(part, at);
            let chunk = number.and_then(|number| Some((number, self.kept.chunks().get(number)?)));
            let Some((number, chunk)) = chunk else {
                let reason = format!("byte {at} of part {part} is of no tensor");
                return Err(LoadError::Undelivered { reason });
            };
            if !at_hand.iter().any(|(known, _)| *known == number) {
                let mut bytes = if at_hand.len() < AT_HAND { None } else { at_hand.pop_back() }
                    .map_or_else(Vec::new, |(_, bytes)| bytes);
                self.take(number, &mut bytes)?;
                at_hand.push_front((number, bytes));
            }
            let Some((_, bytes)) = at_hand.iter().find(|(known, _)| *known == number) else { continue };
            let from = (at - chunk.offset) as usize;
            let len = (bytes.len() - from).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&bytes[from..from + len]);
            (at, rest) = (at + len as u64, later);
        }
        Ok(())
    }

    /// Waits until all chunks of these tensors are here, and checks each: for whoever reads the files without asking.
    pub(crate) fn complete<'t>(
        &self,
        tensors: impl Iterator<Item = &'t TensorInfo>,
    ) -> Result<(), LoadError> {
        let mut buffer = Vec::new();
        for number in tensors.flat_map(|tensor| self.kept.chunks().of_tensor(tensor)).flatten() {
            self.take(number, &mut buffer)?;
        }
        Ok(())
    }

    /// Reads a chunk once it is here. One that is damaged is asked for again, once.
    fn take(&self, number: u32, out: &mut Vec<u8>) -> Result<(), LoadError> {
        let undelivered = |reason: String| match reason.as_str() {
            "" => LoadError::Cancelled,
            _ => LoadError::Undelivered { reason },
        };
        let mut again = None;
        loop {
            self.kept.wait(number, &|| self.given_up.load(Ordering::Relaxed)).map_err(undelivered)?;
            match self.kept.read(number, out) {
                Ok(()) => return Ok(()),
                Err(error @ (KeepError::Damaged(_) | KeepError::Unknown(_))) if again.is_none() => {
                    tracing::warn!(
                        "{error}: it is fetched again, as what is in the cache was changed or its disk is failing"
                    );
                    self.kept.forget(number);
                    again = Some(self.delivery.fetch(&self.kept, vec![number], false).map_err(undelivered)?);
                }
                Err(error) => return Err(LoadError::Undelivered { reason: error.to_string() }),
            }
        }
    }
}

impl std::fmt::Debug for Delivered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivered({:?})", self.kept)
    }
}
