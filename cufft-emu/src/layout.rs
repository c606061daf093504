//! Where a plan's values lie in device memory: the runs of consecutive values, in the order of a dense array.

use std::ffi::c_int;

use crate::error::{Answer, Code};
use crate::transform::Kind;

/// Consecutive values, complex or real: the first one's place, and how many.
pub type Run = (usize, usize);

/// The most elements that one array may span: what an address can hold is far more, what a host can is not.
const MOST: usize = 1 << 40;

/// One side's advanced layout, as `cufftPlanMany` takes it.
pub struct Embedding {
    pub embed: Vec<usize>,
    pub stride: usize,
    pub distance: usize,
}

/// One side of a plan.
pub struct Side {
    /// Its runs, in f32 values.
    pub runs: Vec<Run>,
    /// Its runs if both sides are one array, where that differs: real rows are padded to their spectrum's length.
    pub in_place: Option<Vec<Run>>,
    /// Its f32 values.
    pub values: usize,
}

impl Side {
    /// The runs, if both sides are one array or not.
    pub fn runs(&self, in_place: bool) -> &[Run] {
        self.in_place.as_deref().filter(|_| in_place).unwrap_or(&self.runs)
    }
}

/// A size, stride or distance: positive.
pub fn positive(value: c_int, code: Code) -> Answer<usize> {
    usize::try_from(value).ok().filter(|&value| value > 0).ok_or(code)
}

/// A side of `batch` arrays of the given dimensions.
fn side(dims: &[usize], width: usize, batch: usize, embedding: &Embedding) -> Answer<Vec<Run>> {
    let Embedding { embed, stride, distance } = embedding;
    let last = *dims.last().ok_or(Code::InvalidSize)?;
    let rows: usize = dims[..dims.len() - 1].iter().product();
    let spans = embed[1..]
        .iter()
        .try_fold(*stride, |all, &n| all.checked_mul(n))
        .and_then(|all| all.checked_mul(dims[0]));
    let whole = spans.zip(distance.checked_mul(batch)).and_then(|(one, all)| one.checked_add(all));
    whole.filter(|&whole| whole <= MOST).ok_or(Code::InvalidSize)?;
    let mut runs: Vec<Run> = Vec::new();
    let mut push = |place: usize, count: usize| match runs.last_mut() {
        Some((start, length)) if *start + *length == place => *length += count,
        _ => runs.push((place, count)),
    };
    for array in 0..batch {
        for row in 0..rows {
            // The row's indices, innermost last, folded with the embedding's dimensions.
            let (mut rest, mut place, mut weight) = (row, 0, embed[dims.len() - 1]);
            for axis in (0..dims.len() - 1).rev() {
                place += rest % dims[axis] * weight;
                rest /= dims[axis];
                weight *= embed[axis];
            }
            let place = array * distance + place * stride;
            if *stride == 1 {
                push(place * width, last * width);
            } else {
                (0..last).for_each(|index| push((place + index * stride) * width, width));
            }
        }
    }
    Ok(runs)
}

/// The input and the output of a plan. No embedding means cuFFT's basic layout.
pub fn sides(kind: Kind, n: &[usize], batch: usize, embeddings: Option<[Embedding; 2]>) -> Answer<[Side; 2]> {
    let half: Vec<usize> = n[..n.len() - 1].iter().copied().chain([n[n.len() - 1] / 2 + 1]).collect();
    let padded: Vec<usize> = n[..n.len() - 1].iter().copied().chain([2 * half[n.len() - 1]]).collect();
    let dims = match kind {
        Kind::C2C => [(n, 2), (n, 2)],
        Kind::R2C => [(n, 1), (&half[..], 2)],
        Kind::C2R => [(&half[..], 2), (n, 1)],
    };
    let basic = |dims: &[usize]| {
        let product = dims.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).ok_or(Code::InvalidSize);
        product.map(|distance| Embedding { embed: dims.to_vec(), stride: 1, distance })
    };
    let [first, second] = match embeddings {
        Some([first, second]) => [Some(first), Some(second)],
        None => [None, None],
    };
    let make = |(dims, width): (&[usize], usize), embedding: Option<Embedding>| {
        let in_place = match embedding {
            None if width == 1 => Some(side(dims, width, batch, &basic(&padded)?)?),
            _ => None,
        };
        let runs = side(dims, width, batch, &embedding.map_or_else(|| basic(dims), Ok)?)?;
        let values = runs.iter().map(|run| run.1).sum();
        Ok(Side { runs, in_place, values })
    };
    Ok([make(dims[0], first)?, make(dims[1], second)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basic_layout_is_one_run() {
        let [input, output] = sides(Kind::R2C, &[3, 4], 5, None).unwrap();
        assert_eq!((input.runs, input.values), (vec![(0, 60)], 60));
        assert_eq!(output.runs, [(0, 5 * 3 * 3 * 2)]);
        assert_eq!(input.in_place.unwrap()[..2], [(0, 4), (6, 4)]);
    }

    #[test]
    fn an_embedding_leaves_gaps() {
        let wide = || Embedding { embed: vec![9, 5], stride: 1, distance: 20 };
        let thin = Embedding { embed: vec![9, 3], stride: 2, distance: 100 };
        let [input, output] = sides(Kind::C2C, &[2, 3], 2, Some([wide(), thin])).unwrap();
        assert_eq!(input.runs, [(0, 6), (10, 6), (40, 6), (50, 6)]);
        assert_eq!(output.runs[..4], [(0, 2), (4, 2), (8, 2), (12, 2)]);
        assert_eq!(output.runs[6], (200, 2));
    }

    #[test]
    fn what_no_memory_holds_is_refused() {
        assert!(sides(Kind::C2C, &[1 << 31, 1 << 31, 1 << 31], 1, None).is_err());
    }
}
