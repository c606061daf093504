//! The model: FLUX with a condition branch, adapter files, weights, schedules, sampler.
