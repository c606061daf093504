//! One whole AS-DPO step on a FLUX with random weights: its gradient against finite differences, and what must not
//! change it: recompute, accumulation, collapsed text, the number of threads, a sample's neighbours.

mod common;

use asasr_engine::autograd::gradcheck::TOLERANCE;
use asasr_engine::autograd::tape::Seen;
use asasr_engine::autograd::{ParamSet, Tape, Var};
use asasr_engine::engine::{Device, Philox, Tensor};
use asasr_engine::flux::params::{Adapter, Weights};
use asasr_engine::flux::transformer::Flux;
use asasr_engine::ops::embed::NoiseLevels;
use asasr_engine::ops::{AdapterSet, random};
use asasr_engine::train::objective::{AsDpo, Mode, Pairs, velocity};
use common::{COLLAPSED, FULL, SMALL, World, error_to_max, grads};

fn world() -> World {
    World::new(&SMALL, &Device::cpu_poisoned()).unwrap()
}

/// The loss of these parameters, from its f32 arguments on in f64.
fn loss_at(w: &World, objective: &AsDpo, params: &mut ParamSet, at: impl Iterator<Item = f64>) -> f64 {
    params.set_masters(&at.map(|v| v as f32).collect::<Vec<_>>()).unwrap();
    let out = w.forward(objective, params, COLLAPSED).unwrap();
    let pairs = w.pairs.sigma_winner.len() as f64;
    out.stats().unwrap().arguments.iter().map(|&a| (-f64::from(a)).exp().ln_1p() / pairs).sum()
}

