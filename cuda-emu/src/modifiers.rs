//! The modifiers that each opcode is known with. One that this emulator does not know must not be passed over: what it
//! asks for would not be done.

/// Operand types, which every opcode's own decoding chooses among.
const TYPES: &str = "b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f16 f16x2 bf16 bf16x2 tf32 f32 f64 pred";
const SPACES: &str = "global shared local param const";
const COMPARISONS: &str = "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz";
/// Caches and who sees an access: all of memory is one here, and nothing is out of order.
const CACHES: &str =
    "nc ca cg cs lu cv wb wt volatile relaxed acquire release acq_rel weak mmio cta gpu sys cluster v2 v4 v8";

/// The modifiers of the opcodes of a family, separated by blanks; `None`: the family is not known here.
fn known(base: &str) -> Option<&'static [&'static str]> {
    Some(match base {
        "add" | "sub" => &["rn rz rm rp ftz sat cc"],
        "addc" | "subc" => &["cc"],
        "mul" => &["rn rz rm rp ftz sat lo hi wide"],
        "mad" => &["rn rz rm rp ftz sat lo hi wide cc"],
        "madc" => &["lo hi cc"],
        "mul24" => &["lo"],
        "fma" => &["rn rz rm rp ftz sat relu"],
        "div" => &["rn rz rm rp approx full ftz"],
        "abs" | "neg" => &["ftz"],
        "min" | "max" => &["ftz NaN"],
        "rcp" | "sqrt" => &["rn rz rm rp approx ftz"],
        "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => &["approx ftz"],
        "testp" => &["finite infinite number notanumber normal subnormal"],
        "rem" | "sad" | "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "popc" | "clz" | "brev"
        | "bfe" | "bfi" | "lop3" | "dp4a" | "copysign" | "mov" | "selp" | "activemask" | "exit" | "trap" => {
            &[]
        }
        "slct" => &["ftz"],
        "shf" => &["l r wrap clamp"],
        "bfind" => &["shiftamt"],
        "prmt" => &["f4e b4e rc8 ecl ecr rc16"],
        "cvt" => &["rn rz rm rp rni rzi rmi rpi rna ftz sat relu"],
        "setp" | "set" => &[COMPARISONS],
        "ld" | "ldu" | "st" => &[SPACES, CACHES],
        "atom" | "red" => &[SPACES, CACHES, "add min max and or xor exch cas inc dec noftz"],
        "cvta" => &[SPACES, "to"],
        "isspacep" => &[SPACES],
        "shfl" => &["sync up down bfly idx"],
        "vote" => &["sync all any uni ballot"],
        "match" => &["sync any all"],
        "redux" => &["sync add min max and or xor"],
        "bar" | "barrier" => &["sync arrive red warp cta aligned popc and or cluster"],
        "membar" => &["cta gl sys"],
        "fence" => &["sc acq_rel acquire release cta gpu sys cluster"],
        "cp" => &["async ca cg commit_group wait_group wait_all global shared bulk mbarrier"],
        "ldmatrix" | "stmatrix" => &["sync aligned m8n8 x1 x2 x4 trans shared"],
        "movmatrix" => &["sync aligned m8n8 trans"],
        "mma" => &["sync aligned row col satfinite m16n8k4 m16n8k8 m16n8k16 m16n8k32"],
        "bra" | "call" | "ret" => &["uni"],
        "brx" => &["idx uni"],
        _ => return None,
    })
}

/// The first modifier of an opcode, split at its dots, that is not known, or not in this company.
pub(crate) fn unknown<'a>(op: &[&'a str]) -> Option<&'a str> {
    let (&base, rest) = op.split_first()?;
    let families = known(base)?;
    let listed = |m: &str| families.iter().chain([&TYPES]).any(|f| f.split(' ').any(|k| k == m));
    // Hints to caches, and `shared::cta`.
    let hint = |m: &str| m.starts_with("L1::") || m.starts_with("L2::");
    let cached = matches!(base, "ld" | "ldu" | "st" | "atom" | "red" | "cp");
    let stray = rest.iter().find(|m| {
        let first = m.split("::").next().unwrap_or(m);
        !(listed(first) || hint(m) && cached)
    });
    if let Some(m) = stray {
        return Some(m);
    }
    let has = |m: &str| rest.iter().copied().find(|r| *r == m);
    let is_float = |t: &str| matches!(t, "f32" | "f64");
    match base {
        // Flushing and saturating are done in f32, and saturating besides in the conversions and pairs named here.
        "cvt" => {
            let (to, from) = (rest.get(rest.len().wrapping_sub(2))?, rest.last()?);
            let integral = to.starts_with(['u', 's', 'b']) && !to.starts_with("bf");
            let narrow = to.starts_with("f16") || to.starts_with("bf16");
            (has("sat").filter(|_| !(integral || *to == "f32" && is_float(from))))
                .or_else(|| has("relu").filter(|_| !(narrow && *from == "f32")))
                .or_else(|| has("rna").filter(|_| *to != "tf32"))
        }
        "ex2" | "tanh" | "slct" => None,
        // Of f64 these two exist in no other form.
        "rcp" | "rsqrt" if has("approx").is_some() => None,
        _ => has("ftz").filter(|_| !rest.contains(&"f32")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_known_modifiers_in_known_company() {
        let unknown = |op: &'static str| super::unknown(&op.split('.').collect::<Vec<_>>());
        for op in [
            "add.rn.ftz.f32",
            "ld.global.nc.L1::no_allocate.L2::128B.v4.u32",
            "st.shared::cta.u32",
            "cvt.rn.relu.bf16x2.f32",
            "cvt.sat.u8.s32",
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
            "cp.async.cg.shared.global.L2::128B",
            "setp.lt.and.ftz.f32",
            "ex2.approx.ftz.bf16",
            "rcp.approx.ftz.f64",
            "no.such.opcode",
        ] {
            assert_eq!(unknown(op), None, "{op}");
        }
        for (op, m) in [
            ("add.rn.quick.f32", "quick"),
            ("min.xorsign.abs.f32", "xorsign"),
            ("mul24.hi.u32", "hi"),
            ("fma.rn.oob.bf16", "oob"),
            ("add.ftz.f16", "ftz"),
            ("cvt.rn.sat.f16.f32", "sat"),
            ("cvt.rn.relu.tf32.f32", "relu"),
            ("atom.global.v2.add.noftz.bar", "bar"),
            ("fence.proxy.async", "proxy"),
            ("add.L2::128B.u32", "L2::128B"),
        ] {
            assert_eq!(unknown(op), Some(m), "{op}");
        }
    }
}
