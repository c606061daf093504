//! Integer instructions, bit for bit as the PTX ISA defines them.

mod common;

use common::{Device, Params, check, eval, random, tuples};

const EDGES: [u64; 10] =
    [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_fffe, 0x1234_5678, 0x0000_ffff, 0x8000_0001];

fn words() -> Vec<u64> {
    let mut v = EDGES.to_vec();
    v.extend(random(6, 1).iter().map(|x| x & 0xffff_ffff));
    v
}

fn longs() -> Vec<u64> {
    let mut v = vec![0, 1, 0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000, u64::MAX, 0xffff_ffff, 1 << 32];
    v.extend(random(5, 2));
    v
}

fn s(x: u64) -> i64 {
    i64::from(x as u32 as i32)
}

fn w(x: i64) -> u64 {
    u64::from(x as u32)
}

#[test]
fn sums_products_and_their_halves() {
    let two = tuples(&words(), 2);
    check("add.s32", "b32 b32 b32", &two, |r| w(s(r[0]) + s(r[1])));
    check("add.sat.s32", "b32 b32 b32", &two, |r| {
        w((s(r[0]) + s(r[1])).clamp(i32::MIN.into(), i32::MAX.into()))
    });
    check("sub.sat.s32", "b32 b32 b32", &two, |r| {
        w((s(r[0]) - s(r[1])).clamp(i32::MIN.into(), i32::MAX.into()))
    });
    check("sub.u32", "b32 b32 b32", &two, |r| w(r[0] as i64 - r[1] as i64));
    check("mul.lo.s32", "b32 b32 b32", &two, |r| w(s(r[0]).wrapping_mul(s(r[1]))));
    check("mul.hi.s32", "b32 b32 b32", &two, |r| w((s(r[0]) * s(r[1])) >> 32));
    check("mul.hi.u32", "b32 b32 b32", &two, |r| (r[0] * r[1]) >> 32);
    check("mul.wide.s32", "b64 b32 b32", &two, |r| (s(r[0]) * s(r[1])) as u64);
    check("mul.wide.u32", "b64 b32 b32", &two, |r| r[0] * r[1]);
    check("mul24.lo.u32", "b32 b32 b32", &two, |r| ((r[0] & 0xff_ffff) * (r[1] & 0xff_ffff)) & 0xffff_ffff);
    let wide = tuples(&longs(), 2);
    check("mul.hi.u64", "b64 b64 b64", &wide, |r| ((u128::from(r[0]) * u128::from(r[1])) >> 64) as u64);
    check("mul.hi.s64", "b64 b64 b64", &wide, |r| {
        ((i128::from(r[0] as i64) * i128::from(r[1] as i64)) >> 64) as u64
    });
    check("mul.lo.s64", "b64 b64 b64", &wide, |r| r[0].wrapping_mul(r[1]));
    let three = tuples(&words()[..9], 3);
    check("mad.lo.s32", "b32 b32 b32 b32", &three, |r| {
        w(s(r[0]).wrapping_mul(s(r[1])).wrapping_add(s(r[2])))
    });
    check("mad.hi.u32", "b32 b32 b32 b32", &three, |r| (((r[0] * r[1]) >> 32) + r[2]) & 0xffff_ffff);
    check("mad.wide.u32", "b64 b32 b32 b64", &three, |r| (r[0] * r[1]).wrapping_add(r[2]));
    check("sad.s32", "b32 b32 b32 b32", &three, |r| (s(r[0]).abs_diff(s(r[1])) + r[2]) & 0xffff_ffff);
    check("sad.u32", "b32 b32 b32 b32", &three, |r| (r[0].abs_diff(r[1]) + r[2]) & 0xffff_ffff);
    let shorts = tuples(&[0, 1, 0x7fff, 0x8000, 0xffff, 0x1234], 2);
    check("mul.wide.s16", "b32 b16 b16", &shorts, |r| w(i64::from(r[0] as i16) * i64::from(r[1] as i16)));
    check("mul.hi.s16", "b16 b16 b16", &shorts, |r| {
        u64::from(((i32::from(r[0] as i16) * i32::from(r[1] as i16)) >> 16) as u16)
    });
    check("add.s16", "b16 b16 b16", &shorts, |r| (r[0] + r[1]) & 0xffff);
}

