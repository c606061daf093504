//! Planted faults, end to end: CUDA C++ through the real NVRTC, launched by the real cudarc on the emulator. Each is
//! caught and named in the engine's error: kernel, PTX line, source line, thread, address, allocation. Its clean twin,
//! the same source with one piece or one number put right, gives no report.

mod common;

use asasr_engine::engine::cuda::{Launch, library};
use asasr_engine::engine::kernels;
use asasr_engine::engine::nvrtc::Source;
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::{Error, Result};
use cudarc::driver::result;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The emulator is one for the process, and so is the context that a fault leaves unusable: one test at a time, each
/// with the context as new.
fn device() -> Option<(MutexGuard<'static, ()>, Device)> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    library::reset_counters();
    Some((one, common::cuda::emulator()?))
}

fn numbers(device: &Device, n: usize) -> Tensor {
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    Tensor::from_slice(device, &[n], &values).unwrap_or_else(|e| panic!("{e}"))
}

fn empty(device: &Device, n: usize) -> Tensor {
    Tensor::empty(device, &[n]).unwrap_or_else(|e| panic!("{e}"))
}

/// A kernel with a fault: `$` stands for the faulty piece or the right one; `// here` is on the line that is at fault.
struct Planted {
    name: &'static str,
    text: &'static str,
    right: &'static str,
    wrong: &'static str,
}

impl Planted {
    /// Launches both twins by `run`, which is told whether it is the faulty one. That one's error says all of `says`.
    fn caught(
        &self,
        grid: usize,
        block: u32,
        run: impl Fn(&Device, Launch<'_>, bool) -> Result<()>,
        says: &[&str],
    ) {
        let Some((_one, device)) = device() else { return };
        let gpu = device.gpu().expect("the emulator");
        let twin = |wrong: bool| {
            let text = self.text.replace('$', if wrong { self.wrong } else { self.right });
            let source = Source { name: &format!("{}.cu", self.name), text: &text, headers: &[] };
            let kernel = gpu.compile(&source, self.name).unwrap_or_else(|e| panic!("{e}"));
            run(&device, gpu.launch(&kernel, [grid, 1, 1], block), wrong)
        };
        twin(false).unwrap_or_else(|e| panic!("the clean twin: {e}"));
        assert_eq!(library::report(), None, "the clean twin");
        let e = twin(true).expect_err("the fault is caught");
        assert!(matches!(e, Error::Cuda { .. }), "{e:?}");
        let line = 1 + self.text.lines().position(|l| l.contains("// here")).expect("a line is marked");
        let (kernel, place) = (format!("in kernel {}: ", self.name), format!("; {}.cu:{line}", self.name));
        let e = e.to_string();
        for s in [&kernel as &str, &place, "PTX line "].iter().chain(says) {
            assert!(e.contains(s), "no `{s}` in: {e}");
        }
        // As on hardware nothing more can be done in that context.
        let after = Tensor::zeros(&device, &[4]).expect_err("the context is lost").to_string();
        assert!(after.contains("CUDA_ERROR_"), "{after}");
        library::reset_counters();
    }
}

#[test]
fn a_store_one_past_the_end() {
    let planted = Planted {
        name: "off_by_one",
        text: r#"extern "C" __global__ void __launch_bounds__(32) off_by_one(const float* x, float* y, int n) {
    int i = blockIdx.x * 32 + threadIdx.x;
    if (i $ n) {
        y[i] = x[i % n] + 1.f;  // here
    }
}"#,
        right: "<",
        wrong: "<=",
    };
    let run =
        |d: &Device, l: Launch<'_>, _| l.read(&numbers(d, 100)).write(&mut empty(d, 100)).value(100i32).run();
    let says = [
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "OutOfBounds",
        "write of 4 bytes outside every allocation; address 0x",
        "(0 bytes past the end of \"cuMemAllocAsync#",
        "\" (400 bytes at 0x",
        "thread (4,0,0) of block (3,0,0)",
        "st.global.f32",
    ];
    planted.caught(4, 32, run, &says);
}

/// The pitch of a row is wrong, so that the last threads run on into what lies after the buffer.
#[test]
fn a_write_into_a_neighbours_buffer() {
    let planted = Planted {
        name: "neighbour",
        text: r#"extern "C" __global__ void __launch_bounds__(64) neighbour(float* y) {
    y[blockIdx.x * $ + threadIdx.x] = 1.f;  // here
}"#,
        right: "64",
        wrong: "72",
    };
    let run = |d: &Device, l: Launch<'_>, _| {
        let (mut y, neighbour) = (empty(d, 256), numbers(d, 256));
        let result = l.write(&mut y).run();
        drop(neighbour);
        result
    };
    let says =
        ["OutOfBounds", "(0 bytes past the end of \"", "(1024 bytes at", "thread (40,0,0) of block (3,0,0)"];
    planted.caught(4, 64, run, &says);
}

