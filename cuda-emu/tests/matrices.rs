//! ldmatrix, stmatrix, movmatrix and mma: whole products of whole matrices, so that any lane out of place shows.

mod common;

use common::{Device, Params, random};
use half::{bf16, f16};

/// Fragments by the ISA's tables: for an m16n8 product with `per` factors in a register, where register `r`'s piece
/// `n` of lane `l` stands: in A (row, k), in B (k, column).
fn place_a(l: usize, r: usize, n: usize, per: usize) -> (usize, usize) {
    (l / 4 + 8 * (r % 2), (l % 4) * per + n + r / 2 * 4 * per)
}

fn place_b(l: usize, r: usize, n: usize, per: usize) -> (usize, usize) {
    ((l % 4) * per + n + r * 4 * per, l / 4)
}

fn place_c(l: usize, r: usize) -> (usize, usize) {
    (l / 4 + 8 * (r / 2), l % 4 * 2 + r % 2)
}

/// One mma over fragments that the host lays out; gives C as f32 (or i32) bits by row and column.
fn product(
    op: &str,
    k: usize,
    bits: usize,
    a: &dyn Fn(usize, usize) -> u32,
    b: &dyn Fn(usize, usize) -> u32,
    c: &dyn Fn(usize, usize) -> u32,
) -> Vec<[u32; 8]> {
    let per = 32 / bits;
    let (na, nb) = (k * bits / 64, k * bits / 128);
    let pack = |f: &dyn Fn(usize) -> u32| (0..per).map(|n| f(n) << (n * bits)).sum::<u32>();
    let mut data = Vec::new();
    for l in 0..32 {
        let mut lane: Vec<u32> = (0..na)
            .map(|r| {
                pack(&|n| {
                    let (i, j) = place_a(l, r, n, per);
                    a(i, j)
                })
            })
            .collect();
        lane.extend((0..nb).map(|r| {
            pack(&|n| {
                let (i, j) = place_b(l, r, n, per);
                b(i, j)
            })
        }));
        lane.extend((0..4).map(|r| {
            let (i, j) = place_c(l, r);
            c(i, j)
        }));
        lane.resize(16, 0);
        data.extend(lane);
    }
    let regs = |from: usize, n: usize| {
        (from..from + n).map(|r| format!("%r{}", r + 10)).collect::<Vec<_>>().join(", ")
    };
    let loads: String =
        (0..na + nb + 4).map(|r| format!("ld.global.u32 %r{}, [%rd0+{}];\n", r + 10, 4 * r)).collect();
    let stores: String = (0..4).map(|r| format!("st.global.u32 [%rd1+{}], %r{};\n", 4 * r, 40 + r)).collect();
    let d = Device::kernel(
        "u64 u64",
        &format!(
        "ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 64;
         add.s64 %rd0, %rd0, %rd2; mul.wide.u32 %rd2, %r0, 16; add.s64 %rd1, %rd1, %rd2;\n{loads}
         mma.sync.aligned.{op} {{%r40, %r41, %r42, %r43}}, {{{}}}, {{{}}}, {{{}}};\n{stores}",
        regs(0, na), regs(na, nb), regs(na + nb, 4)
    ),
    );
    let (from, to) = (d.words("from", &data), d.empty("to", 512));
    let counters = d.ok(1, 32, &Params::new().u64(from).u64(to));
    assert_eq!(counters.mma_flops, 2 * 16 * 8 * k as u64);
    let got = d.read(to, 128);
    let mut out = vec![[0; 8]; 16];
    for l in 0..32 {
        for r in 0..4 {
            let (i, j) = place_c(l, r);
            out[i][j] = got[4 * l + r];
        }
    }
    out
}

/// Small whole numbers: every product and sum is exact in any order.
fn small(seed: u64) -> impl Fn(usize, usize) -> i64 {
    let v = random(1024, seed);
    move |i, j| v[i * 32 + j] as i64 % 8
}