#[test]
fn division_extremes_and_signs() {
    let two: Vec<_> = tuples(&words(), 2).into_iter().filter(|r| r[1] != 0).collect();
    check("div.u32", "b32 b32 b32", &two, |r| r[0] / r[1]);
    check("rem.u32", "b32 b32 b32", &two, |r| r[0] % r[1]);
    check("div.s32", "b32 b32 b32", &two, |r| w(s(r[0]) / s(r[1])));
    check("rem.s32", "b32 b32 b32", &two, |r| w(s(r[0]) % s(r[1])));
    let wide: Vec<_> = tuples(&longs(), 2).into_iter().filter(|r| r[1] != 0).collect();
    check("div.u64", "b64 b64 b64", &wide, |r| r[0] / r[1]);
    check("rem.s64", "b64 b64 b64", &wide, |r| (r[0] as i64).wrapping_rem(r[1] as i64) as u64);
    // What a division by zero gives is not defined; it gives something.
    assert_eq!(eval("div.u32", "b32 b32 b32", &[vec![7, 0]]), [0xffff_ffff]);
    let two = tuples(&words(), 2);
    check("min.s32", "b32 b32 b32", &two, |r| w(s(r[0]).min(s(r[1]))));
    check("max.s32", "b32 b32 b32", &two, |r| w(s(r[0]).max(s(r[1]))));
    check("min.u32", "b32 b32 b32", &two, |r| r[0].min(r[1]));
    check("max.u64", "b64 b64 b64", &tuples(&longs(), 2), |r| r[0].max(r[1]));
    let one = tuples(&words(), 1);
    check("neg.s32", "b32 b32", &one, |r| w(-s(r[0])));
    check("abs.s32", "b32 b32", &one, |r| w(s(r[0]).abs()));
    check("not.b32", "b32 b32", &one, |r| !r[0] & 0xffff_ffff);
    check("cnot.b32", "b32 b32", &one, |r| u64::from(r[0] == 0));
}

#[test]
fn shifts_beyond_the_width() {
    let amounts = [0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 255, 0xffff_ffff];
    let rows: Vec<_> = longs().iter().flat_map(|v| amounts.map(|n| vec![*v, n])).collect();
    let low = |v: u64| v & 0xffff_ffff;
    check("shl.b32", "b32 b32 b32", &rows, |r| if r[1] > 31 { 0 } else { low(r[0] << r[1]) });
    check("shr.u32", "b32 b32 b32", &rows, |r| if r[1] > 31 { 0 } else { low(r[0]) >> r[1] });
    check("shr.s32", "b32 b32 b32", &rows, |r| w(s(low(r[0])) >> r[1].min(31)));
    check("shl.b64", "b64 b64 b32", &rows, |r| if r[1] > 63 { 0 } else { r[0] << r[1] });
    check("shr.u64", "b64 b64 b32", &rows, |r| if r[1] > 63 { 0 } else { r[0] >> r[1] });
    check("shr.s64", "b64 b64 b32", &rows, |r| (r[0] as i64 >> r[1].min(63)) as u64);
    check("shr.s16", "b16 b16 b32", &rows, |r| u64::from((r[0] as i16 >> r[1].min(15)) as u16));
    check("shl.b16", "b16 b16 b32", &rows, |r| if r[1] > 15 { 0 } else { r[0] << r[1] & 0xffff });
    let rows: Vec<_> =
        tuples(&words()[..8], 2).iter().flat_map(|v| amounts.map(|n| vec![v[0], v[1], n])).collect();
    let pair = |r: &[u64]| r[1] << 32 | r[0];
    check("shf.l.wrap.b32", "b32 b32 b32 b32", &rows, |r| low((pair(r) << (r[2] & 31)) >> 32));
    check("shf.r.wrap.b32", "b32 b32 b32 b32", &rows, |r| low(pair(r) >> (r[2] & 31)));
    check("shf.l.clamp.b32", "b32 b32 b32 b32", &rows, |r| low((pair(r) << r[2].min(32)) >> 32));
    check("shf.r.clamp.b32", "b32 b32 b32 b32", &rows, |r| low(pair(r) >> r[2].min(32)));
}

/// The ISA's own definition of bfe, bit by bit.
fn bfe(a: u64, pos: u64, len: u64, msb: u64, signed: bool) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    let bit = |n: u64| if n > msb { 0 } else { a >> n & 1 };
    let sign = if !signed || len == 0 { 0 } else { bit((pos + len - 1).min(msb)) };
    (0..=msb).map(|i| (if i < len && pos + i <= msb { bit(pos + i) } else { sign }) << i).sum()
}

fn bfi(a: u64, b: u64, pos: u64, len: u64, msb: u64) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    (0..=msb).map(|i| (if i >= pos && i < pos + len { a >> (i - pos) & 1 } else { b >> i & 1 }) << i).sum()
}

