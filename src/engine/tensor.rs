//! Tensors: contiguous, row-major, reference-counted; the handle carries its device.
//!
//! The only views are ranges of the first dimension. Heads, segments and splits are strides inside kernels.

use super::arena::Device;
use crate::{Error, Result};
use half::bf16;
use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Element types. The CPU computes in f32; bf16 is storage there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
    /// As kernels' names end.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
    /// Elements of the widest load.
    pub(crate) const fn per_16_bytes(self) -> usize {
        16 / self.size()
    }
}

pub(super) struct Storage {
    pub(super) ptr: NonNull<u8>,
    pub(super) bytes: usize,
    device: Device,
    owner: Owner,
}

enum Owner {
    /// A block of the device's arena, returned on drop.
    Arena,
    /// Memory that lives as long as the value here; read only where it was lent.
    Foreign { writable: bool, _keep: Arc<dyn Any + Send + Sync> },
}

// SAFETY: a Storage is plain memory; `&Storage` only reads the pointer, and `Tensor` hands out `&mut [_]` from
// `&mut Tensor` only while its `Arc<Storage>` is unique.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Drop for Storage {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Arena) {
            self.device.release(self.ptr, self.bytes);
        }
    }
}

/// A contiguous, row-major array on a device.
#[derive(Clone)]
pub struct Tensor {
    pub(super) storage: Arc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    dtype: DType,
}

impl Tensor {
    /// An uninitialised-in-meaning f32 tensor: all of it must be written before it is read (NaN on a poisoning device,
    /// left-over values else).
    pub fn empty(device: &Device, shape: &[usize]) -> Result<Self> {
        Self::empty_as(device, shape, DType::F32)
    }

    /// The same in `dtype`.
    pub fn empty_as(device: &Device, shape: &[usize], dtype: DType) -> Result<Self> {
        let t = Self::allocate(device, shape, dtype)?;
        // In both types all ones is NaN.
        if device.poison() { t.filled(u8::MAX) } else { Ok(t) }
    }

    fn allocate(device: &Device, shape: &[usize], dtype: DType) -> Result<Self> {
        let bytes = shape.iter().try_fold(dtype.size(), |n, &side| n.checked_mul(side));
        let bytes = bytes.filter(|&n| n <= isize::MAX as usize / 2).ok_or_else(|| {
            Error::shape("tensor", format!("{shape:?} of {dtype:?} is more than any machine can address"))
        })?;
        let ptr = device.acquire(bytes)?;
        let storage = Storage { ptr, bytes, device: device.clone(), owner: Owner::Arena };
        Ok(Self { storage: Arc::new(storage), offset: 0, shape: shape.to_vec(), dtype })
    }

    /// Every byte of a fresh tensor set to `byte`.
    fn filled(self, byte: u8) -> Result<Self> {
        let Storage { ptr, bytes, device, .. } = &*self.storage;
        match device.gpu() {
            _ if device.is_meta() => {}
            // SAFETY: the storage is fresh and has as many bytes.
            Some(gpu) => unsafe { gpu.fill(ptr.as_ptr() as u64, byte, *bytes) }?,
            // SAFETY: as above.
            None => unsafe { ptr.as_ptr().write_bytes(byte, *bytes) },
        }
        Ok(self)
    }

