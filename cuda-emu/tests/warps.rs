//! What lanes, warps and blocks do together: shuffles, votes, divergence, barriers, atomics, asynchronous copies, calls.

mod common;

use common::{Device, Params};

/// Runs `body` on one block; `%r0` is the thread's index, `%rd1` the address of its word of the output.
fn words(threads: u32, body: &str) -> Vec<u32> {
    let (d, out) = device(threads, body);
    d.ok(1, threads, &Params::new().u64(out));
    d.read(out, threads as usize)
}

fn device(threads: u32, body: &str) -> (Device, u64) {
    let head = "ld.param.u64 %rd0, [p0];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd1, %rd0, %rd1;\n";
    let d = Device::kernel("u64", &format!("{head}{body}"));
    let out = d.empty("out", u64::from(threads) * 4);
    (d, out)
}

#[test]
fn shuffles_by_the_isas_pseudocode() {
    for (kind, c) in [
        ("up", 0),
        ("up", 0x1800),
        ("down", 31),
        ("down", 0x1c1f),
        ("bfly", 31),
        ("bfly", 0x1807),
        ("idx", 31),
        ("idx", 0x101f),
    ] {
        for b in [0, 1, 3, 8, 17, 31] {
            let got = words(
                32,
                &format!(
                    "add.u32 %r1, %r0, 100;\nshfl.sync.{kind}.b32 %r2|%p0, %r1, {b}, {c}, -1;\n\
                 selp.u32 %r3, 1000, 0, %p0;\nadd.u32 %r2, %r2, %r3;\nst.global.u32 [%rd1], %r2;"
                ),
            );
            for l in 0..32i64 {
                let segment = c >> 8 & 31;
                let (first, last) = (l & segment, (l & segment) | (c & 31 & !segment));
                let (from, inside) = match kind {
                    "up" => (l - b, l - b >= last),
                    "down" => (l + b, l + b <= last),
                    "bfly" => (l ^ b, (l ^ b) <= last),
                    _ => (first | b & !segment, (first | b & !segment) <= last),
                };
                let want = if inside { from + 1100 } else { l + 100 };
                assert_eq!(i64::from(got[l as usize]), want, "{kind} by {b}, {c:#x}, lane {l}");
            }
        }
    }
}

#[test]
fn votes_matches_and_reductions() {
    let head = "and.b32 %r1, %r0, 3;\nsetp.eq.u32 %p0, %r1, 1;\n";
    let run = |op: &str| words(32, &format!("{head}{op}\nst.global.u32 [%rd1], %r2;"));
    assert_eq!(run("vote.sync.ballot.b32 %r2, %p0, -1;"), [0x2222_2222; 32]);
    assert_eq!(run("vote.sync.ballot.b32 %r2, !%p0, -1;"), [!0x2222_2222; 32]);
    assert_eq!(run("vote.sync.any.pred %p1, %p0, -1;\nselp.u32 %r2, 1, 0, %p1;"), [1; 32]);
    assert_eq!(run("vote.sync.all.pred %p1, %p0, -1;\nselp.u32 %r2, 1, 0, %p1;"), [0; 32]);
    assert_eq!(run("vote.sync.uni.pred %p1, %p0, -1;\nselp.u32 %r2, 1, 0, %p1;"), [0; 32]);
    let same: Vec<u32> = (0..32).map(|l| 0x1111_1111 << (l & 3)).collect();
    assert_eq!(run("match.any.sync.b32 %r2, %r1, -1;"), same);
    assert_eq!(run("match.all.sync.b32 %r2|%p1, %r1, -1;"), [0; 32]);
    assert_eq!(run("mov.u32 %r1, 5;\nmatch.all.sync.b32 %r2|%p1, %r1, -1;"), [u32::MAX; 32]);
    assert_eq!(run("redux.sync.add.u32 %r2, %r0, -1;"), [496; 32]);
    assert_eq!(run("sub.s32 %r3, %r0, 7;\nredux.sync.min.s32 %r2, %r3, -1;"), [-7i32 as u32; 32]);
    assert_eq!(run("sub.s32 %r3, %r0, 7;\nredux.sync.max.u32 %r2, %r3, -1;"), [u32::MAX; 32]);
    assert_eq!(run("redux.sync.xor.b32 %r2, %r1, -1;"), [0; 32]);
    // Half a warp among itself.
    let half = run(
        "setp.lt.u32 %p2, %r0, 16;\nmov.u32 %r2, 0;\n@!%p2 bra DONE;\nredux.sync.add.s32 %r2, %r0, 0xffff;\n\
         activemask.b32 %r4;\nadd.u32 %r2, %r2, %r4;\nDONE:",
    );
    assert_eq!(half[..16], [120 + 0xffff; 16]);
    assert_eq!(half[16..], [0; 16]);
}

