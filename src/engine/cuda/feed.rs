//! Uploads beside the compute stream: what the next step needs travels while this one is computed.

use super::pinned::{Fence, Pinned};
use crate::engine::{Device, Tensor};
use crate::{Error, Result};
use cudarc::driver::result;

/// Slots: one is delivered while the other fills.
const SLOTS: usize = 2;

/// A stream of parcels from the host to tensors of stable address: [`Feed::send`] starts a parcel's journey,
/// [`Feed::deliver`] writes the oldest one's parts into tensors, in the order of the compute stream. On the CPU the
/// parcel waits in memory in between.
pub struct Feed {
    slots: Vec<Slot>,
    bytes: usize,
    /// Parcels so far; each uses the slot of its number modulo their count.
    sent: usize,
    delivered: usize,
    device: Device,
}

/// A parcel.
struct Slot {
    /// The bytes of each part, one after the other.
    parts: Vec<usize>,
    place: Place,
}

enum Place {
    Host(Vec<u8>),
    /// On a meta device: it takes its room, and nothing travels.
    Nowhere {
        _staged: Tensor,
    },
    Device {
        pinned: Pinned,
        staged: Tensor,
        /// On the copy stream: the parcel is on the device.
        arrived: Fence,
        /// On the compute stream: its parts are in their tensors.
        consumed: Fence,
    },
}

impl Feed {
    /// For parcels of up to `bytes` bytes, two of them on their way at once.
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        let slot = || {
            let place = match device.gpu() {
                None => Place::Host(Vec::new()),
                Some(gpu) => {
                    gpu.outside_capture("making a feed", "make it before")?;
                    let staged = Tensor::empty(device, &[bytes.div_ceil(4)])?;
                    match &gpu.session {
                        None => Place::Nowhere { _staged: staged },
                        Some(session) => {
                            let [arrived, consumed] = [Fence::new(gpu)?, Fence::new(gpu)?];
                            // From here on the memory is there, for the copy stream, too.
                            consumed.set(gpu, &session.stream)?;
                            Place::Device { pinned: Pinned::new(gpu, bytes)?, staged, arrived, consumed }
                        }
                    }
                }
            };
            Ok(Slot { parts: Vec::new(), place })
        };
        let slots = (0..SLOTS).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Self { slots, bytes, sent: 0, delivered: 0, device: device.clone() })
    }

    /// How many parcels were sent and not delivered.
    pub fn waiting(&self) -> usize {
        self.sent - self.delivered
    }

    /// Sends a parcel: the bytes of the tensors that [`Feed::deliver`] will write, in their order. Returns when `parts`
    /// may change again, which is before it has arrived.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        let total: usize = parts.iter().map(|p| p.len()).sum();
        if total > self.bytes {
            return Err(refuse(
                "send",
                format!("a parcel of {total} bytes; the feed was made for {}", self.bytes),
            ));
        }
        if self.waiting() == SLOTS {
            return Err(refuse("send", format!("{SLOTS} parcels wait already: deliver one before")));
        }
        let Slot { parts: lengths, place } = &mut self.slots[self.sent % SLOTS];
        *lengths = parts.iter().map(|p| p.len()).collect();
        match (place, self.device.gpu()) {
            (Place::Device { pinned, staged, arrived, consumed }, Some(gpu)) => {
                gpu.outside_capture("sending a parcel", "send it before or after")?;
                let copies = &gpu.bound("sending a parcel")?.copies;
                // The slot's last parcel has left the host; that it has left the stage the copy stream waits for.
                arrived.wait(gpu)?;
                let mut rest = pinned.all_mut();
                for part in parts {
                    let (here, after) = rest.split_at_mut(part.len());
                    here.copy_from_slice(part);
                    rest = after;
                }
                consumed.hold(gpu, copies)?;
                if total > 0 {
                    let (to, from) = (staged.address_mut()?, &pinned.all()[..total]);
                    // SAFETY: the stage has room for a parcel; the pinned bytes stay as they are until `arrived`, which
                    // is waited for before they are written again or freed.
                    unsafe { result::memcpy_htod_async(to, from, copies.cu_stream()) }
                        .map_err(|e| gpu.error("copying a parcel to the device", e))?;
                }
                arrived.set(gpu, copies)?;
            }
            (Place::Host(bytes), _) => *bytes = parts.concat(),
            (Place::Nowhere { .. }, _) => {}
            (Place::Device { .. }, None) => unreachable!("the slot was made for this device"),
        }
        self.sent += 1;
        Ok(())
    }

    /// Writes the oldest parcel's parts into `tensors`, which have their sizes and no other handle. What was asked of
    /// the compute stream before still sees the old values, what is asked later the new ones.
    pub fn deliver(&mut self, tensors: &mut [&mut Tensor]) -> Result<()> {
        if self.waiting() == 0 {
            return Err(refuse("deliver", "no parcel was sent".into()));
        }
        let slot = &self.slots[self.delivered % SLOTS];
        let wanted: Vec<usize> = tensors.iter().map(|t| t.len() * t.dtype().size()).collect();
        if wanted != slot.parts || tensors.iter().any(|t| *t.device() != self.device) {
            let detail = format!("parts of {:?} bytes into {tensors:?}, which take {wanted:?}", slot.parts);
            return Err(refuse("deliver", detail));
        }
        match (&slot.place, self.device.gpu()) {
            (Place::Device { staged, arrived, consumed, .. }, Some(gpu)) => {
                gpu.outside_capture("delivering a parcel", "deliver it before a replay")?;
                let stream = &gpu.bound("delivering a parcel")?.stream;
                let mut from = staged.address();
                let to = tensors.iter_mut().map(|t| t.address_mut()).collect::<Result<Vec<_>>>()?;
                arrived.hold(gpu, stream)?;
                for (to, &bytes) in to.into_iter().zip(&wanted) {
                    // SAFETY: the tensor has as many bytes and no other handle; the stage holds all parts one after the
                    // other, and the stream has waited for them.
                    unsafe { gpu.copy(to, from, bytes) }?;
                    from += bytes as u64;
                }
                consumed.set(gpu, stream)?;
            }
            (Place::Nowhere { .. }, _) => {}
            (Place::Host(all), _) => {
                let mut rest = &all[..];
                for (t, &bytes) in tensors.iter_mut().zip(&wanted) {
                    let (part, after) = rest.split_at(bytes);
                    t.overwrite(part)?;
                    rest = after;
                }
            }
            (Place::Device { .. }, None) => unreachable!("the slot was made for this device"),
        }
        self.delivered += 1;
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let Some(gpu) = self.device.gpu() else { return };
        for slot in &self.slots {
            if let Place::Device { arrived, .. } = &slot.place {
                // The copy stream may still be at it; the compute stream's order holds in the arena.
                let _ = arrived.wait(gpu);
            }
        }
    }
}

fn refuse(doing: &str, detail: String) -> Error {
    Error::shape("feed", format!("{doing}: {detail}"))
}
