//! Where and in what arithmetic a fixture is computed: the engine's on a device, or a naive bf16 implementation's, which
//! is what the engine's bf16 is measured by.

use super::fixture::Fixture;
use crate::Result;
use crate::autograd::tape::Rewrite;
use crate::autograd::{ParamSet, Tape};
use crate::engine::{DType, Device};
use crate::flux::base::BaseModel;
use crate::flux::config::FluxConfig;
use crate::flux::lora::AdapterFile;
use crate::flux::params::{Adapter, Weights};
use crate::flux::rounding::{
    Class, NAIVE, rounded, rounded_adapter, rounded_matrices, rounding, with_rounded,
};
use crate::flux::transformer::Flux;

/// What the naive implementations that bf16 is measured by do not round. None rounds velocities and energies: where those
/// are bf16 a small gap is lost, which looks like an error no larger than the gap. What one is off by in a single number is
/// a draw of a rounding noise, and by chance may be next to nothing; so there are several, each sparing something else
/// besides and so no less exact, and the root mean square of their errors counts.
pub(super) const SPARED: [&[Class]; 6] = [
    &[],
    &[Class::Input, Class::Table],
    &[Class::Normed],
    &[Class::Projected],
    &[Class::Rotated, Class::Attended],
    &[Class::Hidden],
];

/// One way to compute a fixture.
pub(super) struct Run<'r> {
    pub device: &'r Device,
    arithmetic: Arithmetic,
}

enum Arithmetic {
    /// The device's, its activations of this dtype.
    Engine(DType),
    /// f32 on the CPU, rounded to bf16 in what is of these classes.
    Naive(Vec<Class>),
}
use Arithmetic::*;

impl<'r> Run<'r> {
    /// The engine's way.
    pub fn engine(device: &'r Device, dtype: DType) -> Self {
        Self { device, arithmetic: Engine(dtype) }
    }

    /// The naive way but for velocities, energies and what is of the classes `spared`.
    pub fn naive(cpu: &'r Device, spared: &[Class]) -> Self {
        let wide = |c: &Class| matches!(c, Class::Velocity | Class::Energy) || spared.contains(c);
        let rounds = NAIVE.iter().copied().filter(|c| !wide(c)).collect();
        Self { device: cpu, arithmetic: Naive(rounds) }
    }

    /// A frozen adapter.
    pub fn frozen(&self, file: &AdapterFile, strength: f32) -> Result<Adapter> {
        Ok(match self.arithmetic {
            Engine(_) => Adapter::frozen(file, strength),
            Naive(_) => Adapter::frozen(&rounded_adapter(file)?, strength),
        })
    }

    /// Frozen weights, their matrices as a model that is published has them.
    pub fn published(&self, weights: Weights) -> Result<Weights> {
        match self.arithmetic {
            Engine(_) => Ok(weights),
            Naive(_) => rounded_matrices(&weights, self.device),
        }
    }

    /// The values of a weight that is trained.
    pub fn trained(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Naive(_) = self.arithmetic {
            values.iter_mut().for_each(|v| *v = rounded(*v));
        }
        values
    }

    /// A pass that trains `params`.
    pub fn train<T>(
        &self,
        params: &mut ParamSet,
        pass: impl FnOnce(&mut ParamSet) -> Result<T>,
    ) -> Result<T> {
        match self.arithmetic {
            Engine(_) => pass(params),
            Naive(_) => with_rounded(params, pass),
        }
    }
}

/// A fixture's model, to be computed one way.
pub(super) struct Model {
    pub config: FluxConfig,
    weights: Weights,
    rewrite: Option<Box<Rewrite<'static>>>,
}

impl Model {
    /// With the recorded weights, frozen.
    pub fn open(f: &Fixture, run: &Run) -> Result<Self> {
        let base = BaseModel::open(f.model_dir())?;
        let (config, weights) = (base.config().clone(), base.load(run.device, DType::F32, &mut |_, _| ())?);
        Self::of(config, run.published(weights)?, run)
    }

    /// With these weights.
    pub fn of(config: FluxConfig, weights: Weights, run: &Run) -> Result<Self> {
        let (weights, rewrite) = match &run.arithmetic {
            Engine(dtype) => (weights.computing_in(*dtype)?, None),
            Naive(rounds) => (weights, Some(rounding(&config, rounds))),
        };
        Ok(Self { config, weights, rewrite })
    }

    pub fn flux<'a>(&'a self, adapters: &'a [Adapter]) -> Flux<'a> {
        Flux { config: &self.config, weights: &self.weights, adapters }
    }

    /// `tape`, for what is computed with this model.
    pub fn on<'a>(&'a self, tape: Tape<'a>) -> Tape<'a> {
        match &self.rewrite {
            Some(f) => tape.rewriting(f),
            None => tape,
        }
    }
}
