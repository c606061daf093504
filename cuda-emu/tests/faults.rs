//! Every planted fault is caught and named: the kernel, the line, the thread, the allocation. Its clean twin is not.

mod common;

use common::{Device, Params};
use cuda_emu::{Error, Fault, Module, Report};

/// A module of one kernel, with the source line of each line of `body` that begins with a number and a bar.
fn sourced(body: &str) -> String {
    let mut text = String::from(".reg .u32 unused;");
    for line in body.lines() {
        match line.trim().split_once('|') {
            Some((n, rest)) if n.trim().parse::<u32>().is_ok() => {
                text += &format!("\n.loc 1 {} 5\n{rest}", n.trim());
            }
            _ => text += &format!("\n{line}"),
        }
    }
    format!("{}\n.file 1 \"planted.cu\"\n", common::ptx("u64 u64 u32", &text))
}

struct Case {
    device: Device,
    params: Params,
}

impl Case {
    /// Two buffers of `bytes` bytes, the first full of 1, and a number.
    fn new(body: &str, bytes: usize, n: u32) -> Self {
        let device = Device::new(&sourced(body));
        let (a, b) = (device.bytes("input", vec![1; bytes]), device.empty("output", bytes as u64));
        let params = Params::new().u64(a).u64(b).u32(n);
        Self { device, params }
    }

    fn run(&self, grid: u32, block: u32) -> Result<(), Box<Report>> {
        self.device.run("k", grid, block, &self.params).map(|_| ())
    }

    #[track_caller]
    fn clean(&self, grid: u32, block: u32) {
        if let Err(r) = self.run(grid, block) {
            panic!("the clean twin: {r}");
        }
    }

    /// The fault, whose report must say all of `says`.
    #[track_caller]
    fn caught(&self, grid: u32, block: u32, fault: Fault, says: &[&str]) -> Report {
        let report = *self.run(grid, block).expect_err("the fault is caught");
        let text = report.to_string();
        assert_eq!(report.fault, fault, "{text}");
        for s in ["in kernel k", "PTX line"].iter().chain(says) {
            assert!(text.contains(s), "no `{s}` in: {text}");
        }
        report
    }
}

const HEAD: &str =
    "ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; ld.param.u32 %r9, [p2]; mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0; mul.wide.u32 %rd2, %r3, 4;
    add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2; shl.b32 %r4, %r0, 2;\n";

fn with(body: &str) -> String {
    format!("{HEAD}{body}")
}

/// One element a thread, `n` of them.
const COPY: &str = "
    10| setp.ge.u32 %p0, %r3, %r9;
    11| @%p0 bra DONE;
    12| ld.global.u32 %r5, [%rd3];
    13| st.global.u32 [%rd4], %r5;
    DONE:";

#[test]
fn a_store_one_past_the_end() {
    Case::new(&with(COPY), 400, 100).clean(4, 32);
    let r = Case::new(&with(COPY), 400, 101).caught(
        4,
        32,
        Fault::OutOfBounds,
        &[
            "read of 4 bytes outside every allocation",
            "0 bytes past the end of \"input\" (400 bytes",
            "thread (4,0,0) of block (3,0,0)",
            "ld.global.u32 %r5, [%rd3];",
            "planted.cu:12",
        ],
    );
    assert_eq!(r.source, Some(("planted.cu".into(), 12)));
    let store = with("13| st.global.u32 [%rd4+4], %r0;");
    Case::new(&store, 132, 0).clean(1, 32);
    Case::new(&store, 128, 0).caught(
        1,
        32,
        Fault::OutOfBounds,
        &[
            "write of 4 bytes",
            "past the end of \"output\"",
            "thread (31,0,0) of block (0,0,0)",
            "planted.cu:13",
        ],
    );
}

#[test]
fn a_write_into_a_neighbours_buffer() {
    // From one allocation the next is far; a pointer that runs there is caught on its way.
    let walk = with("7| mul.wide.u32 %rd5, %r9, 4; add.s64 %rd5, %rd3, %rd5; st.global.u32 [%rd5], %r0;");
    Case::new(&walk, 256, 32).clean(1, 32);
    Case::new(&walk, 256, 128).caught(
        1,
        32,
        Fault::OutOfBounds,
        &["256 bytes past the end of \"input\"", "planted.cu:7"],
    );
    Case::new(&with("9| sub.s64 %rd5, %rd3, 16; st.global.u32 [%rd5], %r0;"), 256, 0).caught(
        1,
        32,
        Fault::OutOfBounds,
        &["\"input\"", "thread (0,0,0)"],
    );
    Case::new(&with("st.global.u32 [0], %r0;"), 256, 0).caught(1, 1, Fault::OutOfBounds, &["address 0x0"]);
}

