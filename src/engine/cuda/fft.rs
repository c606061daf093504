//! cuFFT: two-dimensional complex transforms of batches of planes, f32.

use super::graph::RUN_ONCE;
use super::{Gpu, library, lock};
use crate::{Error, Result};
use cudarc::cufft::{result, sys};
use std::collections::HashMap;

/// One plan per shape, made when it is first wanted.
#[derive(Default)]
pub(super) struct Plans {
    open: bool,
    plans: HashMap<[usize; 3], sys::cufftHandle>,
}

/// Which way a transform goes. Neither divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Σ x·exp(−2πi…).
    Forward,
    /// Σ x·exp(+2πi…).
    Inverse,
}

impl Gpu {
    /// Transforms `planes` planes of `height`×`width` complex f32 (re, im side by side) in place.
    ///
    /// # Safety
    /// `ptr` must be the address of that many on this device, which nobody else uses unordered with the stream.
    pub(crate) unsafe fn fft(
        &self,
        ptr: u64,
        planes: usize,
        height: usize,
        width: usize,
        direction: Direction,
    ) -> Result<()> {
        if self.session.is_none() {
            return Ok(());
        }
        let session = self.bound("cuFFT")?;
        let mut plans = lock(&session.plans);
        let shape = [planes, height, width];
        if !plans.plans.contains_key(&shape) {
            let doing = format!("planning a transform of {planes} planes of {height}×{width}");
            self.outside_capture(&doing, RUN_ONCE)?;
        }
        if !plans.open {
            library::load_fft(self.driver)?;
            plans.open = true;
        }
        let refuse = |doing: &str, e: result::CufftError| {
            Error::cuda("cuFFT", format!("{doing} {planes} planes of {height}×{width}: {:?}", e.0))
        };
        let side = |n: usize| {
            i32::try_from(n).map_err(|_| Error::cuda("cuFFT", format!("a side of {n} is too long")))
        };
        let plan = match plans.plans.get(&shape) {
            Some(&plan) => plan,
            None => {
                let (n, area) = ([side(height)?, side(width)?], side(height * width)?);
                // A plan for one device is made in its context, which is bound.
                let none = std::ptr::null_mut();
                // SAFETY: `n` has two entries, and null embeddings mean planes one after the other.
                let plan = unsafe {
                    result::plan_many(
                        2,
                        n.as_ptr().cast_mut(),
                        none,
                        1,
                        area,
                        none,
                        1,
                        area,
                        sys::cufftType::CUFFT_C2C,
                        side(planes)?,
                    )
                }
                .map_err(|e| refuse("planning", e))?;
                // SAFETY: plan and stream are alive.
                unsafe { result::set_stream(plan, session.stream.cu_stream().cast()) }
                    .map_err(|e| refuse("planning", e))?;
                plans.plans.insert(shape, plan);
                plan
            }
        };
        let sign = if direction == Direction::Forward { -1 } else { 1 };
        let data = ptr as *mut sys::float2;
        // SAFETY: the caller's promise; in place is allowed.
        unsafe { result::exec_c2c(plan, data, data, sign) }.map_err(|e| refuse("transforming", e))
    }
}

impl Drop for Plans {
    fn drop(&mut self) {
        for (_, plan) in self.plans.drain() {
            // SAFETY: made above, used no more; the device binds its context before its fields go.
            let _ = unsafe { result::destroy(plan) };
        }
    }
}