#[test]
fn a_missing_barrier() {
    let planted = Planted {
        name: "barrier_missing",
        text: r#"extern "C" __global__ void __launch_bounds__(64) barrier_missing(const float* x, float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = 0.f;
    __syncthreads();
    s[threadIdx.x] = x[threadIdx.x];  // here
    $;
    y[threadIdx.x] = s[63 - threadIdx.x];
}"#,
        right: "__syncthreads()",
        wrong: "",
    };
    let run = |d: &Device, l: Launch<'_>, _| l.read(&numbers(d, 64)).write(&mut empty(d, 64)).run();
    let says =
        ["SharedRace", "with no barrier between", "byte 128 of shared memory, 256 bytes", "thread (32,0,0)"];
    planted.caught(1, 64, run, &says);
}

#[test]
fn a_missing_wait_for_an_asynchronous_copy() {
    let planted = Planted {
        name: "wait_missing",
        text: r#"extern "C" __global__ void __launch_bounds__(32) wait_missing(const float4* x, float4* y) {
    __shared__ float4 s[32];
    unsigned to = (unsigned)__cvta_generic_to_shared(s + threadIdx.x);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(x + threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group $;" ::: "memory");
    y[threadIdx.x] = s[threadIdx.x];  // here
}"#,
        right: "0",
        wrong: "1",
    };
    let run = |d: &Device, l: Launch<'_>, _| l.read(&numbers(d, 128)).write(&mut empty(d, 128)).run();
    let says = ["AsyncCopy", "cp.async is still in flight", "byte 0 of shared memory", "thread (0,0,0)"];
    planted.caught(1, 32, run, &says);
}

#[test]
fn reads_of_global_memory_that_nobody_wrote() {
    let planted = Planted {
        name: "never_written",
        text: r#"extern "C" __global__ void __launch_bounds__(32) never_written(const float* x, float* y) {
    y[threadIdx.x] = 2.f * x[threadIdx.x];  // here
}"#,
        right: "",
        wrong: "",
    };
    let run = |d: &Device, l: Launch<'_>, wrong| {
        l.read(&if wrong { empty(d, 32) } else { numbers(d, 32) }).write(&mut empty(d, 32)).run()
    };
    let says =
        ["Uninitialised", "never written", "byte 0 of \"cuMemAllocAsync#", "(128 bytes", "thread (0,0,0)"];
    planted.caught(1, 32, run, &says);
}

#[test]
fn reads_of_shared_memory_that_nobody_wrote() {
    let planted = Planted {
        name: "shared_never_written",
        text: r#"extern "C" __global__ void __launch_bounds__(64) shared_never_written(const float* x, float* y) {
    __shared__ float s[64];
    if (threadIdx.x < $) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];  // here
}"#,
        right: "64",
        wrong: "50",
    };
    let run = |d: &Device, l: Launch<'_>, _| l.read(&numbers(d, 64)).write(&mut empty(d, 64)).run();
    planted.caught(1, 64, run, &["Uninitialised", "byte 200 of shared memory", "thread (50,0,0)"]);
}

#[test]
fn a_misaligned_vector_load() {
    let planted = Planted {
        name: "misaligned",
        text: r#"extern "C" __global__ void __launch_bounds__(8) misaligned(const float* x, float4* y) {
    y[threadIdx.x] = *(const float4*)(x + $ + 4 * threadIdx.x);  // here
}"#,
        right: "4",
        wrong: "2",
    };
    let run = |d: &Device, l: Launch<'_>, _| l.read(&numbers(d, 64)).write(&mut empty(d, 32)).run();
    let says = [
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "an access of 16 bytes at an address that is not a multiple of 16; address 0x",
        "(byte 8 of \"cuMemAllocAsync#",
        "thread (0,0,0)",
    ];
    planted.caught(1, 8, run, &says);
}

#[test]
fn a_barrier_that_not_all_reach() {
    let planted = Planted {
        name: "divergent",
        text: r#"extern "C" __global__ void __launch_bounds__(64) divergent(float* y, int n) {
    if (threadIdx.x < n) {
        y[threadIdx.x] = 1.f;
        __syncthreads();  // here
        y[threadIdx.x] = y[n - 1 - threadIdx.x] + 1.f;
    }
}"#,
        right: "",
        wrong: "",
    };
    let run = |d: &Device, l: Launch<'_>, wrong| {
        l.write(&mut empty(d, 64)).value(if wrong { 40i32 } else { 64 }).run()
    };
    planted.caught(1, 64, run, &["Barrier", "lanes 0xffffff00", "bar.sync", "thread (32,0,0)"]);
}