/// Fourth-order central difference along `d`, whose values move by about ½ % of the parameters' size: a whole model
/// bends more than one op, whose check steps by 4 %.
fn difference(w: &World, objective: &AsDpo, params: &mut ParamSet, start: &[f32], d: &[f64]) -> f64 {
    let moved: Vec<usize> = (0..d.len()).filter(|&i| d[i] != 0.0).collect();
    let size = moved.iter().map(|&i| f64::from(start[i]).powi(2)).sum::<f64>() / moved.len() as f64;
    // How many values of a unit direction really move: 1/Σd⁴, n for one that is even, 1 for a coordinate.
    let even = d.iter().map(|v| v.powi(4)).sum::<f64>().recip();
    let h = 0.005 * (size * even).sqrt();
    let mut at = |k: f64| {
        let moved = start.iter().zip(d).map(|(&p, &d)| f64::from(p) + k * h * d);
        loss_at(w, objective, params, moved)
    };
    (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h)
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn unit(v: &[f64]) -> Vec<f64> {
    let length = norm(v);
    v.iter().map(|v| v / length).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Along the gradient, random directions, coordinates, and the gradient of each parameter tensor by itself. What
/// adapters on the condition add in the last block's query, MLP and output does not reach the velocity: those
/// gradients are exactly 0.
#[test]
fn the_step_agrees_with_finite_differences() {
    let w = world();
    let objective = w.objective(w.beta().unwrap());
    let mut params = w.params().unwrap();
    let start = params.masters().unwrap();
    let out = w.step(&objective, &mut params, &w.pairs, COLLAPSED).unwrap();
    println!(
        "policy − reference: {:.1e} of the largest velocity",
        error_to_max(out.v_policy.f32(), out.v_reference.f32())
    );
    println!("loss {}, arguments {:?}", out.loss.value().item(), out.stats().unwrap().arguments);
    let again = loss_at(&w, &objective, &mut params, start.iter().map(|&v| f64::from(v)));
    assert!((again - f64::from(out.loss.value().item())).abs() < 1e-6 * again);
    let g: Vec<f64> = grads(&params).iter().map(|&v| f64::from(v)).collect();
    let (n, length) = (g.len(), norm(&g));
    let peak = (0..n).max_by(|&a, &b| g[a].abs().total_cmp(&g[b].abs())).unwrap();

    let mut cases = vec![("the gradient".to_owned(), unit(&g), length)];
    for k in 0..3 {
        let mut d = vec![0f32; n];
        Philox::new(13, k).normals(0, &mut d);
        let d: Vec<f64> = d.iter().map(|&v| f64::from(v)).collect();
        cases.push((format!("random direction {k}"), unit(&d), length));
    }
    let mut rng = Philox::new(17, 0).reader();
    for c in std::iter::once(peak).chain((0..8).map(|_| rng.below(n))) {
        let mut d = vec![0.0; n];
        d[c] = 1.0;
        cases.push((format!("coordinate {c}"), d, g[peak].abs()));
    }
    let (mut at, mut dead) = (0, Vec::new());
    for (i, name) in params.names().iter().enumerate() {
        let range = at..at + params.shape(i).iter().product::<usize>();
        at = range.end;
        let own = norm(&g[range.clone()]);
        if own == 0.0 {
            dead.push(name.clone());
            continue;
        }
        let mut d = vec![0.0; n];
        d[range.clone()].copy_from_slice(&unit(&g[range]));
        cases.push((name.clone(), d, own));
    }
    let mut worst = ("", 0.0);
    for (name, d, scale) in &cases {
        let fd = difference(&w, &objective, &mut params, &start, d);
        let error = (fd - dot(&g, d)).abs() / scale;
        println!("{name:<64} {error:.1e}");
        if error.is_nan() || error > worst.1 {
            worst = (name, error);
        }
    }
    println!("worst: {} {:.1e}", worst.0, worst.1);
    assert!(worst.1 < TOLERANCE, "{worst:?}");
    let last = ["attn.to_q", "proj_mlp", "proj_out"]
        .map(|m| ["A", "B"].map(|x| format!("train_dpo.single_transformer_blocks.1.{m}.lora_{x}.weight")));
    assert_eq!(dead, last.concat());
}

#[test]
fn recompute_changes_no_bit() {
    let w = world();
    let objective = w.objective(w.beta().unwrap());
    let run = |recompute: bool| {
        let mut params = w.params().unwrap();
        let out = w.step(&objective, &mut params, &w.pairs, Mode { recompute, ..COLLAPSED }).unwrap();
        (out.loss.value().item().to_bits(), bits(&grads(&params)))
    };
    assert_eq!(run(false), run(true));
}

/// An op that is a composition of smaller ones has their bits: a tape that rewrites takes it apart, and this one leaves
/// everything as it is. Once all weights are trained, once an adapter.
#[test]
fn ops_taken_apart_change_no_bit() {
    let w = world();
    let weight = |(name, shape): (String, Vec<usize>)| {
        let (_, values) = w.weights.iter().find(|(n, _)| *n == name).expect("the config's");
        (name, shape, values.f32().to_vec())
    };
    let base = || ParamSet::new(&w.device, w.config.parameters().into_iter().map(weight).collect()).unwrap();
    let as_it_is = |_: &Seen, t: Tensor| Ok(t);
    let run = |train_base: bool, apart: bool| {
        let mut params = if train_base { base() } else { w.params().unwrap() };
        let weights = if train_base { Weights::trainable(&params) } else { w.weights.clone() };
        let dpo = match train_base {
            true => Adapter::frozen(&w.dpo, 1.0),
            false => Adapter::trainable("train_dpo", 1.0, &params).unwrap(),
        };
        let adapters = [Adapter::frozen(&w.sft, 1.0), dpo];
        let flux = Flux { config: &w.config, weights: &weights, adapters: &adapters };
        let tape = Tape::new(params.leaves());
        let tape = if apart { tape.rewriting(&as_it_is) } else { tape };
        let (x, set) = (Var::constant(w.pairs.winner.clone()), AdapterSet::uniform(vec![0, 1], 2));
        let v = velocity(&flux, &tape, &x, &w.pairs.cond, &w.pairs.sigma_winner, set, COLLAPSED).unwrap();
        tape.backward(&v, Some(random(&w.device, v.value().shape(), 9, 1.0))).unwrap();
        let leaves = tape.into_leaves();
        drop((adapters, weights));
        params.take_back(leaves).unwrap();
        (bits(v.value().f32()), grads(&params).iter().map(|g| g + 0.0).collect::<Vec<f32>>())
    };
    for train_base in [true, false] {
        let ((v, g), (v_apart, g_apart)) = (run(train_base, false), run(train_base, true));
        assert!(v == v_apart && g.iter().any(|&g| g != 0.0));
        assert_eq!(bits(&g), bits(&g_apart));
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let w = world();
            let mut params = w.params().unwrap();
            w.step(&w.objective(w.beta().unwrap()), &mut params, &w.pairs, COLLAPSED).unwrap();
            bits(&grads(&params))
        })
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(5));
}

