//! What the transformer computes with: base weights and adapters by module name, frozen or bound to trainable leaves.

use super::lora::AdapterFile;
use super::modulation::{Levels, ModulationTable};
use crate::autograd::{LeafId, ParamSet, Tape, Var};
use crate::engine::{DType, Device, Tensor};
use crate::ops::cast;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// The base weights, named as in diffusers' `FluxTransformer2DModel`. f32 or bf16 each: the tensor's dtype is the seam
/// for other storage formats, and `Linear` is the only op that reads it.
#[derive(Clone)]
pub struct Weights {
    map: Arc<HashMap<String, (Tensor, Option<LeafId>)>>,
    activations: DType,
    levels: Levels,
}

impl Weights {
    /// Frozen weights for passes whose activations are of `activations`, in which their matrices are already.
    pub(super) fn of(tensors: Vec<(String, Tensor)>, activations: DType) -> Self {
        let map = tensors.into_iter().map(|(name, tensor)| (name, (tensor, None))).collect();
        Self { map: Arc::new(map), activations, levels: Levels::Sinusoid }
    }

    /// Without those that `gone` names.
    pub(super) fn without(&self, gone: impl Fn(&str) -> bool) -> Self {
        let kept = self.map.iter().filter(|(name, _)| !gone(name));
        let map = kept.map(|(name, entry)| (name.clone(), entry.clone())).collect();
        Self { map: Arc::new(map), ..self.clone() }
    }

    /// With `table` for what it replaces.
    pub(super) fn with_levels(self, table: ModulationTable) -> Self {
        Self { levels: Levels::Table(Arc::new(table)), ..self }
    }

    /// What the model is given of noise levels.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// Refuses activations that `device`, on which `what` is, cannot compute in.
    pub(super) fn expect_possible(activations: DType, device: &Device, what: &str) -> Result<()> {
        if activations == DType::Bf16 && device.gpu().is_none() {
            return Err(Error::Usage(format!(
                "bf16 activations are for CUDA devices, {what} is on {device:?}: use f32 there"
            )));
        }
        Ok(())
    }

    /// Views of trainable parameters; drop them before the optimizer writes.
    pub fn trainable(params: &ParamSet) -> Self {
        let entry = |(i, name): (usize, &String)| (name.clone(), (params.master(i), Some(LeafId(i))));
        let map = Arc::new(params.names().iter().enumerate().map(entry).collect());
        Self { map, activations: DType::F32, levels: Levels::Sinusoid }
    }

    /// Weights whose gradients go to the first leaves of a tape, in this order: without a [`ParamSet`], which has room for
    /// moments besides.
    pub(crate) fn leaves(tensors: Vec<(String, Tensor)>) -> Self {
        let entry = |(i, (name, tensor))| (name, (tensor, Some(LeafId(i))));
        let map = Arc::new(tensors.into_iter().enumerate().map(entry).collect());
        Self { map, activations: DType::F32, levels: Levels::Sinusoid }
    }

    /// Copies of parameters that will not train any more.
    pub fn frozen(device: &Device, params: &ParamSet) -> Result<Self> {
        let mut map = HashMap::new();
        for (i, name) in params.names().iter().enumerate() {
            let view = params.master(i);
            map.insert(name.clone(), (view.to(device)?.copied()?, None));
        }
        Ok(Self { map: Arc::new(map), activations: DType::F32, levels: Levels::Sinusoid })
    }

    /// The same weights for a pass whose activations, but for the residual stream, are of `dtype`. bf16 is for CUDA devices;
    /// frozen matrices become bf16 then, parameters stay what they are.
    pub fn computing_in(self, dtype: DType) -> Result<Self> {
        let mut map = HashMap::with_capacity(self.map.len());
        for (name, (tensor, leaf)) in self.map.iter() {
            let halved = dtype == DType::Bf16 && leaf.is_none() && tensor.shape().len() == 2;
            Self::expect_possible(dtype, tensor.device(), name)?;
            let tensor = if halved { cast::to(tensor, dtype)? } else { tensor.clone() };
            map.insert(name.clone(), (tensor, *leaf));
        }
        Ok(Self { map: Arc::new(map), activations: dtype, levels: self.levels })
    }