#[test]
fn two_blocks_that_write_one_cell() {
    let planted = Planted {
        name: "one_cell",
        text: r#"extern "C" __global__ void __launch_bounds__(32) one_cell(float* y) {
    y[$ + threadIdx.x] = blockIdx.x;  // here
}"#,
        right: "32 * blockIdx.x",
        wrong: "blockIdx.x / 3",
    };
    let run = |d: &Device, l: Launch<'_>, _| l.write(&mut empty(d, 256)).run();
    let says = [
        "GlobalRace",
        "write to a cell that block (0,0,0) wrote in the same launch",
        "byte 0 of \"cuMemAllocAsync#",
        "thread (0,0,0) of block (1,0,0)",
    ];
    planted.caught(8, 32, run, &says);
}

/// Nothing in the engine's interface hands out an address for longer than its tensor, so this one is the driver's.
#[test]
fn a_use_after_free() {
    let planted = Planted {
        name: "after_free",
        text: r#"extern "C" __global__ void __launch_bounds__(32) after_free(float* y) {
    y[threadIdx.x] = 3.f;  // here
}"#,
        right: "",
        wrong: "",
    };
    let run = |_: &Device, l: Launch<'_>, wrong: bool| {
        // SAFETY: the address goes nowhere but to the launch, which is given it freed on purpose.
        unsafe {
            let y = result::malloc_sync(128).expect("128 bytes");
            if wrong {
                result::free_sync(y).expect("once");
            }
            let result = l.value(y).run();
            if !wrong {
                result::free_sync(y).expect("once");
            }
            result
        }
    };
    let says = ["UseAfterFree", "memory that was freed", "byte 0 of freed \"cuMemAlloc", "thread (0,0,0)"];
    planted.caught(1, 32, run, &says);
}

#[test]
fn a_double_free() {
    let Some((_one, device)) = device() else { return };
    // An allocation makes the device's context this thread's.
    let _bound = numbers(&device, 1);
    // SAFETY: nobody uses the address.
    let again = unsafe {
        let at = result::malloc_sync(4096).expect("4096 bytes");
        result::free_sync(at).expect("the first time");
        assert_eq!(library::report(), None, "the clean twin");
        result::free_sync(at).expect_err("the second time")
    };
    assert_eq!(again.0, cudarc::driver::sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    let report = library::report().expect("a report");
    for s in ["cuMemFree", "double free: address 0x", "byte 0 of freed \"cuMemAlloc", "(4096 bytes"] {
        assert!(report.contains(s), "no `{s}` in: {report}");
    }
    library::reset_counters();
}

/// The engine's own kernels carry their lines too, and those of what they include.
#[test]
fn a_fault_in_an_embedded_kernel_names_its_source() {
    let Some((_one, device)) = device() else { return };
    let gpu = device.gpu().expect("the emulator");
    let kernel = gpu.kernel("gelu.cu", "gelu_fwd_f32").unwrap_or_else(|e| panic!("{e}"));
    let (x, mut y) = (numbers(&device, 100), empty(&device, 96));
    let e = gpu.launch(&kernel, [1, 1, 1], 256).read(&x).write(&mut y).value(100u64).run();
    let e = e.expect_err("four too many").to_string();
    assert!(e.contains("OutOfBounds in kernel gelu_fwd_f32: write of"), "{e}");
    // The store is in a function that is inlined: its own line, and the call's.
    let line_of = |file: &str| {
        let number =
            e.split_once(&format!("{file}:")).and_then(|(_, rest)| rest.split([',', '\n', ';']).next());
        let number =
            number.and_then(|n| n.parse::<usize>().ok()).unwrap_or_else(|| panic!("no {file} in: {e}"));
        let text = kernels::text(file).unwrap_or_else(|e| panic!("{e}"));
        text.lines().nth(number - 1).unwrap_or_else(|| panic!("{file} has no line {number}: {e}"))
    };
    assert_eq!(line_of("gelu.cu").trim(), "map(x, y, n, gelu);", "{e}");
    assert!(e.contains(", called from gelu.cu:"), "{e}");
    let header =
        e.split_once("; common/").and_then(|(_, rest)| rest.split(':').next()).expect("the store's file");
    assert!(line_of(&format!("common/{header}")).contains('='), "{e}");
    library::reset_counters();
}