#[test]
fn bit_fields() {
    let places = [0, 1, 7, 16, 31, 32, 40, 63, 64, 200, 255, 256, 258];
    let fields = tuples(&places, 2);
    let rows: Vec<_> = longs().iter().flat_map(|v| fields.iter().map(|f| vec![*v, f[0], f[1]])).collect();
    check("bfe.u32", "b32 b32 b32 b32", &rows, |r| bfe(r[0] & 0xffff_ffff, r[1], r[2], 31, false));
    check("bfe.s32", "b32 b32 b32 b32", &rows, |r| bfe(r[0] & 0xffff_ffff, r[1], r[2], 31, true));
    check("bfe.u64", "b64 b64 b32 b32", &rows, |r| bfe(r[0], r[1], r[2], 63, false));
    check("bfe.s64", "b64 b64 b32 b32", &rows, |r| bfe(r[0], r[1], r[2], 63, true));
    let rows: Vec<_> = longs()
        .iter()
        .flat_map(|v| fields.iter().map(|f| vec![*v, v.rotate_left(13) ^ 0x5555, f[0], f[1]]))
        .collect();
    check("bfi.b32", "b32 b32 b32 b32 b32", &rows, |r| bfi(r[0], r[1], r[2], r[3], 31));
    check("bfi.b64", "b64 b64 b64 b32 b32", &rows, |r| bfi(r[0], r[1], r[2], r[3], 63));
}

#[test]
fn counting_and_permuting_bits() {
    let one = tuples(&words(), 1);
    check("popc.b32", "b32 b32", &one, |r| r[0].count_ones().into());
    check("clz.b32", "b32 b32", &one, |r| u64::from((r[0] as u32).leading_zeros()));
    check("brev.b32", "b32 b32", &one, |r| (r[0] as u32).reverse_bits().into());
    check("bfind.u32", "b32 b32", &one, |r| {
        (0..32).rev().find(|n| r[0] >> n & 1 == 1).unwrap_or(0xffff_ffff)
    });
    check("bfind.shiftamt.u32", "b32 b32", &one, |r| {
        (0..32).rev().find(|n| r[0] >> n & 1 == 1).map_or(0xffff_ffff, |n| 31 - n)
    });
    check("bfind.s32", "b32 b32", &one, |r| {
        let v = if s(r[0]) < 0 { !r[0] } else { r[0] };
        (0..32).rev().find(|n| v >> n & 1 == 1).unwrap_or(0xffff_ffff)
    });
    let one = tuples(&longs(), 1);
    check("popc.b64", "b32 b64", &one, |r| r[0].count_ones().into());
    check("clz.b64", "b32 b64", &one, |r| r[0].leading_zeros().into());
    check("brev.b64", "b64 b64", &one, |r| r[0].reverse_bits());

    let picks: Vec<u64> = random(40, 3).iter().map(|x| x & 0xffff).collect();
    let rows: Vec<_> = picks.iter().map(|p| vec![0x8382_8180, 0x0706_0504, *p]).collect();
    check("prmt.b32", "b32 b32 b32 b32", &rows, |r| {
        (0..4)
            .map(|i| {
                let n = r[2] >> (4 * i) & 15;
                let byte = (r[1] << 32 | r[0]) >> (8 * (n & 7)) & 255;
                (if n < 8 { byte } else { 255 * (byte >> 7) }) << (8 * i)
            })
            .sum()
    });
    for (mode, picks) in [
        ("f4e", [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]),
        ("b4e", [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]]),
        ("rc8", [[0; 4], [1; 4], [2; 4], [3; 4]]),
        ("ecl", [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]),
        ("rc16", [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]),
    ] {
        let rows: Vec<_> = (0..4).map(|n| vec![0x3332_3130, 0x3736_3534, n]).collect();
        check(&format!("prmt.b32.{mode}"), "b32 b32 b32 b32", &rows, |r| {
            picks[r[2] as usize].iter().enumerate().map(|(i, p)| (0x30 + p) << (8 * i)).sum()
        });
    }
    for lut in [0x00, 0x80, 0x96, 0xe8, 0xca, 0xff, 0x1b] {
        let rows = tuples(&words()[..7], 3);
        check("lop3.b32", &format!("b32 b32 b32 b32 ={lut}"), &rows, |r| {
            (0..32)
                .map(|i| {
                    let n = (r[0] >> i & 1) << 2 | (r[1] >> i & 1) << 1 | (r[2] >> i & 1);
                    (lut >> n & 1) << i
                })
                .sum()
        });
    }
    let rows = tuples(&words()[..8], 3);
    let dot = |r: &[u64], f: fn(u8) -> i64, g: fn(u8) -> i64| {
        let sum: i64 = (0..4).map(|i| f((r[0] >> (8 * i)) as u8) * g((r[1] >> (8 * i)) as u8)).sum();
        w(sum + r[2] as i64)
    };
    check("dp4a.s32.s32", "b32 b32 b32 b32", &rows, |r| dot(r, |x| (x as i8).into(), |x| (x as i8).into()));
    check("dp4a.u32.s32", "b32 b32 b32 b32", &rows, |r| dot(r, |x| x.into(), |x| (x as i8).into()));
}