    /// The dtype of activations beside the residual stream, which is f32.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// The weight `name` as a variable of `tape`.
    pub fn var(&self, tape: &Tape, name: &str) -> Result<Var> {
        let (tensor, leaf) = self.map.get(name).ok_or_else(|| {
            Error::Usage(format!("the model has no weight {name}: the weights do not fit the config"))
        })?;
        Ok(bind(tape, tensor, *leaf))
    }

    /// Name and tensor of every weight.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.map.iter().map(|(n, (t, _))| (n.as_str(), t))
    }
}

fn bind(tape: &Tape, tensor: &Tensor, leaf: Option<LeafId>) -> Var {
    match leaf {
        Some(id) => tape.param(tensor.clone(), id),
        None => Var::constant(tensor.clone()),
    }
}

#[derive(Clone)]
struct Factors {
    scale: f32,
    a: Tensor,
    b: Tensor,
    leaves: Option<(LeafId, LeafId)>,
}

/// A LoRA adapter: `scale·B·A` per module.
#[derive(Clone)]
pub struct Adapter {
    /// Its name, as in the reference (`base_sft`, `train_dpo`, `adv`).
    pub name: String,
    factors: HashMap<String, Factors>,
}

impl Adapter {
    /// A frozen adapter from its file, every module weighted by `alpha/r` and `strength` on top.
    pub fn frozen(file: &AdapterFile, strength: f32) -> Self {
        let factors = file
            .modules
            .iter()
            .map(|(name, m)| {
                let f =
                    Factors { scale: m.scaling() * strength, a: m.a.clone(), b: m.b.clone(), leaves: None };
                (name.clone(), f)
            })
            .collect();
        Self { name: file.name.clone(), factors }
    }

    /// Views of the trainable parameters `<name>.<module>.lora_A.weight` and `…lora_B.weight`, weighted by `scale`;
    /// drop the adapter before the optimizer writes.
    pub fn trainable(name: &str, scale: f32, params: &ParamSet) -> Result<Self> {
        let mut factors = HashMap::new();
        for full in params.names() {
            let Some(module) = full.strip_prefix(name).and_then(|n| n.strip_prefix('.')) else { continue };
            let Some(module) = module.strip_suffix(".lora_A.weight") else { continue };
            let find = |half: &str| {
                let full = format!("{name}.{module}.{half}.weight");
                params.find(&full).ok_or_else(|| Error::Usage(format!("adapter {name} lacks {full}")))
            };
            let (a, b) = (find("lora_A")?, find("lora_B")?);
            let f = Factors { scale, a: params.master(a.0), b: params.master(b.0), leaves: Some((a, b)) };
            factors.insert(module.to_owned(), f);
        }
        Ok(Self { name: name.to_owned(), factors })
    }

    /// Scale, A and B on `module`, if the adapter acts there.
    pub(super) fn on(&self, tape: &Tape, module: &str) -> Option<(f32, Var, Var)> {
        let f = self.factors.get(module)?;
        let (a, b) = (f.leaves.map(|l| l.0), f.leaves.map(|l| l.1));
        Some((f.scale, bind(tape, &f.a, a), bind(tape, &f.b, b)))
    }
}

/// Trainable parameters that start as the adapters in `files`, under the names [`Adapter::trainable`] looks for.
pub fn adapter_params(device: &Device, files: &[&AdapterFile]) -> Result<ParamSet> {
    let mut params = Vec::new();
    for file in files {
        for (module, m) in &file.modules {
            for (half, t) in [("lora_A", &m.a), ("lora_B", &m.b)] {
                params.push((
                    format!("{}.{module}.{half}.weight", file.name),
                    t.shape().to_vec(),
                    t.values()?,
                ));
            }
        }
    }
    ParamSet::new(device, params)
}