    /// A fresh tensor that holds `data`.
    fn holding<T: bytemuck::NoUninit>(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        data: &[T],
    ) -> Result<Self> {
        if shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side)) != Some(data.len()) {
            return Err(Error::shape("tensor", format!("{} values do not fill shape {shape:?}", data.len())));
        }
        Self::of_bytes(device, shape, dtype, bytemuck::cast_slice(data))
    }

    fn of_bytes(device: &Device, shape: &[usize], dtype: DType, data: &[u8]) -> Result<Self> {
        let t = Self::allocate(device, shape, dtype)?;
        assert_eq!(data.len(), t.storage.bytes, "the caller counted the elements");
        let ptr = t.storage.ptr;
        match device.gpu() {
            _ if device.is_meta() => {}
            // SAFETY: the storage is fresh and has as many bytes.
            Some(gpu) => unsafe { gpu.upload(ptr.as_ptr() as u64, data) }?,
            // SAFETY: as above.
            None => unsafe { ptr.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) },
        }
        Ok(t)
    }

    /// All zeros.
    pub fn zeros(device: &Device, shape: &[usize]) -> Result<Self> {
        Self::allocate(device, shape, DType::F32)?.filled(0)
    }

    /// The same in `dtype`.
    pub fn zeros_as(device: &Device, shape: &[usize], dtype: DType) -> Result<Self> {
        Self::allocate(device, shape, dtype)?.filled(0)
    }

    /// All `value`, f32. On a CUDA device nothing is uploaded, so a capture can hold it.
    pub fn full(device: &Device, shape: &[usize], value: f32) -> Result<Self> {
        let mut t = Self::allocate(device, shape, DType::F32)?;
        match device.gpu() {
            // SAFETY: the storage is fresh and has as many values.
            Some(gpu) => unsafe { gpu.fill_words(t.address(), value.to_bits(), t.len()) }?,
            None => t.f32_mut().fill(value),
        }
        Ok(t)
    }

    /// A copy of `data`; its length must be the product of `shape`.
    pub fn from_slice(device: &Device, shape: &[usize], data: &[f32]) -> Result<Self> {
        Self::holding(device, shape, DType::F32, data)
    }

    /// One number.
    pub fn scalar(device: &Device, value: f32) -> Result<Self> {
        Self::from_slice(device, &[], &[value])
    }

    /// A copy of `data` stored as bf16, rounded to nearest even.
    pub fn bf16_from_f32(device: &Device, shape: &[usize], data: &[f32]) -> Result<Self> {
        let halves: Vec<bf16> = data.iter().map(|&v| bf16::from_f32(v)).collect();
        Self::from_bf16(device, shape, &halves)
    }

    /// A copy of `data`, as it is.
    pub fn from_bf16(device: &Device, shape: &[usize], data: &[bf16]) -> Result<Self> {
        Self::holding(device, shape, DType::Bf16, data)
    }

    /// What `make` gives, to be read. A CUDA device is given it once for each `name`, which says all that it depends on,
    /// and keeps it as long as it lives.
    pub(crate) fn constant(
        device: &Device,
        name: String,
        shape: &[usize],
        make: impl FnOnce() -> Vec<f32>,
    ) -> Result<Self> {
        let Some(gpu) = device.gpu() else { return Self::from_slice(device, shape, &make()) };
        let at = gpu.constant(format!("{name} {shape:?}"), make)?;
        let ptr = NonNull::new(at as *mut u8).ok_or_else(|| Error::cuda(&name, "is at no address"))?;
        let owner = Owner::Foreign { writable: false, _keep: Arc::new(()) };
        // Sound: the device keeps what is there, and the tensor keeps the device.
        Ok(Self::foreign(device, ptr, shape, DType::F32, owner))
    }

    /// A copy of its own, on the same device.
    pub fn copied(&self) -> Result<Self> {
        let one = [&[1], self.shape()].concat();
        Self::stack(&[&self.clone().reshape(&one)?])?.reshape(self.shape())
    }

    /// 64-bit words for a kernel to read, each in the place of two f32.
    pub(crate) fn of_words(device: &Device, words: &[u64]) -> Result<Self> {
        let halves: &[f32] = bytemuck::cast_slice(words);
        Self::from_slice(device, &[words.len(), 2], halves)
    }

    /// A copy on `device` (the handle itself where it is there already).
    pub fn to(&self, device: &Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.clone());
        }
        let bytes = self.len() * self.dtype.size();
        let mut host = vec![0u64; bytes.div_ceil(8)];
        let host = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut host)[..bytes];
        match self.device().gpu() {
            _ if self.device().is_meta() => {}
            // SAFETY: offset and length stay inside the storage by construction.
            Some(gpu) => unsafe { gpu.download(self.address(), host) }?,
            // SAFETY: as above; the bytes are initialised and nobody holds a `&mut` to them.
            None => unsafe { host.as_mut_ptr().copy_from(self.address() as *const u8, bytes) },
        }
        Self::of_bytes(device, &self.shape, self.dtype, host)
    }

    /// The elements as f32 on the host, wherever and however they are stored. Waits for the device.
    pub fn values(&self) -> Result<Vec<f32>> {
        Ok(self.to(&Device::cpu())?.to_f32().into_owned())
    }

    /// Memory of somebody else as a tensor, without a copy; `owner` is kept alive as long as any handle.
    ///
    /// # Safety
    /// `ptr` must point at `shape.product() * dtype.size()` initialised bytes, aligned to the element, valid while
    /// `owner` lives, and not written by anyone else while this tensor or a clone of it exists. The only handle may
    /// write it, as a gradient buffer is written; [`Tensor::lend`] is for values that are only read.
    pub unsafe fn from_raw(
        device: &Device,
        ptr: NonNull<u8>,
        shape: &[usize],
        dtype: DType,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self::foreign(device, ptr, shape, dtype, Owner::Foreign { writable: true, _keep: owner })
    }

    /// Somebody else's values as a tensor that is only read, without a copy: a `Vec<f32>`, a boxed slice, or a type of
    /// the caller's. `data` is kept alive as long as any handle.
    ///
    /// ```
    /// # use asasr_engine::engine::{Device, Tensor};
    /// # use std::sync::Arc;
    /// let mine = Arc::new(vec![1.0f32; 6]);
    /// let t = Tensor::lend(&Device::cpu(), &[2, 3], &mine)?;
    /// assert_eq!(t.f32().as_ptr(), mine.as_ptr());
    /// # Ok::<(), asasr_engine::Error>(())
    /// ```
    pub fn lend<T>(device: &Device, shape: &[usize], data: &Arc<T>) -> Result<Self>
    where
        T: AsRef<[f32]> + Send + Sync + 'static,
    {
        let values: &[f32] = T::as_ref(data);
        let ptr = NonNull::from(values).cast();
        let wanted = shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
        if wanted != Some(values.len()) {
            return Err(Error::shape(
                "tensor",
                format!("{} values do not fill shape {shape:?}", values.len()),
            ));
        }
        // Sound: the values are borrowed from behind the Arc, whose clone below keeps that borrow good, and a tensor
        // that is not writable only reads them.
        let owner = Owner::Foreign { writable: false, _keep: data.clone() };
        Ok(Self::foreign(device, ptr, shape, DType::F32, owner))
    }

    fn foreign(device: &Device, ptr: NonNull<u8>, shape: &[usize], dtype: DType, owner: Owner) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let storage = Storage { ptr, bytes, device: device.clone(), owner };
        Self { storage: Arc::new(storage), offset: 0, shape: shape.to_vec(), dtype }
    }

    /// Where the tensor lives.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }
    /// Extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Extent of the last dimension (1 for a scalar).
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// Elements per entry of the first dimension (1 for a scalar).
    pub fn stride0(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape(
                "reshape",
                format!("{:?} does not hold as many values as {shape:?}", self.shape),
            ));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// Entries `range` of the first dimension, without a copy.
    pub fn rows(&self, range: Range<usize>) -> Result<Self> {
        let n = self.shape.first().copied().unwrap_or(0);
        if range.start > range.end || range.end > n {
            return Err(Error::shape("rows", format!("{range:?} of a first dimension of {n}")));
        }
        let mut t = self.clone();
        t.offset += range.start * self.stride0();
        t.shape[0] = range.len();
        Ok(t)
    }

    /// The first `n` entries of the first dimension; all of it when there are no more than `n`.
    pub fn leading(&self, n: usize) -> Self {
        let mut t = self.clone();
        if let Some(first) = t.shape.first_mut() {
            *first = n.min(*first);
        }
        t
    }

    /// Tensors of equal shape but for the first dimension, one after the other along it (a copy).
    pub fn stack(parts: &[&Tensor]) -> Result<Self> {
        let first = parts.first().ok_or_else(|| Error::shape("stack", "nothing to stack"))?;
        let mut shape = first.shape.clone();
        let fits = |t: &Tensor| t.shape.get(1..) == shape.get(1..) && t.dtype == first.dtype;
        if let Some(bad) =
            parts.iter().find(|t| t.shape.is_empty() || !fits(t) || t.device() != first.device())
        {
            return Err(Error::shape("stack", format!("{bad:?} beside {first:?}")));
        }
        shape[0] = parts.iter().map(|t| t.shape[0]).sum();
        let mut out = Self::allocate(first.device(), &shape, first.dtype)?;
        let mut at = out.address_mut()?;
        for t in parts {
            let bytes = t.len() * t.dtype.size();
            match t.device().gpu() {
                _ if t.device().is_meta() => {}
                // SAFETY: `out` has room for all parts one after the other, and is fresh.
                Some(gpu) => unsafe { gpu.copy(at, t.address(), bytes) }?,
                // SAFETY: as above.
                None => unsafe { (at as *mut u8).copy_from_nonoverlapping(t.address() as *const u8, bytes) },
            }
            at += bytes as u64;
        }
        Ok(out)
    }

    /// The address of the first element on the tensor's device, to be read.
    pub(crate) fn address(&self) -> u64 {
        let address = self.storage.ptr.as_ptr() as u64 + (self.offset * self.dtype.size()) as u64;
        self.device().note(address);
        address
    }

    /// The address of the first element on the tensor's device, to be written: the handle must be the only one.
    pub(crate) fn address_mut(&mut self) -> Result<u64> {
        if self.is_unique() {
            return Ok(self.address());
        }
        Err(Error::shape("tensor", format!("{self:?} is to be written, but another handle on it exists")))
    }

    /// Overwrites the elements with those of `x`, which is as large, of the same dtype and on the same CUDA device. The
    /// handle must be the only one.
    pub(crate) fn copy_from(&mut self, x: &Tensor) -> Result<()> {
        let gpu = self.device().gpu().filter(|_| self.device() == x.device());
        if gpu.is_none() || self.len() != x.len() || self.dtype != x.dtype {
            return Err(Error::shape("copy", format!("{x:?} into {self:?}")));
        }
        let (device, to, bytes) = (self.device().clone(), self.address_mut()?, x.len() * x.dtype.size());
        let Some(gpu) = device.gpu() else { return Ok(()) };
        // SAFETY: both ranges are inside their storages; the written one has no other handle, so they do not overlap.
        unsafe { gpu.copy(to, x.address(), bytes) }
    }

    /// Overwrites a tensor in host memory with `data`, which is as large. The handle must be the only one.
    pub(crate) fn overwrite(&mut self, data: &[u8]) -> Result<()> {
        if self.device().gpu().is_some() || self.len() * self.dtype.size() != data.len() {
            return Err(Error::shape("copy", format!("{} bytes of the host's into {self:?}", data.len())));
        }
        let to = self.address_mut()? as *mut u8;
        if !self.device().is_meta() {
            // SAFETY: as many bytes inside the storage, in host memory; the handle is unique.
            unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        }
        Ok(())
    }

    /// Sets an f32 tensor to zero. The handle must be the only one.
    pub(crate) fn zero(&mut self) -> Result<()> {
        let (at, bytes) = (self.address_mut()?, self.len() * self.dtype.size());
        match self.device().gpu() {
            // SAFETY: inside the storage; the handle is unique.
            Some(gpu) => unsafe { gpu.fill(at, 0, bytes) },
            None => {
                self.f32_mut().fill(0.0);
                Ok(())
            }
        }
    }

    /// The address of the first element in host memory.
    fn host(&self) -> *mut u8 {
        assert!(self.device().gpu().is_none(), "{self:?} is not in host memory: copy it there first");
        self.address() as *mut u8
    }

    /// How many elements there are to be seen: none on a meta device.
    fn seen(&self) -> usize {
        if self.device().is_meta() { 0 } else { self.len() }
    }

    /// The elements of an f32 tensor in host memory; none on a meta device.
    ///
    /// # Panics
    /// When the tensor is not f32 or on a CUDA device; ops check the dtype of what they are given first.
    pub fn f32(&self) -> &[f32] {
        assert!(self.dtype == DType::F32, "an f32 tensor was expected, this one is {:?}", self.dtype);
        // SAFETY: offset and length stay inside the storage by construction; the arena hands out initialised bytes;
        // nobody holds a `&mut` to them, which needs a unique handle.
        unsafe { std::slice::from_raw_parts(self.host().cast::<f32>(), self.seen()) }
    }

    /// The elements of an f32 tensor nobody else holds; none on a meta device.
    ///
    /// # Panics
    /// When another handle on the same storage exists, the values are lent or the dtype is not f32: writers own what
    /// they write.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        assert!(self.dtype == DType::F32, "an f32 tensor was expected, this one is {:?}", self.dtype);
        assert!(
            self.is_unique(),
            "a tensor is written through its only handle, and never where its values are lent"
        );
        // SAFETY: in bounds as in `f32`; the handle is unique and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.host().cast::<f32>(), self.seen()) }
    }

    pub(super) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.storage)
            .is_some_and(|s| !matches!(s.owner, Owner::Foreign { writable: false, .. }))
    }

    /// The elements as f32, widened where they are stored as bf16.
    pub fn to_f32(&self) -> std::borrow::Cow<'_, [f32]> {
        match self.dtype {
            DType::F32 => self.f32().into(),
            DType::Bf16 => {
                // SAFETY: as in `f32`, for a two-byte element.
                let src = unsafe { std::slice::from_raw_parts(self.host().cast::<bf16>(), self.seen()) };
                src.iter().map(|v| v.to_f32()).collect::<Vec<_>>().into()
            }
        }
    }

    /// The value of a one-element f32 tensor.
    pub fn item(&self) -> f32 {
        self.f32().first().copied().unwrap_or(0.0)
    }

    /// Refuses a tensor whose shape is not `want`, naming the op and what the tensor is.
    pub fn expect(&self, op: &'static str, what: &str, want: &[usize]) -> Result<()> {
        if self.shape == want {
            return Ok(());
        }
        Err(Error::shape(op, format!("{what} has shape {:?}, wanted {want:?}", self.shape)))
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} {:?} on {:?})", self.dtype, self.shape, self.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_and_writers_are_unique() {
        let d = Device::cpu();
        let mut t = Tensor::from_slice(&d, &[3, 2], &[0., 1., 2., 3., 4., 5.]).unwrap();
        let v = t.rows(1..3).unwrap();
        assert_eq!(v.f32(), [2., 3., 4., 5.]);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| t.f32_mut()[0] = 9.)).is_err());
        drop(v);
        t.f32_mut()[0] = 9.;
        assert_eq!(t.leading(1).f32(), [9., 1.]);
        assert!(t.rows(2..4).is_err());
        assert!(t.reshape(&[7]).is_err());
    }

    #[test]
    fn lent_values_are_read_and_never_written() {
        let (d, mine) = (Device::cpu(), Arc::new(vec![1.0f32, 2.0, 3.0, 4.0]));
        let mut t = Tensor::lend(&d, &[2, 2], &mine).unwrap();
        assert_eq!((t.f32().as_ptr(), Arc::strong_count(&mine)), (mine.as_ptr(), 2));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| t.f32_mut()[0] = 9.)).is_err());
        assert_eq!((mine[0], t.rows(1..2).unwrap().f32()), (1.0, &[3.0, 4.0][..]));
        drop(t);
        assert_eq!(Arc::strong_count(&mine), 1);
        for shape in [&[3][..], &[usize::MAX, 2], &[1 << 63, 2, 4]] {
            assert!(
                Tensor::lend(&d, shape, &mine).unwrap_err().to_string().contains("4 values"),
                "{shape:?}"
            );
        }
    }

    #[test]
    fn fresh_tensors_are_poisoned_where_asked() {
        assert!(Tensor::empty(&Device::cpu_poisoned(), &[5]).unwrap().f32().iter().all(|v| v.is_nan()));
    }

    #[test]
    fn bf16_is_storage() {
        let t = Tensor::bf16_from_f32(&Device::cpu(), &[3], &[1.0, 1.003_906_2, -2.5]).unwrap();
        assert_eq!(&*t.to_f32(), [1.0, 1.0, -2.5]);
    }
}
