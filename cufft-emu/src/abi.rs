//! The C functions. Sizes of work areas are 0: the sums are done in the host's memory.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::driver::Stream;
use crate::error::{Answer, Code};
use crate::exec;
use crate::layout::{Embedding, positive};
use crate::transform::Kind;

/// cuFFT's version, as it comes with CUDA 13.0.
const VERSION: [c_int; 3] = [12, 0, 0];

/// A pointer that a result is written through.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    fn set(&self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: the caller of the C function promises a writable place, and it is not null.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }
}

/// A pointer to a plan's dimensions, or null.
#[repr(transparent)]
pub struct Dims(*const c_int);

impl Dims {
    fn get(&self, rank: usize) -> Answer<Option<Vec<usize>>> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller of the C function promises an array of the plan's rank, and it is not null.
        let at = |axis| unsafe { self.0.add(axis).read_unaligned() };
        (0..rank).map(|axis| positive(at(axis), Code::InvalidSize)).collect::<Answer<Vec<_>>>().map(Some)
    }
}

/// An array in the device's memory.
#[repr(transparent)]
pub struct Device(*mut c_void);

fn kind(kind: c_int) -> Answer<Kind> {
    match kind {
        41 => Ok(Kind::C2C),
        42 => Ok(Kind::R2C),
        44 => Ok(Kind::C2R),
        105 | 106 | 108 => Err(Code::NotSupported.because("only single precision is supported")),
        _ => Err(Code::InvalidType),
    }
}

/// Makes a plan of cuFFT's basic layout.
fn basic(handle: c_int, n: &[c_int], of: c_int, batch: c_int) -> Answer {
    let n = n.iter().map(|&n| positive(n, Code::InvalidSize)).collect::<Answer<Vec<_>>>()?;
    exec::make(handle, kind(of)?, &n, positive(batch, Code::InvalidSize)?, None)
}

/// One side of an advanced layout: embedding, stride and distance.
type Advanced = (Dims, c_int, c_int);

fn many(handle: c_int, rank: c_int, n: Dims, sides: [Advanced; 2], of: c_int, batch: c_int) -> Answer {
    let rank = positive(rank, Code::InvalidValue)?;
    if rank > 3 {
        return Err(Code::InvalidValue.because(&format!("{rank} dimensions; at most 3 are transformed")));
    }
    let n = n.get(rank)?.ok_or(Code::InvalidValue)?;
    let side = |(embed, stride, distance): &Advanced| {
        let Some(embed) = embed.get(rank)? else { return Ok(None) };
        let positive = |value| positive(value, Code::InvalidValue);
        Ok(Some(Embedding { embed, stride: positive(*stride)?, distance: positive(*distance)? }))
    };
    // With one of the two missing, cuFFT ignores the other.
    let embeddings = side(&sides[0])?.zip(side(&sides[1])?).map(|(input, output)| [input, output]);
    exec::make(handle, kind(of)?, &n, positive(batch, Code::InvalidSize)?, embeddings)
}

/// A new handle whose plan is made at once; of a failure no handle is left.
fn plan(out: Out<c_int>, make: impl FnOnce(c_int) -> Answer) -> Answer {
    out.set(0)?;
    let handle = exec::create();
    match make(handle) {
        Ok(()) => out.set(handle),
        Err(code) => {
            let _ = exec::destroy(handle);
            Err(code)
        }
    }
}

/// Runs the body of a C function: no panic leaves it.
fn guard(name: &str, body: impl FnOnce() -> Answer) -> c_int {
    let panicked = |_| Err(Code::InternalError.because(&format!("{name} panicked")));
    match catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(panicked) {
        Ok(()) => 0,
        Err(code) => code as c_int,
    }
}

/// Defines functions of cuFFT: exported by name and guarded.
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            /// Pointers must be null or valid, as cuFFT's documentation says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
                guard(stringify!($name), move || $body)
            }
        )*
    };
}

