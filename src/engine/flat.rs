//! One flat f32 buffer cut into named tensors: what masters, gradients and moments live in.
//!
//! The whole can be read or written as one slice (one clip, one AdamW, one checkpoint blob), and each part can be
//! used as a tensor; the two uses exclude each other at run time the way Rust's borrows would at compile time.

use super::arena::Device;
use super::tensor::{DType, Tensor};
use crate::Result;
use std::ptr::NonNull;
use std::sync::Arc;

/// A flat f32 buffer and its parts, in order, without gaps.
pub struct FlatBuffer {
    whole: Arc<Tensor>,
    parts: Vec<Option<Tensor>>,
}

impl FlatBuffer {
    /// Zeros for parts of these shapes.
    pub fn zeros(device: &Device, shapes: &[Vec<usize>]) -> Result<Self> {
        let total = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
        let whole = Arc::new(Tensor::zeros(device, &[total])?);
        let mut at = 0;
        let parts = shapes
            .iter()
            .map(|shape| {
                // SAFETY: `at` stays within the whole, whose bytes are initialised and outlive the part through the
                // Arc. Parts do not overlap. The whole is touched only through `all`/`all_mut`, which make sure
                // that no part can be written meanwhile, nor read while written.
                let part = unsafe {
                    let ptr =
                        NonNull::new_unchecked(whole.storage.ptr.as_ptr().cast::<f32>().wrapping_add(at));
                    Tensor::from_raw(device, ptr.cast(), shape, DType::F32, whole.clone())
                };
                at += part.len();
                Some(part)
            })
            .collect();
        Ok(Self { whole, parts })
    }

    /// Where the values are.
    pub fn device(&self) -> &Device {
        self.whole.device()
    }
    /// Number of f32 values.
    pub fn len(&self) -> usize {
        self.whole.len()
    }
    /// True when there is no part.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A handle on part `i`. While it lives the whole cannot be written.
    ///
    /// # Panics
    /// When the part is out (see [`FlatBuffer::take`]).
    pub fn part(&self, i: usize) -> Tensor {
        self.parts[i].clone().expect("a part that is out for writing is not read")
    }

    /// Takes part `i` out to write it; give it back with [`FlatBuffer::put`].
    ///
    /// # Panics
    /// When it is out already.
    pub fn take(&mut self, i: usize) -> Tensor {
        self.parts[i].take().expect("a part is taken once")
    }

    /// Gives a taken part back.
    pub fn put(&mut self, i: usize, part: Tensor) {
        self.parts[i] = Some(part);
    }

    /// A copy of all values on the host.
    pub fn values(&self) -> Result<Vec<f32>> {
        assert!(self.parts.iter().all(Option::is_some), "a part is still out for writing");
        self.whole.values()
    }

    /// Overwrites all values, of which there must be as many. No handle on a part may be held.
    pub fn set(&mut self, values: &[f32]) -> Result<()> {
        let Some(mut whole) = self.whole_on_device() else {
            if !self.device().is_meta() {
                self.all_mut().copy_from_slice(values);
            }
            return Ok(());
        };
        let device = whole.device().clone();
        if device.is_meta() {
            // There may be none; what they pass through is counted.
            return Tensor::empty(&device, &[self.len()]).map(|_| ());
        }
        whole.copy_from(&Tensor::from_slice(&device, &[values.len()], values)?)
    }

    /// Sets all values to 0. No handle on a part may be held.
    pub fn zero(&mut self) -> Result<()> {
        match self.whole_on_device() {
            Some(mut whole) => whole.zero(),
            None => {
                self.all_mut().fill(0.0);
                Ok(())
            }
        }
    }

    /// All values as one tensor for a kernel to read and write; `None` on the CPU, which has slices for that.
    ///
    /// # Panics
    /// When a handle on any part is still held outside.
    pub(crate) fn whole_on_device(&mut self) -> Option<Tensor> {
        let device = self.whole.device().clone();
        device.gpu()?;
        self.expect_alone();
        let (ptr, n) = (self.whole.storage.ptr, self.len());
        // SAFETY: the memory is the device's, never borrowed as a slice, and lives as long as the Arc; what is launched
        // on it runs in the order in which it was launched.
        Some(unsafe { Tensor::from_raw(&device, ptr, &[n], DType::F32, self.whole.clone()) })
    }

    fn expect_alone(&mut self) {
        let alone = self.parts.iter_mut().all(|p| p.as_mut().is_some_and(Tensor::is_unique));
        assert!(alone, "the whole is written only while no part is held");
    }

    /// All values, for reading, in host memory.
    ///
    /// # Panics
    /// When a part is out for writing, or the values are on a CUDA device.
    pub fn all(&self) -> &[f32] {
        assert!(self.parts.iter().all(Option::is_some), "a part is still out for writing");
        self.whole.f32()
    }

    /// All values, for writing, in host memory.
    ///
    /// # Panics
    /// When a handle on any part is still held outside, or the values are on a CUDA device.
    pub fn all_mut(&mut self) -> &mut [f32] {
        self.expect_alone();
        assert!(self.whole.device().gpu().is_none(), "the values are on {:?}", self.whole.device());
        let (ptr, n) = (self.whole.storage.ptr.as_ptr().cast::<f32>(), self.whole.f32().len());
        // SAFETY: every part is home and unique, so no slice of the memory exists; `&mut self` keeps it so.
        unsafe { std::slice::from_raw_parts_mut(ptr, n) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_whole_are_the_same_memory_and_exclude_each_other() {
        let mut f = FlatBuffer::zeros(&Device::cpu(), &[vec![2, 2], vec![3]]).unwrap();
        f.all_mut().copy_from_slice(&[0., 1., 2., 3., 4., 5., 6.]);
        assert_eq!(f.part(1).f32(), [4., 5., 6.]);
        let mut p = f.take(0);
        p.f32_mut()[3] = 30.;
        f.put(0, p);
        assert_eq!(f.all()[3], 30.);
        let held = f.part(0);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f.all_mut()[0] = 1.)).is_err());
        drop(held);
    }
}
