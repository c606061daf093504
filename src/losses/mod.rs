//! The objectives: one formula per file.
//!
//! Responsible for what is optimised: the noised sample and its target velocity, the preference loss on energy gaps, the
//! closed-form negative. Computes on tensors and gaps with the ops below. Must not know the model, the adapters, the
//! data or the optimizer, and keeps no state between steps.

pub mod anchor;
pub mod dpo;
pub mod flow_matching;
pub mod riesz;

use crate::engine::Device;
use crate::ops::Case;

/// The cases of the losses that are ops.
pub fn cases(device: &Device) -> Vec<Case> {
    [dpo::cases(device), anchor::cases(device)].into_iter().flatten().collect()
}
