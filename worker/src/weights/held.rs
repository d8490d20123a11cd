//! Weights that are resident already, so that a stage takes them over instead of reading them again; and the device that
//! they are on, which is opened once, since what lies on one opening of it is strange to another.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use brigade_proto::delivery::Edition;
use brigade_shard::model_file::{Fingerprint, TensorInfo};

/// What is known of every matrix that some stage of this device holds. It keeps none of them alive.
#[derive(Clone, Default)]
pub struct HeldWeights {
    known: Arc<Mutex<HashMap<Tensor, Vec<Part>>>>,
    device: Arc<Mutex<Option<Opened>>>,
    edition: Option<Edition>,
}

/// A backend's own handle of the device.
type Opened = Box<dyn Any + Send>;

/// A tensor of an edition of a model.
type Tensor = (Option<Edition>, Fingerprint, String);

/// A matrix of some of a tensor's values.
struct Part {
    /// Which of them: several matrices may be picked out of one tensor of a file, also with the same dimensions.
    info: TensorInfo,
    matrix: Weak<dyn Any + Send + Sync>,
}

impl HeldWeights {
    /// What is known of that edition of every model.
    #[must_use]
    pub fn of_edition(&self, edition: Edition) -> HeldWeights {
        HeldWeights { edition: Some(edition), ..self.clone() }
    }

    /// The device as it was opened before, or else as `open` opens it.
    pub(crate) fn device<D: Any + Clone + Send, E>(
        &self,
        open: impl FnOnce() -> Result<D, E>,
    ) -> Result<D, E> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = device.as_ref().and_then(|device| device.downcast_ref::<D>()) {
            return Ok(opened.clone());
        }
        let opened = open()?;
        *device = Some(Box::new(opened.clone()));
        Ok(opened)
    }

    /// The matrix with the values of `info`, if some stage holds it.
    pub(crate) fn get<M: Any + Send + Sync>(&self, model: Fingerprint, info: &TensorInfo) -> Option<Arc<M>> {
        let known = self.known();
        let parts = known.get(&(self.edition, model, info.name.clone()))?;
        let part = parts.iter().find(|part| part.info == *info)?;
        part.matrix.upgrade()?.downcast().ok()
    }

    /// Notes that a matrix is resident.
    pub(crate) fn note<M: Any + Send + Sync>(&self, model: Fingerprint, info: &TensorInfo, matrix: &Arc<M>) {
        let matrix: Arc<dyn Any + Send + Sync> = matrix.clone();
        let mut known = self.known();
        let parts = known.entry((self.edition, model, info.name.clone())).or_default();
        parts.retain(|part| part.info != *info && part.matrix.strong_count() > 0);
        parts.push(Part { info: info.clone(), matrix: Arc::downgrade(&matrix) });
    }

    /// Whether some stage holds a part of a tensor; one that does holds all that it has.
    pub(crate) fn has(&self, model: Fingerprint, tensor: &str) -> bool {
        let known = self.known();
        let parts = known.get(&(self.edition, model, tensor.to_owned()));
        parts.is_some_and(|parts| parts.iter().any(|part| part.matrix.strong_count() > 0))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Tensor, Vec<Part>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for HeldWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldWeights").field("tensors", &self.known().len()).finish()
    }
}