#[test]
fn memory_that_was_freed() {
    let c = Case::new(&with(COPY), 400, 32);
    c.clean(1, 32);
    let at = c.device.memory.live().iter().find(|a| a.name == "input").expect("live").addr;
    c.device.memory.free(at).expect("the first time");
    c.caught(1, 32, Fault::UseAfterFree, &["byte 0 of freed \"input\"", "thread (0,0,0)", "planted.cu:12"]);
    let again = c.device.memory.free(at).expect_err("a double free");
    assert!(
        again.to_string().contains("double free") && again.to_string().contains("freed \"input\""),
        "{again}"
    );
    assert!(matches!(
        c.device.memory.free(at + 8),
        Err(Error::Memory { what: "free of an unknown address", .. })
    ));
    assert!(c.device.memory.write(at, &[0]).is_err());
}

#[test]
fn a_misaligned_vector_load() {
    let load = |off: u32| with(&format!("21| ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%rd0+{off}];"));
    Case::new(&load(16), 64, 0).clean(1, 32);
    Case::new(&load(8), 64, 0).caught(
        1,
        32,
        Fault::Misaligned,
        &["16 bytes", "byte 8 of \"input\"", "planted.cu:21"],
    );
    let shared = with(".shared .align 16 .b8 s[256]; mov.u32 %r5, s; 5| st.shared.u64 [%r5+4], %rd0;");
    Case::new(&shared.replace("5| ", ""), 64, 0).caught(
        1,
        1,
        Fault::Misaligned,
        &["byte 4 of shared memory"],
    );
}

#[test]
fn reads_of_what_nobody_wrote() {
    let read = with("31| ld.global.u32 %r5, [%rd4];");
    let c = Case::new(&read, 128, 0);
    c.caught(1, 32, Fault::Uninitialised, &["byte 0 of \"output\"", "thread (0,0,0)", "planted.cu:31"]);
    let at = c.device.memory.live().iter().find(|a| a.name == "output").expect("live").addr;
    c.device.memory.fill(at, 0, 120).expect("inside");
    c.caught(1, 32, Fault::Uninitialised, &["byte 120 of \"output\"", "thread (30,0,0)"]);
    c.device.memory.fill(at, 0, 128).expect("inside");
    c.clean(1, 32);
    let shared = |n: u32| {
        with(&format!(
            ".shared .align 4 .b8 s[256]; mov.u32 %r5, s; add.u32 %r5, %r5, %r4; setp.lt.u32 %p0, %r0, {n};
         @%p0 st.shared.u32 [%r5], %r0; bar.sync 0;\n41| ld.shared.u32 %r6, [%r5];"
        ))
    };
    Case::new(&shared(64), 64, 0).clean(1, 64);
    Case::new(&shared(50), 64, 0).caught(
        1,
        64,
        Fault::Uninitialised,
        &["shared memory", "byte 200 of shared memory", "thread (50,0,0)", "planted.cu:41"],
    );
}

