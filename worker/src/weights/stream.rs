//! Layers that are read again for every step.
//!
//! Their matrices stay in their files. Two buffers go round between a thread that reads and the one that computes: while a
//! layer is computed in one of them, the next is read to the other, and behind the last layer of a step comes the first one
//! of the next. A buffer belongs to one of the two threads at a time, and matrices find their bytes in the one that lies at
//! their layer's place.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use brigade_shard::cost::STAGED_LAYERS;
use brigade_shard::layers::LayerRange;
use brigade_shard::model_file::TensorInfo;
use brigade_shard::staging::{staged_bytes, staged_lead};
use brigade_shard::tensors::TensorTable;
use brigade_shard::units::Bytes;

use super::direct::PastCache;
use super::parts::Parts;
use super::{LoadError, WeightBuffer};
use crate::backend::BackendError;

/// Buffers that go round.
const BUFFERS: usize = STAGED_LAYERS as usize;

/// How often a layer is tried to be read for a step: what was read ahead may have failed long ago, for a reason that is gone.
const TRIES: usize = 2;

/// Which layers are streamed, and where their matrices will be.
pub(super) struct Streamed {
    source: Arc<PastCache>,
    range: LayerRange,
    layers: Arc<[StagedLayer]>,
    places: Vec<Arc<Place>>,
    /// By name; several may be picked out of one tensor of a file.
    matrices: HashMap<String, Vec<Staged>>,
}

/// Where a matrix will be.
struct Staged {
    info: TensorInfo,
    /// Its layer, counted from the first that is streamed.
    layer: usize,
    /// Its first byte in a buffer.
    first: usize,
}

/// How a layer's matrices lie in a buffer.
struct StagedLayer {
    matrices: Vec<(TensorInfo, Range<usize>)>,
    /// Bytes of a buffer for them.
    bytes: usize,
}

/// Where a layer's buffer lies while the layer is computed.
#[derive(Default)]
struct Place(RwLock<Option<WeightBuffer>>);

/// A matrix's bytes in whichever buffer lies at its layer's place.
pub struct StagedBytes {
    place: Arc<Place>,
    range: Range<usize>,
}

/// A matrix's bytes, which stay where they are for as long as this lives.
pub(crate) struct StagedGuard<'a> {
    buffer: RwLockReadGuard<'a, Option<WeightBuffer>>,
    range: Range<usize>,
}

impl Streamed {
    /// Of the model that `parts` are, the matrices of `layers`.
    ///
    /// Fails where a file is not the one any more that is open.
    pub(super) fn new(parts: &Parts, table: &TensorTable, layers: LayerRange) -> Result<Streamed, LoadError> {
        let source = Arc::new(PastCache::new(parts.open_again()?));
        let mut matrices: HashMap<String, Vec<Staged>> = HashMap::new();
        let staged: Vec<StagedLayer> = layers.iter().map(|layer| StagedLayer::of(table, layer)).collect();
        for (layer, of) in staged.iter().enumerate() {
            for (info, blocks) in &of.matrices {
                let first = blocks.start + staged_lead(info) as usize;
                let matrix = Staged { info: info.clone(), layer, first };
                matrices.entry(info.name.clone()).or_default().push(matrix);
            }
        }
        let places = staged.iter().map(|_| Arc::default()).collect();
        Ok(Streamed { source, range: layers, layers: staged.into(), places, matrices })
    }

    /// Whether a tensor is a matrix of a streamed layer.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.matrices.contains_key(tensor)
    }

    /// Where `len` bytes of a matrix will be, from its byte `from` on; `None` where it is not streamed.
    pub(super) fn bytes(&self, matrix: &TensorInfo, from: u64, len: u64) -> Option<StagedBytes> {
        let named = self.matrices.get(&matrix.name)?;
        let Staged { layer, first, .. } = named.iter().find(|staged| staged.info == *matrix)?;
        let start = first + from as usize;
        Some(StagedBytes { place: self.places[*layer].clone(), range: start..start + len as usize })
    }

    /// Begins to read the first layers, and goes on as steps pass through them.
    ///
    /// # Errors
    /// Where the system gives no memory for the buffers, or no thread.
    pub(super) fn start(&self) -> Result<LayerStream, LoadError> {
        let largest = self.layers.iter().map(|layer| layer.bytes).max().unwrap_or(0);
        let buffers = (0..BUFFERS).map(|_| WeightBuffer::zeroed(largest));
        let buffers = buffers.collect::<Result<Vec<_>, _>>()?;
        let matrices = || self.layers.iter().flat_map(|layer| &layer.matrices);
        // What loading has left in the cache of them.
        matrices().for_each(|(info, _)| self.source.drop_cached(info));
        let all = matrices().count();
        let direct = matrices().filter(|(info, _)| self.source.is_direct(info)).count();
        tracing::info!(
            "layers {} are read again for every step, {} in all: {direct} of {all} matrices by direct reads of the disk, the \
             others through the system's cache, which drops them; {} of memory hold {BUFFERS} layers at a time",
            self.range,
            matrices().map(|(info, _)| info.bytes).sum::<Bytes>(),
            Bytes((largest * BUFFERS) as u64)
        );
        LayerStream::start(self.source.clone(), self.layers.clone(), self.places.clone(), buffers)
    }
}

impl StagedLayer {
    fn of(table: &TensorTable, layer: usize) -> StagedLayer {
        let mut bytes = 0;
        let matrices = table.layer(layer).filter(|(role, _)| !role.is_vector()).map(|(_, info)| {
            let start = bytes;
            bytes += staged_bytes(info).0 as usize;
            (info.clone(), start..bytes)
        });
        StagedLayer { matrices: matrices.collect(), bytes }
    }