#[test]
fn conversions_between_integers() {
    let one = tuples(&longs(), 1);
    check("cvt.u64.u32", "b64 b32", &one, |r| r[0] & 0xffff_ffff);
    check("cvt.s64.s32", "b64 b32", &one, |r| s(r[0]) as u64);
    check("cvt.u32.u64", "b32 b64", &one, |r| r[0] & 0xffff_ffff);
    check("cvt.u16.u32", "b16 b32", &one, |r| r[0] & 0xffff);
    check("cvt.s32.s16", "b32 b16", &one, |r| u64::from(r[0] as i16 as u32));
    check("cvt.u32.u16", "b32 b16", &one, |r| r[0] & 0xffff);
    check("cvt.s32.s8", "b32 b32", &one, |r| u64::from(r[0] as i8 as u32));
    check("cvt.u32.u8", "b32 b32", &one, |r| r[0] & 255);
    check("cvt.sat.s8.s32", "b32 b32", &one, |r| w(s(r[0]).clamp(-128, 127)));
    check("cvt.sat.u8.s32", "b32 b32", &one, |r| w(s(r[0]).clamp(0, 255)));
    check("cvt.sat.s32.s64", "b32 b64", &one, |r| w((r[0] as i64).clamp(i32::MIN.into(), i32::MAX.into())));
}

#[test]
fn comparisons_and_selections() {
    let two = tuples(&words(), 2);
    let bit = u64::from;
    check("setp.lt.s32", "pred b32 b32", &two, |r| bit(s(r[0]) < s(r[1])));
    check("setp.lt.u32", "pred b32 b32", &two, |r| bit(r[0] < r[1]));
    check("setp.lo.u32", "pred b32 b32", &two, |r| bit(r[0] < r[1]));
    check("setp.ge.s32", "pred b32 b32", &two, |r| bit(s(r[0]) >= s(r[1])));
    check("setp.ne.b32", "pred b32 b32", &two, |r| bit(r[0] != r[1]));
    check("setp.hi.u64", "pred b64 b64", &tuples(&longs(), 2), |r| bit(r[0] > r[1]));
    check("setp.le.s64", "pred b64 b64", &tuples(&longs(), 2), |r| bit(r[0] as i64 <= r[1] as i64));
    check("setp.gt.s16", "pred b16 b16", &tuples(&[0, 1, 0x7fff, 0x8000, 0xffff], 2), |r| {
        bit(r[0] as i16 > r[1] as i16)
    });
    let three: Vec<_> =
        tuples(&words()[..5], 2).iter().flat_map(|r| [0, 1].map(|p| vec![r[0], r[1], p])).collect();
    check("setp.lt.and.s32", "pred b32 b32 pred", &three, |r| bit(s(r[0]) < s(r[1])) & r[2]);
    check("setp.lt.or.s32", "pred b32 b32 pred", &three, |r| bit(s(r[0]) < s(r[1])) | r[2]);
    check("setp.lt.xor.s32", "pred b32 b32 pred", &three, |r| bit(s(r[0]) < s(r[1])) ^ r[2]);
    check("selp.b32", "b32 b32 b32 pred", &three, |r| if r[2] == 1 { r[0] } else { r[1] });
    check("selp.b64", "b64 b64 b64 pred", &three, |r| if r[2] == 1 { r[0] } else { r[1] });
}