#[test]
fn a_missing_barrier() {
    let swap = |bar: &str| {
        with(&format!(
        ".shared .align 4 .b8 s[256]; mov.u32 %r5, s; add.u32 %r6, %r5, %r4; st.shared.u32 [%r6], %r0; {bar}
         xor.b32 %r7, %r4, 128; add.u32 %r6, %r5, %r7;\n51| ld.shared.u32 %r8, [%r6]; st.global.u32 [%rd4], %r8;"
    ))
    };
    Case::new(&swap("bar.sync 0;"), 256, 0).clean(1, 64);
    // Warp 0 runs first, and reads what warp 1 has not written yet; warp 1 then reads what warp 0 wrote.
    let r = Case::new(&swap(""), 256, 0).run(1, 64).expect_err("caught");
    assert!(matches!(r.fault, Fault::Uninitialised | Fault::SharedRace), "{r}");
    // A second round without the barrier between reading and writing again.
    let rounds = |bar: &str| {
        with(&format!(
        ".shared .align 4 .b8 s[256]; mov.u32 %r5, s; add.u32 %r6, %r5, %r4; xor.b32 %r7, %r4, 128; add.u32 %r7, %r5, %r7;
         st.shared.u32 [%r6], %r0; bar.sync 0; ld.shared.u32 %r8, [%r7]; {bar}\n61| st.shared.u32 [%r6], %r8;"
    ))
    };
    Case::new(&rounds("bar.sync 0;"), 256, 0).clean(1, 64);
    Case::new(&rounds(""), 256, 0).caught(
        1,
        64,
        Fault::SharedRace,
        &[
            "read of shared memory that another warp touched with no barrier between",
            "thread (32,0,0)",
            "byte 0 of shared memory",
            "ld.shared.u32 %r8, [%r7]",
        ],
    );
    // Both halves of one word by two warps are no race; nor are atomics; nor a warp with itself.
    Case::new(&with(
        ".shared .align 4 .b32 s; shr.u32 %r5, %r0, 5; shl.b32 %r5, %r5, 1; mov.u32 %r6, s; add.u32 %r6, %r6, %r5;
         st.shared.u16 [%r6], %h0;",
    ), 64, 0).clean(1, 64);
    Case::new(&with(
        ".shared .align 4 .b32 s; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [s], 0; bar.sync 0; red.shared.add.u32 [s], 1;",
    ), 64, 0).clean(1, 96);
    // An atomic and a plain read are.
    Case::new(
        &with(
            ".shared .align 4 .b32 s; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [s], 0; bar.sync 0;
         setp.lt.u32 %p0, %r0, 32; @%p0 red.shared.add.u32 [s], 1; @!%p0 ld.shared.u32 %r5, [s];",
        ),
        64,
        0,
    )
    .caught(1, 64, Fault::SharedRace, &["thread (32,0,0)"]);
}

#[test]
fn barriers_of_some_warps_order_only_those() {
    // Warps 0 and 1 meet at barrier 1; warp 2 writes, and only meets them at barrier 0.
    let body = |last: &str| {
        with(&format!(
        ".shared .align 4 .b8 s[8]; setp.lt.u32 %p0, %r0, 64; @!%p0 bra TWO;
         setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [s], 1; bar.sync 1, 64; ld.shared.u32 %r5, [s]; bar.sync 0, 96; bra END;
         TWO: {last} END:"
    ))
    };
    Case::new(&body("bar.sync 0, 96; ld.shared.u32 %r5, [s];"), 64, 0).clean(1, 96);
    Case::new(&body("ld.shared.u32 %r5, [s]; bar.sync 0, 96;"), 64, 0).caught(
        1,
        96,
        Fault::SharedRace,
        &["thread (64,0,0)"],
    );
}

#[test]
fn barriers_that_not_all_reach() {
    let split = |n: u32| with(&format!("setp.ge.u32 %p0, %r0, {n}; @%p0 bra DONE;\n71| bar.sync 0; DONE:"));
    Case::new(&split(64), 64, 0).clean(1, 64);
    Case::new(&split(40), 64, 0).caught(
        1,
        64,
        Fault::Barrier,
        &["lanes 0xffffff00", "bar.sync 0;", "planted.cu:71", "thread (32,0,0)"],
    );
    Case::new(&split(32), 64, 0).caught(
        1,
        64,
        Fault::Barrier,
        &["warps 0 wait", "exited: 1", "planted.cu:71"],
    );
    let two = with("setp.lt.u32 %p0, %r0, 32; @%p0 bra A; bar.sync 1; bra B; A: bar.sync 2; B:");
    Case::new(&two, 64, 0).caught(1, 64, Fault::Barrier, &["deadlock", "barrier 1", "barrier 2"]);
    let count = with("setp.lt.u32 %p0, %r0, 32; @%p0 bra A; bar.sync 1, 64; bra B; A: bar.sync 1, 96; B:");
    Case::new(&count, 64, 0).caught(1, 96, Fault::Barrier, &["barrier 1 for"]);
    let guard = with("setp.lt.u32 %p0, %r0, 16;\n72| @%p0 bar.sync 0;");
    Case::new(&guard, 64, 0).caught(1, 32, Fault::Barrier, &["under a predicate", "planted.cu:72"]);
    let shuffle = with("setp.lt.u32 %p0, %r0, 16; @%p0 exit;\n73| shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;");
    Case::new(&shuffle, 64, 0).caught(1, 32, Fault::Barrier, &["lanes 0x0000ffff", "planted.cu:73"]);
}