#[test]
fn products_of_every_factor_type() {
    let (x, y, z) = (small(1), small(2), small(3));
    type Encode = fn(i64) -> u32;
    let cases: [(&str, usize, usize, Encode); 9] = [
        ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16, |v| bf16::from_f32(v as f32).to_bits().into()),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, 16, |v| bf16::from_f32(v as f32).to_bits().into()),
        ("m16n8k16.row.col.f32.f16.f16.f32", 16, 16, |v| f16::from_f32(v as f32).to_bits().into()),
        ("m16n8k8.row.col.f32.f16.f16.f32", 8, 16, |v| f16::from_f32(v as f32).to_bits().into()),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, 32, |v| (v as f32).to_bits()),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, 32, |v| (v as f32).to_bits()),
        ("m16n8k32.row.col.s32.s8.s8.s32", 32, 8, |v| u32::from(v as u8)),
        ("m16n8k16.row.col.s32.s8.s8.s32", 16, 8, |v| u32::from(v as u8)),
        ("m16n8k32.row.col.s32.u8.s8.s32", 32, 8, |v| u32::from(v as u8)),
    ];
    for (op, k, bits, encode) in cases {
        let whole = op.contains("s32");
        let unsigned = op.contains("u8");
        let a = |i: usize, j: usize| if unsigned { x(i, j).abs() } else { x(i, j) };
        let result = |v: i64| if whole { v as i32 as u32 } else { (v as f32).to_bits() };
        let got =
            product(op, k, bits, &|i, j| encode(a(i, j)), &|i, j| encode(y(i, j)), &|i, j| result(z(i, j)));
        for (i, row) in got.iter().enumerate() {
            for (j, got) in row.iter().enumerate() {
                let want = z(i, j) + (0..k).map(|n| a(i, n) * y(n, j)).sum::<i64>();
                assert_eq!(*got, result(want), "{op}: row {i}, column {j}");
            }
        }
    }
}

