//! The layer's own products: `kernels/linear.cu` (bf16) and `kernels/linear_f32.cu`.

use super::super::super::embed::RopeTable;
use super::super::super::modulate::launch::Tables;
use super::super::super::qk_norm_rope::launch::{angle_bytes, angles};
use super::super::super::{cuda, expect_dtypes};
use super::OP;
use super::lora::Adapted;
use crate::engine::cuda::{Gpu, Launch};
use crate::engine::{DType, Tensor, kernels};
use crate::{Error, Result};
use bytemuck::{NoUninit, Zeroable};
use std::ops::Range;

/// Rows and columns of a tile.
const TILE: usize = 128;
/// What a tile of bf16 advances by along k.
pub const DEPTH: usize = 32;

/// `Problem` of the source: extents, distances of rows, whether to add.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct Problem {
    m: i32,
    n: i32,
    k: i32,
    lda: i32,
    ldb: i32,
    ldc: i32,
    accumulate: i32,
}

impl Problem {
    pub fn new([m, n, k]: [usize; 3], [lda, ldb, ldc]: [usize; 3], accumulate: bool) -> Result<Self> {
        let int = |n| cuda::int(OP, n);
        let (m, n, k, lda, ldb, ldc) = (int(m)?, int(n)?, int(k)?, int(lda)?, int(ldb)?, int(ldc)?);
        Ok(Self { m, n, k, lda, ldb, ldc, accumulate: i32::from(accumulate) })
    }
}

/// One matrix in one tensor or two, which have its columns one after the other.
#[derive(Clone, Copy)]
pub struct Joined<'a>(pub &'a [Tensor]);

/// `Joined` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct Given {
    tensors: [u64; 2],
    columns: [i32; 2],
}

impl Joined<'_> {
    pub fn width(&self) -> usize {
        self.0.iter().map(Tensor::width).sum()
    }
    pub fn dtype(&self) -> DType {
        self.0[0].dtype()
    }
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|t| t.len() * t.dtype().size()).sum()
    }
    /// Whether every row begins on 16 bytes, in either tensor.
    pub fn whole(&self) -> bool {
        self.0.iter().all(|t| t.width().is_multiple_of(8) && t.address().is_multiple_of(16))
    }
    pub fn given(&self, gpu: &Gpu) -> Result<Given> {
        let (mut tensors, mut columns) = ([0; 2], [0; 2]);
        for (i, t) in self.0.iter().enumerate() {
            (tensors[i], columns[i]) = (gpu.address(t)?, cuda::int(OP, t.width())?);
        }
        Ok(Given { tensors, columns })
    }
}

/// What is multiplied.
pub enum Operand<'a> {
    /// Columns of a matrix.
    Columns(&'a Tensor, Range<usize>),
    /// x, in one tensor or two.
    X(Joined<'a>),
}

impl<'a> Operand<'a> {
    pub fn whole(t: &'a Tensor) -> Self {
        Self::Columns(t, 0..t.width())
    }
    fn dtype(&self) -> DType {
        match self {
            Self::Columns(t, _) => t.dtype(),
            Self::X(x) => x.dtype(),
        }
    }
    /// From row to row.
    fn stride(&self) -> usize {
        match self {
            Self::Columns(t, _) => t.width(),
            Self::X(x) => x.width(),
        }
    }
    /// Whether every row begins on 16 bytes.
    fn aligned(&self) -> bool {
        match self {
            Self::Columns(t, columns) => {
                Joined(std::slice::from_ref(*t)).whole() && columns.start.is_multiple_of(8)
            }
            Self::X(x) => x.whole(),
        }
    }
    /// As the kernels' argument.
    fn give<'l>(&self, gpu: &Gpu, launch: Launch<'l>) -> Result<Launch<'l>> {
        Ok(match self {
            Self::Columns(t, columns) => {
                let (size, rows) = (t.dtype().size(), t.len() / t.width().max(1));
                let launch = launch.value(gpu.address(t)? + (columns.start * size) as u64);
                launch.moves(rows * columns.len() * size)
            }
            Self::X(x) => launch.value(x.given(gpu)?).moves(x.bytes()),
        })
    }
}