#[test]
fn a_missing_wait_for_an_asynchronous_copy() {
    let copy = |wait: &str| {
        with(&format!(
        ".shared .align 16 .b8 s[1024]; mov.u32 %r5, s; shl.b32 %r6, %r0, 4; add.u32 %r5, %r5, %r6; cvt.u64.u32 %rd5, %r6;
         add.s64 %rd5, %rd0, %rd5; cp.async.cg.shared.global [%r5], [%rd5], 16; cp.async.commit_group; {wait}
         \n81| ld.shared.u32 %r7, [%r5];"
    ))
    };
    Case::new(&copy("cp.async.wait_group 0;"), 512, 0).clean(1, 32);
    for wait in ["", "cp.async.wait_group 1;", "bar.sync 0;"] {
        Case::new(&copy(wait), 512, 0).caught(
            1,
            32,
            Fault::AsyncCopy,
            &["cp.async is still in flight", "byte 0 of shared memory", "planted.cu:81"],
        );
    }
    // Waited for, but only by the warp that copied.
    let other = |bar: &str| {
        with(&format!(
        ".shared .align 16 .b8 s[1024]; mov.u32 %r5, s; shl.b32 %r6, %r0, 4; add.u32 %r8, %r5, %r6; cvt.u64.u32 %rd5, %r6;
         add.s64 %rd5, %rd0, %rd5; cp.async.cg.shared.global [%r8], [%rd5], 16; cp.async.wait_all; {bar}
         xor.b32 %r6, %r6, 512; add.u32 %r8, %r5, %r6; ld.shared.u32 %r7, [%r8];"
    ))
    };
    Case::new(&other("bar.sync 0;"), 1024, 0).clean(1, 64);
    let r = Case::new(&other(""), 1024, 0).run(1, 64).expect_err("caught");
    assert!(matches!(r.fault, Fault::SharedRace | Fault::Uninitialised), "{r}");
}

#[test]
fn two_blocks_that_write_one_cell() {
    let own = with("91| st.global.u32 [%rd4], %r0;");
    Case::new(&own, 512, 0).clean(4, 32);
    let same = with("mul.wide.u32 %rd5, %r0, 4; add.s64 %rd5, %rd1, %rd5;\n92| st.global.u32 [%rd5], %r1;");
    let r = Case::new(&same, 512, 0).caught(
        2,
        32,
        Fault::GlobalRace,
        &[
            "write to a cell that block (",
            "wrote in the same launch",
            "byte 0 of \"output\"",
            "thread (0,0,0)",
            "planted.cu:92",
        ],
    );
    assert!(r.address.is_some());
    // One writes what another reads, and halves of one word apart are no clash.
    let next = with("st.global.u32 [%rd4], 1; setp.eq.u32 %p0, %r1, 1; @%p0 ld.global.u32 %r5, [%rd1];");
    Case::new(&next, 512, 0).caught(2, 1, Fault::GlobalRace, &["\"output\""]);
    let halves = with("mul.wide.u32 %rd5, %r3, 2; add.s64 %rd5, %rd1, %rd5; st.global.u16 [%rd5], %h0;");
    Case::new(&halves, 64, 0).clean(7, 3);
}

/// Whatever the threads do, the report is of the lowest block that is at fault, and counters add up the same.
#[test]
fn reports_and_counters_do_not_depend_on_threads() {
    let fault = with("setp.lt.u32 %p0, %r1, 37; @%p0 exit; st.global.u32 [%rd4+65536], %r0;");
    let clean = with(COPY);
    let mut counters = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            for _ in 0..5 {
                Case::new(&fault, 4096, 0).caught(
                    200,
                    32,
                    Fault::OutOfBounds,
                    &["thread (0,0,0) of block (37,0,0)"],
                );
            }
            let c = Case::new(&clean, 25_600, 6400);
            counters.push(c.device.run("k", 200, 32, &c.params).expect("clean"));
        });
    }
    assert!(counters.iter().all(|c| *c == counters[0] && c.global_read == 25_600));
}

/// Of two blocks that race, chance decides which comes second; the report does not depend on it.
#[test]
fn a_race_is_reported_alike() {
    let body = "setp.lt.u32 %p0, %r1, 11; @%p0 exit; mul.wide.u32 %rd5, %r0, 4; add.s64 %rd5, %rd1, %rd5;
        93| st.global.u32 [%rd5], %r1;";
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            for _ in 0..10 {
                Case::new(&with(body), 512, 0).caught(
                    64,
                    32,
                    Fault::GlobalRace,
                    &["cell that block (11,0,0) wrote", "thread (0,0,0) of block (12,0,0)", "planted.cu:93"],
                );
            }
        });
    }
}