#[test]
fn products_are_exact_and_sums_rounded_once_each() {
    // Values of all sizes, subnormals and NaN among them, against fma in the order of k.
    let v = random(1024, 4);
    let half = |i: usize, j: usize| (v[i * 32 + j] as u32 & 0xffff) & !0x4000 | 0x0020;
    let single = |i: usize, j: usize| (v[i * 32 + j] >> 32) as u32 & 0xbfff_ffff;
    let wide = |x: u32| f32::from_bits(x << 16);
    let got = product("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16, &half, &|i, j| half(i, j + 9), &single);
    for (i, row) in got.iter().enumerate() {
        for (j, got) in row.iter().enumerate() {
            let start = f32::from_bits(single(i, j));
            let want = (0..16).fold(start, |s, n| wide(half(i, n)).mul_add(wide(half(n, j + 9)), s));
            assert_eq!(*got, want.to_bits());
        }
    }
    // tf32 does not look at the last 13 bits.
    let ones = |_: usize, _: usize| 0x3f80_1fff;
    let got = product("m16n8k4.row.col.f32.tf32.tf32.f32", 4, 32, &ones, &ones, &|_, _| 0);
    assert_eq!(got, vec![[4f32.to_bits(); 8]; 16]);
    // satfinite holds integers at their end.
    let most = |_: usize, _: usize| 127;
    let near = |_: usize, _: usize| i32::MAX as u32 - 5;
    let sat = product("m16n8k16.row.col.satfinite.s32.s8.s8.s32", 16, 8, &most, &most, &near);
    assert_eq!(sat, vec![[i32::MAX as u32; 8]; 16]);
}

#[test]
fn half_accumulators() {
    let d = Device::kernel("u64", "
        ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 8; add.s64 %rd0, %rd0, %rd2;
        mov.b32 %r1, 0x3c003c00; mov.b32 %r2, 0x3c004000;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r5, %r6}, {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%r2, %r1};
        st.global.v2.u32 [%rd0], {%r5, %r6};");
    let to = d.empty("to", 256);
    d.ok(1, 32, &Params::new().u64(to));
    let pair = |lo: f32, hi: f32| {
        u32::from(f16::from_f32(lo).to_bits()) | u32::from(f16::from_f32(hi).to_bits()) << 16
    };
    assert!(d.read(to, 64).chunks(2).all(|c| c == [pair(18.0, 17.0), pair(17.0, 17.0)]));
}

/// C = A·Bᵀ from shared memory by ldmatrix, as kernels do it, and with the transposing load from B as it lies.
#[test]
fn fragments_that_ldmatrix_loads_are_those_that_mma_wants() {
    for trans in [false, true] {
        // A 16×16 at 0, B at 512: [8 n, 16 k], or [16 k, 8 n] for the transposing load.
        let (rows, load) = if trans {
            ("and.b32 %r3, %r0, 15; shl.b32 %r3, %r3, 4;", "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16")
        } else {
            (
                "and.b32 %r3, %r0, 7; shl.b32 %r3, %r3, 5; and.b32 %r4, %r0, 8; shl.b32 %r4, %r4, 1; add.u32 %r3, %r3, %r4;",
                "ldmatrix.sync.aligned.m8n8.x2.shared.b16",
            )
        };
        let d = Device::kernel("u64 u64", &format!("
            .shared .align 16 .b8 tile[768];
            ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile;
            mul.lo.u32 %r2, %r0, 24; cvt.u64.u32 %rd2, %r2; add.s64 %rd2, %rd0, %rd2; add.u32 %r2, %r1, %r2;
            ld.global.v2.u32 {{%r10, %r11}}, [%rd2]; st.shared.v2.u32 [%r2], {{%r10, %r11}};
            ld.global.v2.u32 {{%r10, %r11}}, [%rd2+8]; st.shared.v2.u32 [%r2+8], {{%r10, %r11}};
            ld.global.v2.u32 {{%r10, %r11}}, [%rd2+16]; st.shared.v2.u32 [%r2+16], {{%r10, %r11}};
            bar.warp.sync -1;
            and.b32 %r5, %r0, 15; shl.b32 %r5, %r5, 5; and.b32 %r6, %r0, 16; add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r1;
            ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r5];
            {rows} add.u32 %r3, %r3, %r1; {load} {{%r24, %r25}}, [%r3+512];
            mov.f32 %f1, 0f00000000;
            mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f2, %f3, %f4, %f5}}, {{%r20, %r21, %r22, %r23}},
                {{%r24, %r25}}, {{%f1, %f1, %f1, %f1}};
            shl.b32 %r7, %r0, 3; cvt.u64.u32 %rd3, %r7; add.s64 %rd1, %rd1, %rd3;
            st.global.v2.f32 [%rd1], {{%f2, %f3}}; st.global.v2.f32 [%rd1+256], {{%f4, %f5}};"));
        let (a, b) = (small(5), small(6));
        let mut data: Vec<u16> = Vec::new();
        let put = |v: i64| bf16::from_f32(v as f32).to_bits();
        for i in 0..16 {
            data.extend((0..16).map(|k| put(a(i, k))));
        }
        match trans {
            true => (0..16).for_each(|k| data.extend((0..8).map(|n| put(b(k, n))))),
            false => (0..8).for_each(|n| data.extend((0..16).map(|k| put(b(k, n))))),
        }
        let (from, to) = (d.halves("from", &data), d.empty("to", 512));
        d.ok(1, 32, &Params::new().u64(from).u64(to));
        // Lane 4·g + t holds columns 2t, 2t + 1 of row g: so the stores are C, row after row.
        for (at, got) in d.read_floats(to, 128).into_iter().enumerate() {
            let (i, j) = (at / 8, at % 8);
            let want: i64 = (0..16).map(|k| a(i, k) * b(k, j)).sum();
            assert_eq!(got, want as f32, "row {i}, column {j}, trans {trans}");
        }
    }
}

#[test]
fn tiles_turn_and_return() {
    let d = Device::kernel(
        "u64 u64",
        "
        .shared .align 16 .b8 tile[128];
        ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 4;
        add.s64 %rd0, %rd0, %rd2; add.s64 %rd1, %rd1, %rd2; ld.global.u32 %r1, [%rd0];
        movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1; st.global.u32 [%rd1], %r2;
        and.b32 %r3, %r0, 7; shl.b32 %r3, %r3, 4; mov.u32 %r4, tile; add.u32 %r3, %r3, %r4;
        stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r3], {%r1}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r3]; st.global.u32 [%rd1+128], %r5;",
    );
    let tile: Vec<u16> = (0..64).collect();
    let (from, to) = (d.halves("from", &tile), d.empty("to", 256));
    d.ok(1, 32, &Params::new().u64(from).u64(to));
    let got = d.read_halves(to, 128);
    for i in 0..8 {
        for j in 0..8 {
            assert_eq!((got[i * 8 + j], got[64 + i * 8 + j]), ((j * 8 + i) as u16, (j * 8 + i) as u16));
        }
    }
}
