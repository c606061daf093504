//! The decoded form of a kernel: what the interpreter runs.

use std::collections::HashMap;

/// A lane-wise operation over a warp's registers, under a mask of active lanes.
///
/// # Safety
/// The instruction's operands must be indices into the registers that the first argument points to.
pub(crate) type AluFn = unsafe fn(*mut u32, &Instr, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    Local,
    Param,
    Const,
    Generic,
}

/// What a memory instruction moves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub space: Space,
    /// Bytes of one element, and how many elements `Instr::v` lists.
    pub bytes: u8,
    pub signed: bool,
    /// Volatile, relaxed, acquire or release: meant to be seen by other blocks.
    pub strong: bool,
    /// The address is a 64-bit row.
    pub wide: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rmw {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ty {
    U(u8),
    S(u8),
    F32,
    F64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
    MatchAny,
    MatchAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// The types of a matrix product's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factor {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Alu(AluFn),
    /// To the instruction `d`.
    Bra,
    Exit,
    Trap,
    Ld(Access),
    St(Access),
    Atom(Access, Rmw, Ty),
    Shfl(Shuffle),
    Vote(Vote),
    Redux(Rmw, bool),
    Activemask,
    /// Barrier id row `a`, thread count row `b` or none; waits unless it only arrives.
    Bar {
        wait: bool,
    },
    /// `bar.red`: popc, and, or in that order.
    BarRed(u8),
    WarpSync,
    Fence {
        device: bool,
    },
    CpAsync(Access),
    CpCommit,
    CpWait {
        all: bool,
    },
    LdMatrix {
        count: u8,
        trans: bool,
        wide: bool,
    },
    StMatrix {
        count: u8,
        trans: bool,
        wide: bool,
    },
    MovMatrix,
    Mma {
        a: Factor,
        b: Factor,
        k: u8,
        half: bool,
        sat: bool,
    },
    Clock {
        wide: bool,
    },
    Printf,
    AssertFail,
    Nop,
}

/// What an instruction counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Class {
    Int,
    F32,
    F64,
    Half,
    Convert,
    Move,
    Special,
    Load,
    Store,
    Atomic,
    AsyncCopy,
    Shuffle,
    Barrier,
    Mma,
    Control,
}

pub(crate) const CLASSES: [&str; 15] = [
    "int",
    "f32",
    "f64",
    "half",
    "convert",
    "move",
    "special",
    "load",
    "store",
    "atomic",
    "async copy",
    "shuffle",
    "barrier",
    "mma",
    "control",
];

/// No operand.
pub(crate) const NONE: u32 = u32::MAX;

/// One instruction. Operands are indices of 32-bit words in a warp's registers: the start of a row of 32 (a 64-bit
/// register is a row of 32 u64), or a predicate's word.
#[derive(Debug, Clone)]
pub(crate) struct Instr {
    pub op: Op,
    pub class: Class,
    /// The guard's word, or [`NONE`], and whether it is negated.
    pub guard: u32,
    pub not: bool,
    pub d: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    /// A further operand: setp's second destination, an address offset.
    pub e: i64,
    pub v: Box<[u32]>,
    /// Which of `v` are 64-bit rows.
    pub wides: u32,
    /// Line of the PTX, and the source file's number and line.
    pub line: u32,
    pub loc: (u32, u32),
}

/// A word or row that holds something before the first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Preset {
    Word(u32),
    Row32(u32),
    Row64(u64),
    /// `tid`, `ntid`, `ctaid`, `nctaid` by kind and axis; others by kind.
    Special(Special, u8),
    /// The address of the module's variable of this index, plus an offset.
    Global(usize, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid,
    Ntid,
    Ctaid,
    Nctaid,
    Lane,
    Warp,
    Nwarp,
    LaneMask,
    DynamicShared,
    TotalShared,
    Zero,
}

/// A kernel's parameter: where it lies in the parameter buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A decoded kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Instr>,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) shared: u32,
    /// Where the shared memory given at launch begins.
    pub(crate) dynamic_at: u32,
    pub(crate) local: u32,
    pub(crate) max_threads: u32,
    pub(crate) words: usize,
    pub(crate) registers: u32,
    /// Registers that may be read before they are written: the first word, and how many.
    pub(crate) unwritten: Vec<(u32, u32)>,
    pub(crate) presets: HashMap<Preset, u32>,
}

impl Kernel {
    /// The parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of shared memory the kernel declares with a size.
    pub fn static_shared(&self) -> u32 {
        self.shared
    }

    /// The most threads a block may have.
    pub fn max_threads(&self) -> u32 {
        self.max_threads
    }

    /// An estimate of the 32-bit registers a thread needs: the most that are live at once in program order, at most 255.
    pub fn registers(&self) -> u32 {
        self.registers
    }

    /// Bytes of local memory per thread.
    pub fn local(&self) -> u32 {
        self.local
    }
}
