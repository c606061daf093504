//! A table in the place of modulation's layers: an AS-DPO step with adapters on those layers has the same bits, on every
//! device, and what the table was not made for is refused.

mod common;

use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::flux::Weights;
use asasr_engine::flux::modulation::{Known, Levels};
use asasr_engine::flux::schedule::known_sigmas;
use asasr_engine::train::objective::{Mode, Pairs};
use common::{COLLAPSED, SMALL, World, cuda, grads};

/// σ of training, and of a sampler.
fn sigmas() -> [Vec<f32>; 2] {
    let last = known_sigmas(3, 16);
    [vec![0.001, 1.0], vec![last[1001], 0.732]]
}

/// A batch of two at those.
fn pairs(w: &World, weights: &Weights) -> Pairs {
    let two = |t: &Tensor| t.leading(2);
    let [winner, loser] = sigmas().map(|s| weights.levels().of(&w.device, &s).unwrap());
    let p = &w.pairs;
    Pairs {
        winner: two(&p.winner),
        loser: two(&p.loser),
        cond: two(&p.cond),
        noise_winner: two(&p.noise_winner),
        noise_loser: two(&p.noise_loser),
        sigma_winner: winner,
        sigma_loser: loser,
    }
}

/// The velocities and the adapter's gradient of a step.
fn step(device: &Device, dtype: DType, tabulated: bool, recompute: bool) -> [Vec<u32>; 2] {
    let mut w = World::new(&SMALL, device).unwrap();
    w.weights = w.weights.computing_in(dtype).unwrap();
    if tabulated {
        let whole = w.weights.iter().count();
        w.weights = w.weights.tabulated(&w.config, device, &Known::unprompted(known_sigmas(3, 16))).unwrap();
        assert!(w.weights.iter().count() + 2 * w.config.modulations().len() < whole);
    }
    let (mut params, pairs) = (w.params().unwrap(), pairs(&w, &w.weights));
    let mode = Mode { recompute, ..COLLAPSED };
    let out = w.step(&w.objective(30.0), &mut params, &pairs, mode).unwrap();
    let bits = |values: Vec<f32>| values.iter().map(|v| v.to_bits()).collect();
    [bits(out.v_policy.values().unwrap()), bits(grads(&params))]
}

#[test]
fn a_table_changes_no_bit() {
    let devices = [Some(Device::cpu_poisoned()), cuda::device()];
    for device in devices.into_iter().flatten() {
        let dtypes = [DType::F32, DType::Bf16].into_iter().take(if device.gpu().is_some() { 2 } else { 1 });
        for dtype in dtypes {
            let want = step(&device, dtype, false, false);
            for recompute in [false, true] {
                assert!(step(&device, dtype, true, recompute) == want, "{device:?} {dtype:?} {recompute}");
            }
        }
    }
}

#[test]
fn what_the_table_was_not_made_for_is_refused() {
    let w = World::new(&SMALL, &Device::cpu()).unwrap();
    let table = w.weights.tabulated(&w.config, &w.device, &Known::unprompted(vec![0.5])).unwrap();
    let Levels::Table(_) = table.levels() else { panic!("there is none") };
    assert!(table.levels().rows(&[0.5, 0.0]).is_ok());
    let e = table.levels().rows(&[0.5, 0.25]).unwrap_err().to_string();
    assert!(e.contains("σ = 0.25 is none of the 2 noise levels"), "{e}");
    // The sinusoids of a model without one.
    let (mut params, pairs) = (w.params().unwrap(), pairs(&w, &w.weights));
    let w = World { weights: table, ..w };
    let e = w.step(&w.objective(30.0), &mut params, &pairs, COLLAPSED).err().unwrap().to_string();
    assert!(e.contains("the rows of the noise levels"), "{e}");
}