/// What a copy brings from where nobody wrote is as unwritten as it was.
#[test]
fn a_copy_carries_what_was_written() {
    let c = Case::new(&with("31| ld.global.u8 %r5, [%rd4];"), 512, 0);
    let [from, to] = ["input", "output"]
        .map(|name| c.device.memory.live().into_iter().find(|a| a.name == name).expect("live").addr);
    let part = c.device.empty("part", 300);
    // Bytes 40 to 239 of `part` are written; they and their neighbours go to places of every phase.
    c.device.memory.copy(part + 40, from, 200).expect("inside");
    for at in [0, 1, 63, 64, 100, 129] {
        c.device.memory.fill(to, 9, 512).expect("inside");
        c.device.memory.copy(to + at, part + 33, 214).expect("inside");
        let whole = |from: u64, bytes: u64| {
            let body = format!(
                "setp.ge.u32 %p0, %r0, {bytes}; @%p0 exit;
                cvt.u64.u32 %rd5, %r0; add.s64 %rd5, %rd5, %rd1; ld.global.u8 %r5, [%rd5+{from}];"
            );
            let mut module = Module::parse(&sourced(&with(&body))).expect("PTX");
            module.place(&c.device.memory);
            let launch = cuda_emu::Launch {
                grid: [1; 3],
                block: [512, 1, 1],
                dynamic_shared: 0,
                params: &c.params.0,
                checks: cuda_emu::Checks::default(),
            };
            cuda_emu::launch(&module, "k", &c.device.memory, &launch).is_ok()
        };
        assert!(whole(at + 7, 200), "at {at}: what was written");
        assert!(!whole(at + 6, 2) && !whole(at + 206, 2), "at {at}: its neighbours");
        assert!(whole(at + 214, 512 - 214 - at), "at {at}: what was there");
        let mut bytes = [0; 200];
        c.device.memory.read(to + at + 7, &mut bytes).expect("inside");
        assert_eq!(bytes, [1; 200]);
    }
    // Within one allocation, overlapping.
    c.device.memory.copy(part + 50, part + 40, 250).expect("inside");
    assert!(
        c.device.memory.copy(part + 60, part, 250).is_err() && c.device.memory.copy(to, part, 301).is_err()
    );
}

#[test]
fn more_than_the_machine_has_is_an_error() {
    let memory = cuda_emu::Memory::new();
    for bytes in [u64::MAX, u64::MAX - 600, 1 << 62] {
        let e = memory.try_alloc(bytes, "huge").expect_err("no machine has that").to_string();
        assert!(e.contains(&bytes.to_string()), "{e}");
    }
    assert!(memory.live().is_empty());
}

/// A register that was never written holds 0 in every block, whatever ran there before.
#[test]
fn a_register_nobody_wrote_is_zero() {
    let body = "setp.eq.u32 %p0, %r1, 1000; @%p0 mov.u32 %r20, 5; add.u32 %r20, %r20, 7; @%p1 add.u32 %r20, %r20, 100;
        mov.u64 %rd9, 3; st.global.u32 [%rd4], %r20; mov.u32 %r20, 77; setp.eq.u32 %p1, %r20, 77; add.u64 %rd9, %rd9, %rd10;
        add.u64 %rd10, %rd10, 1;";
    let c = Case::new(&with(body), 64 * 128, 0);
    for _ in 0..3 {
        c.clean(64, 32);
        let to = c.device.memory.live().into_iter().find(|a| a.name == "output").expect("live").addr;
        assert_eq!(c.device.read(to, 64 * 32), vec![7; 64 * 32]);
    }
}

#[test]
fn a_loop_without_end() {
    let spin = with("101| SPIN: ld.volatile.global.u32 %r5, [%rd0]; setp.ne.u32 %p0, %r5, 0; @%p0 bra SPIN;");
    Case::new(&spin, 64, 0).caught(1, 32, Fault::Hang, &["never ends", "planted.cu:101"]);
    // The same, but somebody ends it: another warp of the block.
    let ended = with(
        "setp.ge.u32 %p1, %r0, 32; @%p1 bra GO;
        SPIN: ld.volatile.global.u32 %r5, [%rd0]; setp.ne.u32 %p0, %r5, 0; @%p0 bra SPIN; ret;
        GO: st.volatile.global.u32 [%rd0], 0;",
    );
    Case::new(&ended, 64, 0).clean(1, 64);
    // One that counts for ever is stopped by the limit.
    let count = with("COUNT: add.u32 %r5, %r5, 1; bra COUNT;");
    Case::new(&count, 64, 0).caught(1, 32, Fault::Hang, &["still running after"]);
}