#[test]
fn lanes_part_and_meet_again() {
    // Loops of a different length in each lane, an early exit, and a meeting after.
    let got = words(
        64,
        "
        mov.u32 %r1, 0; mov.u32 %r2, 0;
        LOOP: setp.ge.u32 %p0, %r1, %r0; @%p0 bra OUT;
        add.u32 %r2, %r2, %r1; add.u32 %r1, %r1, 1; bra LOOP;
        OUT: activemask.b32 %r4; popc.b32 %r4, %r4; shl.b32 %r4, %r4, 16; or.b32 %r2, %r2, %r4;
        st.global.u32 [%rd1], %r2;",
    );
    for (t, got) in got.iter().enumerate() {
        assert_eq!(*got, (t * t.saturating_sub(1) / 2) as u32 | 32 << 16, "thread {t}");
    }
    let (d, out) = device(
        32,
        "
        setp.eq.u32 %p0, %r0, 5; @%p0 exit;
        setp.lt.u32 %p1, %r0, 8; @%p1 bra LOW; mov.u32 %r1, 2; bra.uni MEET; LOW: mov.u32 %r1, 1;
        MEET: st.global.u32 [%rd1], %r1;",
    );
    d.memory.fill(out, 0, 128).expect("an allocation");
    let counters = d.ok(1, 32, &Params::new().u64(out));
    let got = d.read(out, 32);
    assert!((0..32).all(|l| got[l]
        == if l == 5 {
            0
        } else if l < 8 {
            1
        } else {
            2
        }));
    assert_eq!(counters.divergent, 1);
}

#[test]
fn branches_by_index() {
    let got = words(
        32,
        "and.b32 %r1, %r0, 3; LIST: .branchtargets A, B, C, A;
         brx.idx %r1, LIST; A: mov.u32 %r2, 10; bra END; B: mov.u32 %r2, 11; bra END; C: mov.u32 %r2, 12;
         END: st.global.u32 [%rd1], %r2;",
    );
    assert!(got.iter().enumerate().all(|(l, v)| *v == [10, 11, 12, 10][l % 4]));
}