/// `Floats` of the source: numbers of either dtype, or none.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct Floats {
    at: u64,
    f32: i32,
    unused: i32,
}

impl Floats {
    pub fn new(gpu: &Gpu, t: Option<&Tensor>) -> Result<Self> {
        let at = t.map_or(Ok(0), |t| gpu.address(t))?;
        Ok(Self { at, f32: i32::from(t.is_some_and(|t| t.dtype() == DType::F32)), unused: 0 })
    }
}

/// `Residual` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Residual {
    z: u64,
    resid: u64,
    tables: Tables,
    tokens: i32,
    chunk: i32,
}

/// `NormRope` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct NormRope {
    z: u64,
    weight: u64,
    angles: [u64; 2],
    norms: u64,
    tokens: i32,
    pairs: i32,
}

/// What happens to z before it is stored as y, and where z is kept, if it is.
pub enum After<'a> {
    Nothing,
    Gelu(Option<&'a mut Tensor>),
    /// GELU′ of this, in backward.
    Slope(&'a Tensor),
    /// The angles, the norm's weight.
    NormRope(Option<&'a mut Tensor>, &'a RopeTable, &'a Tensor),
    /// The residual, and where there is a gate: its tables, the tokens of a sample, its chunk, the bytes that are read.
    Residual(Option<&'a mut Tensor>, &'a Tensor, Option<(Tables, usize, usize, usize)>),
}

/// C = A·B (+ bias) with the adapters' part. Extents as the source has them; rows are contiguous.
pub struct Product<'a> {
    /// Of the kernel, without what follows from the rest.
    pub name: &'static str,
    /// m, n, k.
    pub extents: [usize; 3],
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    pub bias: Option<&'a Tensor>,
    pub adapted: Option<Adapted>,
}

impl Product<'_> {
    /// Launches it. A narrow A with an f32 result of forward takes the kernel that is `wide`.
    pub fn run(&self, gpu: &Gpu, c: &mut Tensor, accumulate: bool, after: After) -> Result<()> {
        let Self { extents: [m, n, k], a, b, bias, .. } = self;
        let (m, n, k, bias) = (*m, *n, *k, *bias);
        let dtype = a.dtype();
        let source = if dtype == DType::F32 { "linear_f32.cu" } else { "linear.cu" };
        let part = match after {
            After::Nothing => "",
            After::Gelu(_) | After::Slope(_) => "_gelu",
            After::NormRope(..) => "_rope",
            After::Residual(..) => "_resid",
        };
        let forward = self.name == "linear_fwd";
        let wide = if forward && dtype != c.dtype() { "_wide" } else { "" };
        let any = if dtype == DType::Bf16 && !self.whole(c, &after) { "_any" } else { "" };
        let name = format!("{}{part}{wide}{any}_{}", self.name, dtype.name());
        let kernel = gpu.kernel(source, &name)?;
        let tiled = |n: usize, by: usize| n.next_multiple_of(by);
        // f32 does without tensor cores.
        let flops = match dtype {
            DType::Bf16 => 2 * tiled(n, TILE) * (tiled(m, TILE) * tiled(k, DEPTH) + self.extra_depth()),
            DType::F32 => 0,
        };
        let shared = kernels::dynamic_shared(kernels::text(source)?, &name) as usize;
        let launch = gpu.launch(&kernel, [m.div_ceil(TILE) * n.div_ceil(TILE), 1, 1], 256).shared(shared);
        let launch = b
            .give(gpu, a.give(gpu, launch)?)?
            .value(Floats::new(gpu, bias)?)
            .moves(bias.map_or(0, |t| t.len() * t.dtype().size()))
            .write_or_add(c, accumulate)
            .multiplies(flops);
        let bytes = |t: &Tensor| t.len() * t.dtype().size();
        let launch = match after {
            After::Nothing => launch,
            After::Gelu(z) => launch.write_or_null(z),
            After::Slope(z) => launch.read(z),
            After::NormRope(z, table, w) => {
                expect_dtypes(OP, DType::F32, &[w])?;
                let moved = z.as_deref().map_or(0, bytes) + bytes(w) + angle_bytes(table);
                let e = NormRope {
                    z: z.map_or(Ok(0), Tensor::address_mut)?,
                    weight: gpu.address(w)?,
                    angles: angles(gpu, table)?,
                    norms: 0,
                    tokens: cuda::int(OP, table.cos.len() / table.half.max(1))?,
                    pairs: cuda::int(OP, table.half)?,
                };
                launch.value(e).moves(moved)
            }
            After::Residual(z, resid, gate) => {
                let moved = bytes(resid) + z.as_deref().map_or(0, bytes) + gate.map_or(0, |g| g.3);
                let (tables, tokens, chunk, _) = gate.unwrap_or((Tables::zeroed(), 1, 0, 0));
                let e = Residual {
                    z: z.map_or(Ok(0), Tensor::address_mut)?,
                    resid: gpu.address(resid)?,
                    tables,
                    tokens: cuda::int(OP, tokens)?,
                    chunk: cuda::int(OP, chunk)?,
                };
                launch.value(e).moves(moved)
            }
        };
        let launch = match &self.adapted {
            Some(adapted) => launch.value(adapted.extra(gpu)?).moves(adapted.bytes()),
            None => launch.value([0u64; 5]),
        };
        launch.value(Problem::new([m, n, k], [a.stride(), b.stride(), n], accumulate)?).run()
    }

    /// Whether a kernel's tile holds whole heads of this width, and there is a kernel for these rows.
    pub fn holds_heads(&self, c: &Tensor, width: usize) -> bool {
        let fits = matches!(width, 16 | 32 | 64 | 128);
        fits && (self.a.dtype() == DType::F32 || self.whole(c, &After::Nothing))
    }

    /// Whether there is a kernel that multiplies with GELU′(z) on the way to C.
    pub fn has_slope(&self, c: &Tensor, z: &Tensor) -> bool {
        self.a.dtype() == DType::F32 || self.whole(c, &After::Slope(z))
    }

    /// Whether every row begins on 16 bytes, and C's pairs on theirs.
    fn whole(&self, c: &Tensor, after: &After) -> bool {
        let on = |t: &Tensor, bytes: u64| t.address().is_multiple_of(bytes);
        let beside = match after {
            After::Nothing => true,
            After::Slope(z) => on(z, 4),
            After::Gelu(z) | After::NormRope(z, ..) => z.as_deref().is_none_or(|z| on(z, 4)),
            After::Residual(z, resid, _) => z.as_deref().is_none_or(|z| on(z, 4)) && on(resid, 8),
        };
        let extra = self.adapted.as_ref().is_none_or(Adapted::whole);
        self.a.aligned()
            && self.b.aligned()
            && self.extents[1].is_multiple_of(2)
            && on(c, 8)
            && beside
            && extra
    }

    /// What the adapters add to the sum over row tiles of rows times depth.
    fn extra_depth(&self) -> usize {
        let Some(adapted) = &self.adapted else { return 0 };
        let m = self.extents[0];
        let tiles = (0..m).step_by(TILE).filter(|&first| adapted.rows.any(first, m.min(first + TILE)));
        tiles.count() * TILE * adapted.rank.next_multiple_of(DEPTH)
    }
}

/// `t` in `dtype`: itself, widened or narrowed.
pub fn as_dtype(gpu: &Gpu, t: &Tensor, dtype: DType) -> Result<Tensor> {
    if t.dtype() == dtype {
        return Ok(t.clone());
    }
    let mut cast = Tensor::empty_as(t.device(), t.shape(), dtype)?;
    cuda::cast(gpu, t, &mut cast)?;
    Ok(cast)
}

/// Refuses a residual that is neither of x's dtype nor f32.
pub fn expect_residual(dtype: DType, resid: &Tensor) -> Result<()> {
    if resid.dtype() == dtype || resid.dtype() == DType::F32 {
        return Ok(());
    }
    Err(Error::shape(OP, format!("the residual is {resid:?} beside x of {dtype:?}: wanted that or F32")))
}