#[test]
fn traps_and_impossible_launches() {
    Case::new(&with("setp.eq.u32 %p0, %r0, 3;\n111| @%p0 trap;"), 64, 0).caught(
        1,
        32,
        Fault::Trap,
        &["trap", "thread (3,0,0)", "planted.cu:111"],
    );
    let c = Case::new(&with("exit;"), 64, 0);
    let refused = |grid: u32, block: u32, says: &str| {
        let r = c.run(grid, block).expect_err("refused");
        assert!(r.fault == Fault::Launch && r.to_string().contains(says), "{r}");
    };
    refused(1, 1025, "1 to 1024");
    refused(0, 32, "a grid of [0, 1, 1] blocks");
    let few = c.device.run("k", 1, 1, &Params::new().u64(0)).expect_err("too few").to_string();
    assert!(few.contains("8 bytes of parameters; the kernel takes 20"), "{few}");
    let none = c.device.run("other", 1, 1, &c.params).expect_err("no such kernel").to_string();
    assert!(none.contains("no such kernel") && none.contains("it has: k"), "{none}");
}

#[test]
fn ptx_that_is_not_understood() {
    let error = |text: &str| match Module::parse(text) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("accepted: {text}"),
    };
    let e = error(&common::ptx("u64", "add.u32 %r1, %r1, 1;\nfrobnicate.b32 %r1, %r2;"));
    assert!(
        e.contains("unknown instruction") && e.contains("frobnicate.b32") && e.contains("PTX line 13"),
        "{e}"
    );
    for body in [
        "add.u32 %r1, %r2;",
        "add.u32 %r1, %r2, %nothing;",
        "bra NOWHERE;",
        "add.u64 %r1, %r2, %r3;",
        "ld.global.u32 %r1;",
        "ld.global.u32 %r1, [%rd0",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r1}, {%f1};",
        "wgmma.fence.sync.aligned;",
        "call missing;",
        "setp.lt.f32;",
        "@%p99 bra X; X:",
        "shfl.sync.bfly.b32 %r1;",
        "min.xorsign.abs.f32 %f1, %f2, %f3;",
        "add.cc.u16 %h1, %h2, %h3;",
        "slct.f32.u32 %f1, %f2, %f3, %r1;",
        "set.lt.f16.f32 %h1, %f2, %f3;",
        "madc.wide.u32 %rd1, %r1, %r2, %rd2;",
        "cp.async.wait_group;",
        ".reg .b128 %q;",
        "mov.b64 %rd0, {%r1, %r2, %r3};",
    ] {
        error(&common::ptx("u64", body));
    }
    for text in [
        "",
        "\u{7f}ELF",
        ".version 8.0",
        ".version 8.0\n.target sm_90a\n.address_size 64",
        ".version 8.0\n.entry k(",
    ] {
        let _ = Module::parse(text).map(|_| ()).map_err(|e| e.to_string());
    }
    let deep = format!("mov.u32 %r1, {};", "[".repeat(100_000));
    let wide = format!("st.global.v4.u32 [%rd0], {{{}}};", vec!["%r1"; 64].join(", "));
    for body in [
        deep.as_str(),
        wide.as_str(),
        "mma {%f1}, {%r1}, {%r1}, {%f1};",
        "cp.async [%r1], [%rd1], 16;",
        "mov %rd1, %r1;",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {}, [%r1];",
        "ld.global.v3.u32 {%r1, %r2, %r3}, [%rd0];",
        ".reg .b64 %x<1000000>; .reg .b64 %y<1000000>;",
        ".local .align 16 .b8 huge[1099511627776];",
        "brx.idx %r1, NOWHERE;",
    ] {
        error(&common::ptx("u64", body));
    }
    error(&format!("{}.global .b8 huge[1099511627776];", common::ptx("u64", "")));
    let _ = Module::parse(&format!("{}.shared .b8 huge[4294967295][4294967295];", common::ptx("u64", "")));
    // Cut anywhere, a module is an error or a module, and never a panic.
    let whole = sourced(&with(COPY));
    for n in 0..whole.len() {
        let _ = Module::parse(&whole[..n]);
    }
}