/// Two micro-batches of one pair: their gradients add in place, and their mean is the batch's. Each value is a sum
/// of a few hundred f32 products taken in another order.
#[test]
fn accumulation_is_the_sum() {
    let w = world();
    let objective = w.objective(w.beta().unwrap());
    let of = |batches: &[&Pairs]| {
        let mut params = w.params().unwrap();
        for pairs in batches {
            w.step(&objective, &mut params, pairs, COLLAPSED).unwrap();
        }
        grads(&params)
    };
    let (a, b) = (slice(&w.pairs, 0), slice(&w.pairs, 1));
    let (ga, gb, both, whole) = (of(&[&a]), of(&[&b]), of(&[&a, &b]), of(&[&w.pairs]));
    let sum: Vec<f32> = ga.iter().zip(&gb).map(|(a, b)| a + b).collect();
    let mean: Vec<f32> = sum.iter().map(|v| 0.5 * v).collect();
    let (in_place, batched) = (error_to_max(&both, &sum), error_to_max(&whole, &mean));
    println!("accumulated against the sum {in_place:.1e}, the batch against the mean {batched:.1e}");
    assert!(in_place < 2e-6 && batched < 2e-6);
}

/// One text token that counts 512 times is 512 equal ones. What differs is the order of f32 sums over the keys, which
/// shows at the end as it does between two ways of summing anywhere: 2e-5 of the largest value (what the golden
/// vectors' recorder measured between f32 and f64).
#[test]
fn one_text_token_stands_for_512() {
    let w = world();
    let objective = w.objective(w.beta().unwrap());
    let run = |mode| {
        let mut params = w.params().unwrap();
        let out = w.step(&objective, &mut params, &w.pairs, mode).unwrap();
        (out, grads(&params))
    };
    let ((one, g_one), (all, g_all)) = (run(COLLAPSED), run(FULL));
    let v = error_to_max(one.v_policy.f32(), all.v_policy.f32());
    let loss = f64::from((one.loss.value().item() - all.loss.value().item()).abs());
    let g = error_to_max(&g_one, &g_all);
    println!("velocity {v:.1e}, LoRA gradients {g:.1e} of their largest value; loss {loss:.1e}");
    assert!(v < 2e-5 && g < 2e-5 && loss < 2e-5, "velocity {v:.1e}, gradients {g:.1e}, loss {loss:.1e}");
}

/// A sample alone, and at each place among three, whose other samples use other adapters and noise levels.
#[test]
fn neighbours_change_no_bit() {
    let w = world();
    let adapters = [&w.sft, &w.dpo, &w.adv].map(|f| Adapter::frozen(f, 1.0));
    let flux = Flux { config: &w.config, weights: &w.weights, adapters: &adapters };
    let mine = vec![0, 1];
    let run = |order: &[usize], set: AdapterSet, mode: Mode| -> Tensor {
        let all =
            [&w.pairs.winner, &w.pairs.loser].map(|t| [0, 1].map(|i| t.rows(i..i + 1).unwrap())).concat();
        let conds = [0, 1, 1, 0].map(|i| w.pairs.cond.rows(i..i + 1).unwrap());
        let x = Tensor::stack(&order.iter().map(|&i| &all[i]).collect::<Vec<_>>()).unwrap();
        let cond = Tensor::stack(&order.iter().map(|&i| &conds[i]).collect::<Vec<_>>()).unwrap();
        let sigma: Vec<f32> = order.iter().map(|&i| 0.2 + 0.2 * i as f32).collect();
        let levels = NoiseLevels::new(cond.device(), &sigma).unwrap();
        let v = velocity(&flux, &Tape::no_grad(), &Var::constant(x), &cond, &levels, set, mode).unwrap();
        v.value().clone()
    };
    for mode in [COLLAPSED, FULL] {
        let alone = run(&[0], AdapterSet::uniform(mine.clone(), 1), mode);
        for (order, at) in [([0, 1, 2], 0), ([3, 0, 1], 1), ([2, 1, 0], 2)] {
            let sets = |other: &[usize]| {
                let of = |i: usize| if i == at { mine.clone() } else { other.to_vec() };
                AdapterSet::runs(&[(of(0), 1), (of(1), 1), (of(2), 1)])
            };
            for set in [AdapterSet::uniform(mine.clone(), 3), sets(&[0, 2]), sets(&[])] {
                let v = run(&order, set.clone(), mode);
                let here = v.rows(at..at + 1).unwrap();
                assert_eq!(bits(here.f32()), bits(alone.f32()), "{order:?} {set:?} {mode:?}");
            }
        }
    }
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// One pair of a batch.
fn slice(p: &Pairs, i: usize) -> Pairs {
    let row = |t: &Tensor| t.rows(i..i + 1).unwrap();
    let level = |l: &NoiseLevels| NoiseLevels { sigma: row(&l.sigma), embedding: row(&l.embedding) };
    Pairs {
        winner: row(&p.winner),
        loser: row(&p.loser),
        cond: row(&p.cond),
        noise_winner: row(&p.noise_winner),
        noise_loser: row(&p.noise_loser),
        sigma_winner: level(&p.sigma_winner),
        sigma_loser: level(&p.sigma_loser),
    }
}
