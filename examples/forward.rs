//! One forward pass of a FLUX transformer with a LoRA on every row, as diffusers and PEFT compute it.
//!
//! ```sh
//! cargo run --release --example forward -- TRANSFORMER INPUTS.safetensors OUTPUT.safetensors [ADAPTER [RESAVED]]
//! ```
//!
//! TRANSFORMER is whatever [`BaseModel::open`] takes: a diffusers folder, a single file. INPUTS holds `hidden_states` [B, N, C], `encoder_hidden_states` [B, T, joint],
//! `pooled_projections` [B, pooled], `timestep` [B] (σ, in 0…1), `guidance` [B], `img_ids` [N, 3] and `txt_ids` [T, 3];
//! OUTPUT gets `sample` [B, N, C]. ADAPTER is a LoRA, folder or file; RESAVED a folder it is written to once more, in this
//! engine's own layout.

use asasr_engine::autograd::{Tape, Var};
use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::flux::transformer::Inputs;
use asasr_engine::flux::weights::write_safetensors;
use asasr_engine::flux::{Adapter, AdapterFile, BaseModel, Flux, SafeFile};
use asasr_engine::ops::AdapterSet;
use asasr_engine::ops::embed::NoiseLevels;
use asasr_engine::{Error, Result};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [model, inputs, output] => run(model, inputs, output, None, None),
        [model, inputs, output, adapter] => run(model, inputs, output, Some(adapter), None),
        [model, inputs, output, adapter, resaved] => run(model, inputs, output, Some(adapter), Some(resaved)),
        _ => {
            let usage = "forward TRANSFORMER INPUTS.safetensors OUTPUT.safetensors [ADAPTER [RESAVED]]";
            Err(Error::Usage(format!("{} arguments; wanted: {usage}", args.len())))
        }
    };
    done.map(|()| ExitCode::SUCCESS).unwrap_or_else(|e| {
        eprintln!("error: {e}");
        ExitCode::from(e.exit_code())
    })
}

fn run(model: &str, inputs: &str, output: &str, adapter: Option<&str>, resaved: Option<&str>) -> Result<()> {
    let device = Device::cpu();
    let base = BaseModel::open(model)?;
    let config = base.config().clone();
    let weights = base.load(&device, DType::F32, &mut |_, _| ())?;
    let mut adapters = Vec::new();
    if let Some(path) = adapter {
        let file = AdapterFile::load(path, &device)?;
        file.validate(&config)?;
        adapters.push(Adapter::frozen(&file, 1.0));
        if let Some(dir) = resaved {
            file.save(dir)?;
        }
    }
    let file = SafeFile::open(inputs)?;
    let tensor = |name: &str| file.tensor(name, &device);
    let ids = |name: &str| -> Result<Arc<[[f32; 3]]>> {
        let t = tensor(name)?;
        t.expect("forward", name, &[t.len() / 3, 3])?;
        Ok(t.f32().as_chunks::<3>().0.into())
    };
    let sigma = tensor("timestep")?.f32().to_vec();
    let batch = sigma.len();
    let inputs = Inputs {
        img: Var::constant(tensor("hidden_states")?),
        cond: None,
        txt: Var::constant(tensor("encoder_hidden_states")?),
        pooled: Var::constant(tensor("pooled_projections")?),
        same_text: false,
        sigma: NoiseLevels::new(&device, &sigma)?,
        guidance: tensor("guidance")?.f32().to_vec(),
        img_ids: ids("img_ids")?,
        txt_ids: ids("txt_ids")?,
        text_multiplicity: 1.0,
        groups: None,
        adapters: Arc::new(AdapterSet::uniform((0..adapters.len()).collect(), batch)),
        adapt_all: true,
        recompute: false,
    };
    let flux = Flux { config: &config, weights: &weights, adapters: &adapters };
    let sample: Tensor = flux.forward(&Tape::no_grad(), &inputs)?.value().clone();
    write_safetensors(output, &BTreeMap::new(), &[("sample".to_owned(), sample)])
}