#[test]
fn the_sign_chooses_and_comparisons_as_numbers() {
    let three = tuples(&words()[..6], 3);
    check("slct.b32.s32", "b32 b32 b32 b32", &three, |r| if s(r[2]) >= 0 { r[0] } else { r[1] });
    check(
        "slct.f32.f32",
        "f32 f32 f32 f32",
        &tuples(&[0, 0x8000_0000, 0x7fc0_0000, 0xbf80_0000, 1, 0x8000_0001], 3),
        |r| {
            if f32::from_bits(r[2] as u32) >= 0.0 { r[0] } else { r[1] }
        },
    );
    check("slct.ftz.u64.f32", "b64 b64 b64 f32", &tuples(&[5, 0x8000_0001, 0x8080_0000], 3), |r| {
        if r[2] == 0x8080_0000 { r[1] } else { r[0] }
    });
    let two = tuples(&words(), 2);
    let all = |b: bool| if b { 0xffff_ffff } else { 0 };
    check("set.lt.u32.s32", "b32 b32 b32", &two, |r| all(s(r[0]) < s(r[1])));
    check("set.hi.f32.u32", "f32 b32 b32", &two, |r| if r[0] > r[1] { 0x3f80_0000 } else { 0 });
    let with: Vec<_> = two.iter().flat_map(|r| [0, 1].map(|p| vec![r[0], r[1], p])).collect();
    check("set.eq.or.s32.u32", "b32 b32 b32 pred", &with, |r| all(r[0] == r[1] || r[2] == 1));
}

/// Sums, differences and products of many words, as compilers write them.
#[test]
fn the_carry_goes_from_word_to_word() {
    let body = "ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 32;
        add.s64 %rd0, %rd0, %rd2; mul.wide.u32 %rd2, %r0, 64; add.s64 %rd1, %rd1, %rd2;
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0]; ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd0+16];
        add.cc.u32 %r11, %r1, %r5; addc.cc.u32 %r12, %r2, %r6; addc.cc.u32 %r13, %r3, %r7; addc.u32 %r14, %r4, %r8;
        st.global.v4.u32 [%rd1], {%r11, %r12, %r13, %r14};
        sub.cc.u32 %r1, %r1, %r5; subc.cc.u32 %r2, %r2, %r6; subc.cc.u32 %r3, %r3, %r7; subc.u32 %r4, %r4, %r8;
        st.global.v4.u32 [%rd1+16], {%r1, %r2, %r3, %r4};
        ld.global.v2.u64 {%rd3, %rd4}, [%rd0]; ld.global.v2.u64 {%rd5, %rd6}, [%rd0+16];
        sub.cc.u64 %rd7, %rd3, %rd5; subc.u64 %rd8, %rd4, %rd6; st.global.v2.u64 [%rd1+32], {%rd7, %rd8};
        ld.global.v2.u32 {%r1, %r2}, [%rd0]; mul.lo.u32 %r31, %r1, %r5; mul.hi.u32 %r32, %r1, %r5;
        mad.lo.cc.u32 %r32, %r1, %r6, %r32; madc.hi.u32 %r33, %r1, %r6, 0;
        mad.lo.cc.u32 %r32, %r2, %r5, %r32; madc.hi.cc.u32 %r33, %r2, %r5, %r33; addc.u32 %r34, 0, 0;
        mad.lo.cc.u32 %r33, %r2, %r6, %r33; madc.hi.u32 %r34, %r2, %r6, %r34;
        st.global.v4.u32 [%rd1+48], {%r31, %r32, %r33, %r34};";
    let device = Device::kernel("u64 u64", body);
    let edges = [0, 1, u64::MAX, u64::MAX - 1, 1 << 32, 0xffff_ffff, random(1, 5)[0], random(1, 6)[0]];
    let rows: Vec<_> =
        (0..256).map(|n| [0, 1, 2, 3].map(|d| edges[(n >> (2 * d) & 3) + [0, 4, 2, 3][d]])).collect();
    let data: Vec<u32> = rows.iter().flatten().flat_map(|x| [*x as u32, (x >> 32) as u32]).collect();
    let (from, out) = (device.words("in", &data), device.empty("out", 64 * rows.len() as u64));
    device.ok(1, rows.len() as u32, &Params::new().u64(from).u64(out));
    for (row, got) in rows.iter().zip(device.read(out, 16 * rows.len()).chunks(16)) {
        let long = |x: &[u32]| x.iter().rev().fold(0u128, |n, w| n << 32 | u128::from(*w));
        let [a, b] = [0, 2].map(|i| u128::from(row[i + 1]) << 64 | u128::from(row[i]));
        assert_eq!(long(&got[..4]), a.wrapping_add(b), "{row:x?}");
        assert_eq!((long(&got[4..8]), long(&got[8..12])), (a.wrapping_sub(b), a.wrapping_sub(b)), "{row:x?}");
        assert_eq!(long(&got[12..]), u128::from(row[0]) * u128::from(row[2]), "{row:x?}");
    }
}