#[test]
fn barriers_carry_values_between_warps() {
    let got = words(
        128,
        "
        .shared .align 4 .b8 cells[512];
        shl.b32 %r1, %r0, 2; mov.u32 %r2, cells; add.u32 %r3, %r2, %r1; st.shared.u32 [%r3], %r0;
        bar.sync 0;
        sub.u32 %r4, 508, %r1; add.u32 %r3, %r2, %r4; ld.shared.u32 %r5, [%r3]; st.global.u32 [%rd1], %r5;",
    );
    assert!(got.iter().enumerate().all(|(t, v)| *v == 127 - t as u32));
    let got = words(64, "
        setp.lt.u32 %p0, %r0, 40; bar.red.popc.u32 %r1, 0, %p0; bar.red.and.pred %p1, 0, %p0; bar.red.or.pred %p2, 0, %p0;
        selp.u32 %r2, 1000, 0, %p1; selp.u32 %r3, 100, 0, %p2; add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3;
        st.global.u32 [%rd1], %r1;");
    assert_eq!(got, [140; 64]);
    // A named barrier: the first warp gives, the second takes.
    let got = words(
        64,
        "
        .shared .align 4 .b32 cell;
        setp.ge.u32 %p0, %r0, 32; @%p0 bra TAKE;
        st.shared.u32 [cell], 7; bar.arrive 1, 64; st.global.u32 [%rd1], 0; ret;
        TAKE: bar.sync 1, 64; ld.shared.u32 %r1, [cell]; st.global.u32 [%rd1], %r1;",
    );
    assert_eq!(got[32..], [7; 32]);
}

#[test]
fn atomics() {
    // 4 blocks of 64 on one cell: op, start, result.
    let cases: [(&str, &str, u32, u32); 9] = [
        ("add.u32", "1", 5, 261),
        ("min.s32", "-3", 5, -3i32 as u32),
        ("max.u32", "%r0", 5, 63),
        ("and.b32", "0xf0", 0xff, 0xf0),
        ("or.b32", "%r0", 0, 63),
        ("xor.b32", "1", 6, 6),
        ("inc.u32", "9", 0, 6),
        ("dec.u32", "9", 3, 7),
        ("add.f32", "0f3f000000", 0, 128f32.to_bits()),
    ];
    for (op, b, start, want) in cases {
        for space in ["global.", ""] {
            let d = Device::kernel(
                "u64",
                &format!("ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x; red.{space}{op} [%rd0], {b};"),
            );
            let cell = d.words("cell", &[start]);
            d.ok(4, 64, &Params::new().u64(cell));
            assert_eq!(d.read(cell, 1), [want], "{op}");
        }
    }
    // The old value comes back; shared memory too, and 64 bits, and cas.
    let got = words(32, "
        .shared .align 8 .b64 cell;
        setp.ne.u32 %p0, %r0, 0; @!%p0 st.shared.u64 [cell], 1; bar.warp.sync -1;
        cvt.u64.u32 %rd2, %r0; atom.shared.add.u64 %rd3, [cell], 2; cvt.u32.u64 %r1, %rd3; st.global.u32 [%rd1], %r1;");
    assert!(got.iter().enumerate().all(|(l, v)| *v == 1 + 2 * l as u32));
    let d = Device::kernel(
        "u64",
        "
        ld.param.u64 %rd0, [p0]; mov.u32 %r0, %tid.x;
        SPIN: ld.volatile.global.u32 %r1, [%rd0]; add.u32 %r2, %r1, 3;
        atom.global.cas.b32 %r3, [%rd0], %r1, %r2; setp.ne.u32 %p0, %r3, %r1; @%p0 bra SPIN;",
    );
    let cell = d.words("cell", &[0]);
    d.ok(8, 96, &Params::new().u64(cell));
    assert_eq!(d.read(cell, 1), [8 * 96 * 3]);
    let d = Device::kernel(
        "u64",
        "ld.param.u64 %rd0, [p0]; mov.b32 %r1, 0x40003c00; red.global.add.noftz.f16x2 [%rd0], %r1;",
    );
    let cell = d.words("cell", &[0]);
    d.ok(1, 32, &Params::new().u64(cell));
    assert_eq!(d.read(cell, 1), [0x5400_5000], "32 · (1, 2)");
}

#[test]
fn the_last_block_reads_what_the_others_released() {
    // Partial sums, a fence, a counter; whoever comes last adds up.
    let d = Device::kernel("u64 u64", "
        ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %ctaid.x; add.u32 %r1, %r0, 1;
        mul.wide.u32 %rd2, %r0, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r1;
        membar.gl; atom.global.add.u32 %r2, [%rd0], 1; setp.ne.u32 %p0, %r2, 15; @%p0 exit;
        membar.gl; mov.u32 %r3, 0; mov.u32 %r4, 0;
        SUM: mul.wide.u32 %rd2, %r3, 4; add.s64 %rd2, %rd1, %rd2; ld.global.u32 %r5, [%rd2]; add.u32 %r4, %r4, %r5;
        add.u32 %r3, %r3, 1; setp.lt.u32 %p0, %r3, 16; @%p0 bra SUM; st.global.u32 [%rd0+4], %r4;");
    let (cells, parts) = (d.words("cells", &[0, 0]), d.empty("parts", 64));
    d.ok(16, 1, &Params::new().u64(cells).u64(parts));
    assert_eq!(d.read(cells, 2), [16, 136]);
}

#[test]
fn copies_land_at_their_wait() {
    // Two groups; the first is waited for and read, then the second; a short source leaves zeros.
    let d = Device::kernel("u64 u64", "
        .shared .align 16 .b8 tile[1024];
        ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 16;
        add.s64 %rd0, %rd0, %rd2; add.s64 %rd1, %rd1, %rd2; shl.b32 %r1, %r0, 4; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2;
        cp.async.cg.shared.global [%r1], [%rd0], 16; cp.async.commit_group;
        mov.u32 %r3, 6; cp.async.ca.shared.global [%r1+512], [%rd0+512], 8, %r3; cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1]; st.global.v4.u32 [%rd1], {%r4, %r5, %r6, %r7};
        cp.async.wait_all;
        ld.shared.v2.u32 {%r4, %r5}, [%r1+512]; st.global.v2.u32 [%rd1+512], {%r4, %r5};");
    let data: Vec<u32> = (0..256).map(|n| 0x0101_0101 * n).collect();
    let (from, to) = (d.words("from", &data), d.words("to", &[0; 256]));
    let counters = d.ok(1, 32, &Params::new().u64(from).u64(to));
    let got = d.read(to, 256);
    assert_eq!(got[..128], data[..128]);
    for l in 0..32 {
        assert_eq!(got[128 + 4 * l..130 + 4 * l], [data[128 + 4 * l], data[129 + 4 * l] & 0xffff]);
    }
    assert_eq!(counters.global_read, 32 * 16 + 32 * 6);
}

#[test]
fn counters_count_sectors_and_bank_conflicts() {
    let run = |stride: u32| {
        let (d, _) = device(
            32,
            &format!(
                "
            .shared .align 4 .b8 cells[8192];
            mul.lo.u32 %r1, %r0, {}; mov.u32 %r2, cells; add.u32 %r3, %r2, %r1; st.shared.u32 [%r3], %r0;
            mul.wide.u32 %rd2, %r0, {}; add.s64 %rd2, %rd0, %rd2; st.global.u32 [%rd2], %r0;",
                4 * stride,
                4 * stride
            ),
        );
        let out = d.empty("wide", 8192);
        d.ok(1, 32, &Params::new().u64(out))
    };
    for (stride, sectors, conflicts) in
        [(1, 4, 0), (2, 8, 1), (3, 12, 0), (8, 32, 7), (32, 32, 31), (33, 32, 0)]
    {
        let c = run(stride);
        assert_eq!((c.sectors, c.bank_conflicts), (sectors, conflicts), "stride {stride}");
        assert_eq!((c.requests, c.global_written, c.shared), (1, 128, 1));
    }
    let c = run(1);
    assert_eq!(c.items()[0], ("instructions", c.instructions()));
    assert!(c.to_json().contains("\"global_sectors\":4"), "{}", c.to_json());
    assert!(c.to_string().contains("global sectors"), "{c}");
}

const CALLS: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);
.extern .func __assertfail (.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s) .noreturn;
.global .align 1 .b8 text[42] = {37, 100, 32, 37, 53, 46, 50, 102, 124, 37, 45, 52, 120, 124, 37, 115, 124, 37, 108, 108, 117, 124, 37, 99, 37, 37, 124, 37, 103, 124, 37, 101, 10};
.global .align 1 .b8 word[3] = {104, 105};
.global .align 1 .b8 what[6] = {120, 32, 62, 32, 49};
.func (.param .b32 out) twice (.param .b32 x)
{
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [x];
    setp_free: add.u32 %r2, %r1, %r1;
    st.param.b32 [out], %r2;
    ret;
}
.visible .entry k(.param .u32 p0)
{
    .local .align 8 .b8 depot[64];
    .reg .b64 %SP; .reg .b64 %SPL;
    .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<3>; .reg .f64 %fd<3>;
    mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;
    mov.u32 %r1, %tid.x;
    { .param .b32 a0; .param .b32 r0; st.param.b32 [a0], %r1; call.uni (r0), twice, (a0); ld.param.b32 %r2, [r0]; }
    add.u64 %rd1, %SP, 0; add.u64 %rd2, %SPL, 0;
    st.local.u32 [%rd2], %r2; mov.f64 %fd1, 0d400921FB54442D18; st.local.f64 [%rd2+8], %fd1;
    st.local.u32 [%rd2+16], 255; mov.u64 %rd3, word; cvta.global.u64 %rd3, %rd3; st.local.u64 [%rd2+24], %rd3;
    mov.u64 %rd4, 12345678901; st.local.u64 [%rd2+32], %rd4; st.local.u32 [%rd2+40], 33; st.local.f64 [%rd2+48], %fd1;
    mov.f64 %fd2, 0d3F50624DD2F1A9FC; st.local.f64 [%rd2+56], %fd2;
    mov.u64 %rd5, text; cvta.global.u64 %rd6, %rd5;
    { .param .b64 a0; .param .b64 a1; .param .b32 r0; st.param.b64 [a0], %rd6; st.param.b64 [a1], %rd1;
      call.uni (r0), vprintf, (a0, a1); ld.param.b32 %r3, [r0]; }
    ld.param.u32 %r4, [p0]; setp.eq.u32 %p1, %r4, 0; @%p1 bra DONE;
    mov.u64 %rd5, what; cvta.global.u64 %rd6, %rd5;
    { .param .b64 a0; .param .b64 a1; .param .b32 a2; .param .b64 a3; .param .b64 a4;
      st.param.b64 [a0], %rd6; st.param.b64 [a1], %rd3; st.param.b32 [a2], 42; st.param.b64 [a3], %rd3; st.param.b64 [a4], 1;
      call.uni __assertfail, (a0, a1, a2, a3, a4); }
    DONE: ret;
}
"#;

#[test]
fn functions_printf_and_assert() {
    let d = Device::new(CALLS);
    let (_, text) = d.print("k", 2, 2, &Params::new().u32(0)).unwrap_or_else(|r| panic!("{r}"));
    let line = |n: u32| format!("{n}  3.14|ff  |hi|12345678901|!%|3.14159|1.000000e-03\n");
    assert_eq!(text, [line(0), line(2), line(0), line(2)].concat());
    let report = d.print("k", 1, 1, &Params::new().u32(1)).expect_err("the assertion fails").to_string();
    assert!(report.contains("assertion `x > 1` failed, hi:42"), "{report}");
}

#[test]
fn generic_addresses_reach_every_space() {
    let got = words(32, "
        .shared .align 4 .b8 cells[128]; .local .align 4 .b8 mine[8];
        shl.b32 %r1, %r0, 2; mov.u32 %r2, cells; add.u32 %r2, %r2, %r1; cvt.u64.u32 %rd2, %r2; cvta.shared.u64 %rd2, %rd2;
        mov.u64 %rd3, mine; cvta.local.u64 %rd3, %rd3; setp.lt.u32 %p0, %r0, 16;
        selp.b64 %rd4, %rd2, %rd3, %p0; st.u32 [%rd4], %r0; ld.u32 %r3, [%rd4];
        isspacep.shared %p1, %rd4; selp.u32 %r4, 100, 0, %p1; add.u32 %r3, %r3, %r4; st.u32 [%rd1], %r3;");
    assert!(got.iter().enumerate().all(|(l, v)| *v == l as u32 + if l < 16 { 100 } else { 0 }));
}
