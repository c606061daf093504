//! What a CUDA device refuses, as errors with their numbers: memory it does not have, launches that are not what was
//! compiled. Nothing here reaches a kernel, and the device is usable afterwards.

mod common;

use asasr_engine::Error;
use asasr_engine::engine::cuda::{Kernel, library};
use asasr_engine::engine::nvrtc::Source;
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::ops::{Op, Save, gelu::Gelu};
use libloading::os::unix::Library;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The emulator has one memory for the process: one test at a time.
fn device() -> Option<(MutexGuard<'static, ()>, Device)> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    library::reset_counters();
    Some((one, common::cuda::emulator()?))
}

/// Sets how much memory the emulated device has, beside what is in use.
fn leave(device: &Device, bytes: usize) {
    let (free, total) = device.gpu().expect("the emulator").memory().expect("a healthy device");
    // SAFETY: the function's type; the emulator's library is open for the rest of the process, to all.
    let set = unsafe { Library::this().get::<unsafe extern "C" fn(u64) -> i32>(b"cudaEmuSetMemory\0") };
    // SAFETY: it takes any number.
    assert_eq!(unsafe { set.expect("the emulator is open")((total - free + bytes) as u64) }, 0);
}

const MIB: usize = 1 << 20;

#[test]
fn memory_that_is_not_there_is_an_error_with_its_numbers() {
    let Some((_one, device)) = device() else { return };
    let tensor = |mib: usize| Tensor::zeros(&device, &[mib * MIB / 4]);
    let kept = tensor(2).unwrap_or_else(|e| panic!("{e}"));
    leave(&device, 3 * MIB);
    let e = tensor(4).expect_err("3 MiB are free");
    assert!(matches!(e, Error::Memory { .. }), "{e:?}");
    let e = e.to_string();
    let says =
        ["out of memory on emu: 4.0 MiB are wanted; 3.0 MiB of 5.0 MiB are free", "2.0 MiB are in use here"];
    assert!(says.iter().all(|s| e.contains(s)), "{e}");

    // An op whose output does not fit says the same.
    let x = tensor(2).unwrap_or_else(|e| panic!("{e}"));
    let before = device.stats();
    let e = Gelu.forward(&[&x], &mut Save::nothing()).expect_err("1 MiB is free");
    assert!(matches!(e, Error::Memory { .. }), "{e:?}");
    assert!(e.to_string().contains("2.0 MiB are wanted; 1.0 MiB of 5.0 MiB are free"), "{e}");
    assert_eq!(device.stats(), before, "what was not given is not counted");

    // The device goes on: less fits, and so does as much once something was given back.
    let less = tensor(1).unwrap_or_else(|e| panic!("{e}"));
    drop(less);
    drop(kept);
    let y = Gelu.forward(&[&x], &mut Save::nothing()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(y[0].values().unwrap_or_else(|e| panic!("{e}")), vec![0.0; 2 * MIB / 4]);
    drop((x, y));
    leave(&device, 1 << 30);
}

#[test]
fn a_launch_that_is_not_what_was_compiled_is_an_error_with_its_numbers() {
    let Some((_one, device)) = device() else { return };
    let gpu = device.gpu().expect("the emulator");
    let text = "extern \"C\" __global__ void __launch_bounds__(64) twice(float* x, int n, short m) {
    __shared__ float s[256];
    extern __shared__ float more[];
    int i = blockIdx.x * 64 + threadIdx.x;
    s[threadIdx.x] = 2.f;
    more[threadIdx.x] = m;
    if (i < n) x[i] *= s[threadIdx.x] + more[threadIdx.x];
}";
    let source = Source { name: "twice.cu", text, headers: &[] };
    let kernel: Arc<Kernel> = gpu.compile(&source, "twice").unwrap_or_else(|e| panic!("{e}"));
    let mut x = Tensor::from_slice(&device, &[100], &[1.0; 100]).unwrap_or_else(|e| panic!("{e}"));
    let launch = |grid: [usize; 3], block: u32| gpu.launch(&kernel, grid, block).shared(256);
    let refused = |e: asasr_engine::Result<()>, says: &[&str]| {
        let e = e.expect_err(says[0]);
        assert!(matches!(e, Error::Cuda { .. }), "{e:?}");
        let e = e.to_string();
        assert!(
            e.starts_with("CUDA, launching twice: ") && says.iter().all(|s| e.contains(s)),
            "{says:?}: {e}"
        );
    };

    let good = |x: &mut Tensor| launch([2, 1, 1], 64).write(x).value(100i32).value(0i16).run();
    good(&mut x).unwrap_or_else(|e| panic!("{e}"));
    let all = |l: asasr_engine::engine::cuda::Launch<'_>, x: &mut Tensor| {
        l.write(x).value(100i32).value(0i16).run()
    };
    refused(all(launch([2, 1, 1], 65), &mut x), &["a block of 65 threads", "compiled for 1 to 64"]);
    refused(all(launch([2, 1, 1], 0), &mut x), &["a block of 0 threads"]);
    refused(all(launch([1, 65_536, 1], 64), &mut x), &["[1, 65536, 1] blocks exceeds 65535 along y"]);
    refused(all(launch([1, 1, 65_536], 64), &mut x), &["exceeds 65535 along z"]);
    refused(
        all(launch([1 << 31, 1, 1], 64), &mut x),
        &["[2147483648, 1, 1] blocks exceeds 2147483647 along x"],
    );
    refused(
        all(launch([1, 1, 1], 64).shared(163 << 10), &mut x),
        &["166912 bytes of shared memory beside its own 1024", "may have 166912"],
    );
    refused(launch([2, 1, 1], 64).write(&mut x).value(100i32).run(), &["of [8, 4] bytes", "have [8, 4, 2]"]);
    refused(
        launch([2, 1, 1], 64).write(&mut x).value(100i64).value(0i16).run(),
        &["of [8, 8, 2] bytes", "have [8, 4, 2]"],
    );
    let mut cpu = Tensor::zeros(&Device::cpu(), &[100]).unwrap_or_else(|e| panic!("{e}"));
    refused(all(launch([2, 1, 1], 64), &mut cpu), &["argument 0 is", "not on this device"]);
    let other = common::cuda::emulator().expect("as above");
    let mut elsewhere = Tensor::zeros(&other, &[100]).unwrap_or_else(|e| panic!("{e}"));
    refused(all(launch([2, 1, 1], 64), &mut elsewhere), &["argument 0 is", "not on this device"]);
    // A tensor that somebody else holds may not be written.
    let shared = x.clone();
    assert!(all(launch([2, 1, 1], 64), &mut x).is_err());
    drop(shared);
    let e = gpu.compile(&source, "twise").err().expect("no such kernel").to_string();
    assert!(e.contains("twice.cu: has no kernel twise; did you mean `twice`?"), "{e}");
    let e = gpu.compile(&Source { text: "__global__ void k() { oops }", ..source }, "k");
    assert!(matches!(e, Err(Error::Compile { .. })));

    // None of them touched the device: an empty grid does nothing, and the good launch runs again.
    all(launch([0, 1, 1], 64), &mut x).unwrap_or_else(|e| panic!("{e}"));
    good(&mut x).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(x.values().unwrap_or_else(|e| panic!("{e}")), vec![4.0; 100]);
    assert_eq!(library::report(), None);
}
