//! Numbers for the log: copied to the host in the compute stream's order, read when they have arrived, so that nobody
//! waits for the step that is being computed.

use super::pinned::{Fence, Pinned};
use crate::engine::{DType, Device, Tensor};
use crate::{Error, Result};
use cudarc::driver::result;
use std::collections::VecDeque;

/// A queue of small f32 tensors on their way to the host.
pub struct Readback {
    /// Values that an entry may have.
    most: usize,
    pending: VecDeque<Entry>,
    /// Places that were read and may be used again.
    idle: Vec<(Pinned, Fence)>,
    device: Device,
}

enum Entry {
    Here(Vec<f32>),
    Coming { pinned: Pinned, done: Fence, values: usize },
}

impl Readback {
    /// For tensors of up to `most` values.
    pub fn new(device: &Device, most: usize) -> Self {
        Self { most, pending: VecDeque::new(), idle: Vec::new(), device: device.clone() }
    }

    /// How many entries were pushed and not taken.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Asks for the values that `t` has when the compute stream comes to this point.
    pub fn push(&mut self, t: &Tensor) -> Result<()> {
        if t.dtype() != DType::F32 || t.len() > self.most || *t.device() != self.device {
            let detail = format!("{t:?}; up to {} values of f32 on {:?} are read", self.most, self.device);
            return Err(Error::shape("readback", detail));
        }
        let open = self.device.gpu().and_then(|gpu| Some((gpu, gpu.session.as_ref()?)));
        let Some((gpu, session)) = open else {
            self.pending.push_back(Entry::Here(t.values()?));
            return Ok(());
        };
        gpu.outside_capture("reading back", "push after a replay")?;
        let (mut pinned, done) = match self.idle.pop() {
            Some(place) => place,
            None => (Pinned::new(gpu, 4 * self.most)?, Fence::new(gpu)?),
        };
        if !t.is_empty() {
            let to = &mut pinned.all_mut()[..4 * t.len()];
            // SAFETY: inside the tensor; the pinned memory is not looked at, used again or freed before `done`.
            unsafe { result::memcpy_dtoh_async(to, t.address(), session.stream.cu_stream()) }
                .map_err(|e| gpu.error("copying from the device", e))?;
        }
        done.set(gpu, &session.stream)?;
        self.pending.push_back(Entry::Coming { pinned, done, values: t.len() });
        Ok(())
    }

    /// The oldest entry's values, waited for where they are not here yet; `None` when nothing is pending.
    pub fn take(&mut self) -> Result<Option<Vec<f32>>> {
        Ok(match self.pending.pop_front() {
            None => None,
            Some(Entry::Here(values)) => Some(values),
            Some(Entry::Coming { pinned, done, values }) => {
                let gpu = self.device.gpu().expect("only a CUDA device's values are on their way");
                done.wait(gpu)?;
                let read = bytemuck::pod_collect_to_vec(&pinned.all()[..4 * values]);
                self.idle.push((pinned, done));
                Some(read)
            }
        })
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // The last copy is behind all others in the stream.
        if let (Some(Entry::Coming { done, .. }), Some(gpu)) = (self.pending.back(), self.device.gpu()) {
            let _ = done.wait(gpu);
        }
    }
}