    fn read(
        &self,
        source: &PastCache,
        buffer: &mut WeightBuffer,
        ended: &AtomicBool,
    ) -> Result<(), LoadError> {
        let bytes = buffer.bytes_mut();
        self.matrices
            .iter()
            .try_for_each(|(info, blocks)| source.read(info, &mut bytes[blocks.clone()], ended))
    }
}

impl Place {
    fn put(&self, buffer: Option<WeightBuffer>) -> Option<WeightBuffer> {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), buffer)
    }
}

impl StagedBytes {
    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// The bytes as they are now.
    pub(crate) fn look(&self) -> StagedGuard<'_> {
        let buffer = self.place.0.read().unwrap_or_else(PoisonError::into_inner);
        StagedGuard { buffer, range: self.range.clone() }
    }
}

impl StagedGuard<'_> {
    /// All bytes.
    ///
    /// # Panics
    /// Where the matrix's layer is not being computed.
    pub(crate) fn bytes(&self) -> &[u8] {
        let buffer =
            self.buffer.as_ref().expect("a streamed layer is computed between `enter` and `leave` alone");
        &buffer.bytes()[self.range.clone()]
    }
}

/// The layers of a stage that are streamed, as its steps see them. Dropping it ends the thread that reads, within a read of
/// some MiB.
pub(crate) struct LayerStream {
    places: Vec<Arc<Place>>,
    /// Layers that were ordered and not taken yet, in turn.
    ahead: VecDeque<usize>,
    /// Buffers that nothing is ordered for.
    spare: Vec<WeightBuffer>,
    /// `None` once it is to end.
    orders: Option<SyncSender<Order>>,
    read: Receiver<Read>,
    ended: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// To read a layer.
struct Order {
    layer: usize,
    buffer: WeightBuffer,
}

/// A layer that was read, or not.
struct Read {
    buffer: WeightBuffer,
    result: Result<(), LoadError>,
}

impl LayerStream {
    fn start(
        source: Arc<PastCache>,
        layers: Arc<[StagedLayer]>,
        places: Vec<Arc<Place>>,
        buffers: Vec<WeightBuffer>,
    ) -> Result<LayerStream, LoadError> {
        // There are no more buffers to send.
        let (orders, orders_in) = sync_channel::<Order>(BUFFERS);
        let (read_out, read) = sync_channel(BUFFERS);
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let work = move || {
            for Order { layer, mut buffer } in orders_in {
                let result = layers[layer].read(&source, &mut buffer, &seen);
                if read_out.send(Read { buffer, result }).is_err() {
                    return;
                }
            }
        };
        let reader = std::thread::Builder::new().name("stream".to_owned()).spawn(work);
        let reader = reader.map_err(|error| failed(format!("no thread to read them: {error}")))?;
        let mut stream = LayerStream {
            places,
            ahead: VecDeque::with_capacity(BUFFERS),
            spare: buffers,
            orders: Some(orders),
            read,
            ended,
            reader: Some(reader),
        };
        stream.order_from(0);
        Ok(stream)
    }

    /// How many layers are streamed.
    pub(crate) fn layers(&self) -> usize {
        self.places.len()
    }

    /// Waits until a layer has been read, counted from the first that is streamed, and lays it at its place. It is to be
    /// left before another is entered; the reader is ready for the one behind it.
    ///
    /// # Errors
    /// Where it cannot be read. The next call tries that anew.
    pub(crate) fn enter(&mut self, layer: usize) -> Result<(), BackendError> {
        let mut tries = 0;
        loop {
            if self.ahead.front() != Some(&layer) {
                // A step has ended before its time, or reading has failed.
                while !self.ahead.is_empty() {
                    let read = self.receive()?;
                    self.spare.push(read.buffer);
                }
                self.order_from(layer);
            }
            let Read { buffer, result } = self.receive()?;
            tries += 1;
            match result {
                Ok(()) => {
                    self.places[layer].put(Some(buffer));
                    return Ok(());
                }
                Err(error) => {
                    self.spare.push(buffer);
                    if tries == TRIES {
                        return Err(failed(error.to_string()));
                    }
                }
            }
        }
    }

    /// Takes a layer from its place, and has the reader fill the buffer anew.
    pub(crate) fn leave(&mut self, layer: usize) {
        if let Some(buffer) = self.places[layer].put(None) {
            self.order((layer + BUFFERS) % self.places.len(), buffer);
        }
    }

    /// Orders as many layers, from `layer` on, as there are buffers for.
    fn order_from(&mut self, layer: usize) {
        let layers = self.places.len();
        for at in layer.. {
            let Some(buffer) = self.spare.pop() else { return };
            self.order(at % layers, buffer);
        }
    }

    fn order(&mut self, layer: usize, buffer: WeightBuffer) {
        self.ahead.push_back(layer);
        if let Some(orders) = &self.orders {
            // A reader that is gone is found out when what it should have read is waited for.
            let _ = orders.send(Order { layer, buffer });
        }
    }

    fn receive(&mut self) -> Result<Read, BackendError> {
        let read = self.read.recv();
        self.ahead.pop_front();
        read.map_err(|_| {
            failed("the thread that reads them has ended with a defect: restart this worker".to_owned())
        })
    }
}

impl Drop for LayerStream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(reader) = self.reader.take() {
            // A defect in it was told to the step that waited for it.
            let _ = reader.join();
        }
    }
}

fn failed(reason: String) -> BackendError {
    BackendError { operation: "read the weights that are read for every step", reason }
}