api! {
    /// cuFFT's version, 1000 × major + 100 × minor + patch.
    fn cufftGetVersion(version: Out<c_int>) {
        version.set(1000 * VERSION[0] + 100 * VERSION[1] + VERSION[2])
    }

    /// One part of cuFFT's version.
    fn cufftGetProperty(which: c_int, value: Out<c_int>) {
        let part = usize::try_from(which).ok().and_then(|which| VERSION.get(which));
        value.set(*part.ok_or(Code::InvalidValue)?)
    }

    /// A handle without a plan.
    fn cufftCreate(out: Out<c_int>) {
        out.set(0)?;
        out.set(exec::create())
    }

    /// Forgets a plan.
    fn cufftDestroy(handle: c_int) {
        exec::destroy(handle)
    }

    /// Sets the stream that a plan is executed in.
    fn cufftSetStream(handle: c_int, stream: Stream) {
        exec::set_stream(handle, stream)
    }

    /// Gives a plan a work area: it needs none.
    fn cufftSetWorkArea(handle: c_int, _area: Device) {
        exec::check(handle)
    }

    /// Whether the plan allocates its own work area: it needs none.
    fn cufftSetAutoAllocation(handle: c_int, _automatic: c_int) {
        exec::check(handle)
    }

    /// Plans 1-D transforms.
    fn cufftPlan1d(out: Out<c_int>, nx: c_int, of: c_int, batch: c_int) {
        plan(out, |handle| basic(handle, &[nx], of, batch))
    }

    /// Plans a 2-D transform.
    fn cufftPlan2d(out: Out<c_int>, nx: c_int, ny: c_int, of: c_int) {
        plan(out, |handle| basic(handle, &[nx, ny], of, 1))
    }

    /// Plans a 3-D transform.
    fn cufftPlan3d(out: Out<c_int>, nx: c_int, ny: c_int, nz: c_int, of: c_int) {
        plan(out, |handle| basic(handle, &[nx, ny, nz], of, 1))
    }

    /// Plans transforms of an advanced layout.
    fn cufftPlanMany(
        out: Out<c_int>,
        rank: c_int,
        n: Dims,
        in_embed: Dims,
        in_stride: c_int,
        in_distance: c_int,
        out_embed: Dims,
        out_stride: c_int,
        out_distance: c_int,
        of: c_int,
        batch: c_int,
    ) {
        let sides = [(in_embed, in_stride, in_distance), (out_embed, out_stride, out_distance)];
        plan(out, |handle| many(handle, rank, n, sides, of, batch))
    }

    /// Makes a handle's plan of 1-D transforms.
    fn cufftMakePlan1d(handle: c_int, nx: c_int, of: c_int, batch: c_int, work: Out<usize>) {
        work.set(0)?;
        basic(handle, &[nx], of, batch)
    }

    /// Makes a handle's plan of a 2-D transform.
    fn cufftMakePlan2d(handle: c_int, nx: c_int, ny: c_int, of: c_int, work: Out<usize>) {
        work.set(0)?;
        basic(handle, &[nx, ny], of, 1)
    }

    /// Makes a handle's plan of a 3-D transform.
    fn cufftMakePlan3d(handle: c_int, nx: c_int, ny: c_int, nz: c_int, of: c_int, work: Out<usize>) {
        work.set(0)?;
        basic(handle, &[nx, ny, nz], of, 1)
    }

    /// Makes a handle's plan of transforms of an advanced layout.
    fn cufftMakePlanMany(
        handle: c_int,
        rank: c_int,
        n: Dims,
        in_embed: Dims,
        in_stride: c_int,
        in_distance: c_int,
        out_embed: Dims,
        out_stride: c_int,
        out_distance: c_int,
        of: c_int,
        batch: c_int,
        work: Out<usize>,
    ) {
        work.set(0)?;
        let sides = [(in_embed, in_stride, in_distance), (out_embed, out_stride, out_distance)];
        many(handle, rank, n, sides, of, batch)
    }

    /// The size of a plan's work area: none.
    fn cufftGetSize(handle: c_int, work: Out<usize>) {
        exec::check(handle)?;
        work.set(0)
    }

    /// The size of the work area that a 1-D plan would have: none.
    fn cufftEstimate1d(_nx: c_int, of: c_int, _batch: c_int, work: Out<usize>) {
        kind(of)?;
        work.set(0)
    }

    /// The size of the work area that a 2-D plan would have: none.
    fn cufftEstimate2d(_nx: c_int, _ny: c_int, of: c_int, work: Out<usize>) {
        kind(of)?;
        work.set(0)
    }

    /// Transforms complex values into complex values: -1 forward, 1 inverse.
    fn cufftExecC2C(handle: c_int, input: Device, output: Device, direction: c_int) {
        let inverse = match direction {
            -1 => false,
            1 => true,
            _ => return Err(Code::InvalidValue),
        };
        exec::exec(handle, Kind::C2C, inverse, input.0 as u64, output.0 as u64)
    }

    /// Transforms real values into half a spectrum.
    fn cufftExecR2C(handle: c_int, input: Device, output: Device) {
        exec::exec(handle, Kind::R2C, false, input.0 as u64, output.0 as u64)
    }

    /// Transforms half a spectrum into real values. The input stays as it is, which cuFFT does not promise.
    fn cufftExecC2R(handle: c_int, input: Device, output: Device) {
        exec::exec(handle, Kind::C2R, true, input.0 as u64, output.0 as u64)
    }

    /// Double precision is not supported.
    fn cufftExecZ2Z(handle: c_int, _input: Device, _output: Device, _direction: c_int) {
        exec::check(handle)?;
        Err(Code::NotSupported)
    }

    /// Double precision is not supported.
    fn cufftExecD2Z(handle: c_int, _input: Device, _output: Device) {
        exec::check(handle)?;
        Err(Code::NotSupported)
    }

    /// Double precision is not supported.
    fn cufftExecZ2D(handle: c_int, _input: Device, _output: Device) {
        exec::check(handle)?;
        Err(Code::NotSupported)
    }
}

/// Defines functions that only answer that they are not supported. Their arguments are the caller's to clean up.
macro_rules! unsupported {
    ($($name:ident)*) => {
        $(
            /// Not supported.
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> c_int {
                guard(stringify!($name), || {
                    Err(Code::NotSupported.because(concat!(stringify!($name), " is not supported")))
                })
            }
        )*
    };
}

unsupported! {
    cufftEstimate3d cufftEstimateMany cufftGetSize1d cufftGetSize2d cufftGetSize3d cufftGetSizeMany cufftGetSizeMany64
    cufftMakePlanMany64 cufftGetPlanPropertyInt64 cufftSetPlanPropertyInt64 cufftResetPlanProperty
}
