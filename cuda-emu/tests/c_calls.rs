//! The driver called as C calls it, through its shared library.

mod client;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::os::unix::Library;

const OK: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const INVALID_CONTEXT: c_int = 201;
const NO_BINARY: c_int = 209;
const INVALID_PTX: c_int = 218;
const INVALID_HANDLE: c_int = 400;
const NOT_FOUND: c_int = 500;
const ILLEGAL_ADDRESS: c_int = 700;
const OUT_OF_RESOURCES: c_int = 701;
const MISALIGNED: c_int = 716;
const LAUNCH_FAILED: c_int = 719;
const NOT_PERMITTED: c_int = 800;
const NOT_SUPPORTED: c_int = 801;
const CAPTURE_UNSUPPORTED: c_int = 900;
const CAPTURE_INVALIDATED: c_int = 901;
const CAPTURE_UNJOINED: c_int = 904;
const CAPTURE_ISOLATION: c_int = 905;

/// Calls a function of the driver by name; the arguments' types say its signature.
macro_rules! call {
    ($cuda:expr, $name:ident $(, $arg:expr => $type:ty)* $(,)?) => {{
        let function: unsafe extern "C" fn($($type),*) -> c_int = client::symbol($cuda.library, stringify!($name));
        // SAFETY: the types are those of the driver's header, and the pointers are the tests' own variables.
        unsafe { function($($arg),*) }
    }};
}

/// The driver with its primary context current, for one test at a time.
struct Cuda {
    library: &'static Library,
    _alone: MutexGuard<'static, ()>,
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<&'static Library> = OnceLock::new();
    LIBRARY.get_or_init(client::open)
}

impl Cuda {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cuda = Self { library: library(), _alone: alone };
        assert_eq!(call!(cuda, cuInit, 0 => c_uint), OK);
        call!(cuda, cudaEmuSetMemory, 1 << 30 => u64);
        call!(cuda, cudaEmuReset);
        let mut ctx = 0usize;
        assert_eq!(call!(cuda, cuDevicePrimaryCtxRetain, &mut ctx => *mut usize, 0 => c_int), OK);
        assert_eq!(call!(cuda, cuCtxSetCurrent, ctx => usize), OK);
        cuda
    }

    fn alloc(&self, bytes: usize) -> u64 {
        let mut addr = 0;
        assert_eq!(call!(self, cuMemAlloc_v2, &mut addr => *mut u64, bytes => usize), OK);
        addr
    }

    fn stream(&self) -> usize {
        let mut stream = 0;
        assert_eq!(call!(self, cuStreamCreate, &mut stream => *mut usize, 1 => c_uint), OK);
        stream
    }

    fn event(&self) -> usize {
        let mut event = 0;
        assert_eq!(call!(self, cuEventCreate, &mut event => *mut usize, 0 => c_uint), OK);
        event
    }

    fn module(&self) -> usize {
        let mut module = 0;
        let image = client::PTX.as_ptr();
        assert_eq!(call!(self, cuModuleLoadData, &mut module => *mut usize, image => *const u8), OK);
        module
    }

    fn function(&self, module: usize, name: &str) -> usize {
        let (mut function, name) = (0, CString::new(name).unwrap());
        let name = name.as_ptr();
        let code = call!(self, cuModuleGetFunction, &mut function => *mut usize, module => usize, name => *const c_char);
        assert_eq!(code, OK);
        function
    }

    fn launch(
        &self,
        function: usize,
        blocks: u32,
        threads: u32,
        shared: u32,
        stream: usize,
        args: &[*mut c_void],
    ) -> c_int {
        call!(self, cuLaunchKernel, function => usize, blocks => c_uint, 1 => c_uint, 1 => c_uint,
            threads => c_uint, 1 => c_uint, 1 => c_uint, shared => c_uint, stream => usize,
            args.as_ptr() => *const *mut c_void, null_mut() => *mut *mut c_void)
    }

    fn add_one(&self, function: usize, stream: usize, mut addr: u64, mut n: u32) -> c_int {
        let args = [(&raw mut addr).cast(), (&raw mut n).cast()];
        self.launch(function, n.div_ceil(32).max(1), 32, 0, stream, &args)
    }

    fn put(&self, addr: u64, values: &[f32]) {
        let code = call!(self, cuMemcpyHtoD_v2, addr => u64, values.as_ptr() => *const f32, size_of_val(values) => usize);
        assert_eq!(code, OK);
    }

    fn get(&self, addr: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0f32; count];
        let code =
            call!(self, cuMemcpyDtoH_v2, values.as_mut_ptr() => *mut f32, addr => u64, count * 4 => usize);
        assert_eq!(code, OK);
        values
    }

    fn text(&self, name: &str) -> String {
        client::text(self.library, name)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        call!(self, cuDevicePrimaryCtxRelease_v2, 0 => c_int);
    }
}

#[test]
fn the_device_is_an_sm_80() {
    let cuda = Cuda::new();
    let attribute = |which: c_int| {
        let mut value = -7;
        assert_eq!(
            call!(cuda, cuDeviceGetAttribute, &mut value => *mut c_int, which => c_int, 0 => c_int),
            OK
        );
        value
    };
    assert_eq!([75, 76, 16, 10, 97, 8, 1, 115].map(attribute), [8, 0, 108, 32, 163 << 10, 48 << 10, 1024, 1]);
    let (mut version, mut name, mut count) = (0, [0u8; 9], 0);
    assert_eq!(call!(cuda, cuDriverGetVersion, &mut version => *mut c_int), OK);
    assert_eq!(version, 13_020);
    assert_eq!(call!(cuda, cuDeviceGetName, name.as_mut_ptr() => *mut u8, 9 => c_int, 0 => c_int), OK);
    assert_eq!(&name, b"cuda-emu\0");
    assert_eq!(call!(cuda, cuDeviceGetCount, &mut count => *mut c_int), OK);
    assert_eq!(count, 1);
    assert_eq!(call!(cuda, cuDeviceGetCount, null_mut() => *mut c_int), INVALID_VALUE);
    assert_eq!(
        call!(cuda, cuDeviceGetAttribute, &mut count => *mut c_int, 999 => c_int, 0 => c_int),
        INVALID_VALUE
    );
    assert_eq!(call!(cuda, cuDeviceGet, &mut count => *mut c_int, 1 => c_int), 101);
}

#[test]
fn errors_have_names() {
    let cuda = Cuda::new();
    let named = |code: c_int| {
        let mut name = null();
        let answer = call!(cuda, cuGetErrorName, code => c_int, &mut name => *mut *const c_char);
        // SAFETY: the names are static texts.
        (answer == OK).then(|| unsafe { CStr::from_ptr(name) }.to_str().unwrap())
    };
    assert_eq!(named(0), Some("CUDA_SUCCESS"));
    assert_eq!(named(209), Some("CUDA_ERROR_NO_BINARY_FOR_GPU"));
    assert_eq!(named(12345), None);
}

#[test]
fn contexts_are_each_threads_own() {
    let cuda = Cuda::new();
    let library = cuda.library;
    std::thread::spawn(move || {
        let cuda = Thread { library };
        let mut addr = 0;
        assert_eq!(call!(cuda, cuMemAlloc_v2, &mut addr => *mut u64, 4 => usize), INVALID_CONTEXT);
    })
    .join()
    .unwrap();
    let (mut first, mut second, mut seen) = (0usize, 0usize, 0usize);
    call!(cuda, cuCtxGetCurrent, &mut first => *mut usize);
    assert_eq!(
        call!(cuda, cuCtxCreate_v4, &mut second => *mut usize, null() => *const u8, 0 => c_uint, 0 => c_int),
        OK
    );
    call!(cuda, cuCtxGetCurrent, &mut seen => *mut usize);
    assert_eq!(seen, second);
    let leaked = cuda.alloc(100);
    assert_eq!(call!(cuda, cuCtxDestroy_v2, second => usize), OK);
    assert!(cuda.text("cudaEmuLeaks").contains(&format!("at {leaked:#x} (100 bytes)")));
    call!(cuda, cuCtxGetCurrent, &mut seen => *mut usize);
    assert_eq!(seen, first);
    assert_eq!(call!(cuda, cuCtxSetCurrent, second => usize), INVALID_CONTEXT);
}

struct Thread {
    library: &'static Library,
}

#[test]
fn memory_is_counted_copied_and_filled() {
    let cuda = Cuda::new();
    let (mut free, mut total) = (0usize, 0usize);
    call!(cuda, cudaEmuSetMemory, 4096 => u64);
    let a = cuda.alloc(1000);
    assert_eq!(call!(cuda, cuMemGetInfo_v2, &mut free => *mut usize, &mut total => *mut usize), OK);
    assert_eq!((free, total), (3072, 4096));
    let mut b = 7;
    assert_eq!(call!(cuda, cuMemAlloc_v2, &mut b => *mut u64, 3073 => usize), OUT_OF_MEMORY);
    assert_eq!(call!(cuda, cuMemAlloc_v2, &mut b => *mut u64, usize::MAX => usize), OUT_OF_MEMORY);
    assert_eq!(call!(cuda, cuMemAlloc_v2, &mut b => *mut u64, 0 => usize), INVALID_VALUE);
    assert_eq!(call!(cuda, cuMemAllocAsync, &mut b => *mut u64, 3072 => usize, 0 => usize), OK);
    cuda.put(a, &[1.0, 2.0, 3.0]);
    assert_eq!(call!(cuda, cuMemcpyDtoD_v2, b + 4 => u64, a => u64, 12 => usize), OK);
    assert_eq!(call!(cuda, cuMemsetD32_v2, b => u64, 0x3f80_0000 => c_uint, 1 => usize), OK);
    assert_eq!(cuda.get(b, 4), [1.0, 1.0, 2.0, 3.0]);
    assert_eq!(call!(cuda, cuMemsetD8Async, b + 4 => u64, 0 => u8, 8 => usize, 0 => usize), OK);
    assert_eq!(call!(cuda, cuMemsetD16_v2, b + 12 => u64, 0x4040 => u16, 2 => usize), OK);
    assert_eq!(cuda.get(b, 4), [1.0, 0.0, 0.0, f32::from_bits(0x4040_4040)]);
    let mut c = 5f32;
    assert_eq!(call!(cuda, cuMemcpy, &raw mut c as u64 => u64, b => u64, 4 => usize), OK);
    assert_eq!(c, 1.0);
    // What cannot be right.
    let host = [0u8; 16];
    assert_eq!(
        call!(cuda, cuMemcpyHtoD_v2, a + 996 => u64, host.as_ptr() => *const u8, 16 => usize),
        INVALID_VALUE
    );
    assert_eq!(call!(cuda, cuMemcpyHtoD_v2, a => u64, b => u64, 16 => usize), INVALID_VALUE);
    assert_eq!(call!(cuda, cuMemcpyHtoD_v2, a => u64, null() => *const u8, 16 => usize), INVALID_VALUE);
    assert_eq!(call!(cuda, cuMemsetD32_v2, a + 2 => u64, 0 => c_uint, 1 => usize), INVALID_VALUE);
    assert_eq!(call!(cuda, cuMemFree_v2, a + 4 => u64), INVALID_VALUE);
    assert_eq!(call!(cuda, cuMemFree_v2, a => u64), OK);
    assert_eq!(call!(cuda, cuMemFree_v2, a => u64), INVALID_VALUE);
    assert!(cuda.text("cudaEmuLastReport").contains("double free"));
    assert_eq!(call!(cuda, cuMemFreeAsync, b => u64, 0 => usize), OK);
    assert_eq!(cuda.text("cudaEmuLeaks"), "");
}

#[test]
fn pointers_tell_whose_they_are() {
    let cuda = Cuda::new();
    let device = cuda.alloc(64);
    let mut pinned = null_mut();
    assert_eq!(call!(cuda, cuMemHostAlloc, &mut pinned => *mut *mut c_void, 64 => usize, 0 => c_uint), OK);
    let kind = |addr: u64| {
        let mut kind = 0u32;
        match call!(cuda, cuPointerGetAttribute, &mut kind => *mut u32, 2 => c_int, addr => u64) {
            OK => Ok(kind),
            code => Err(code),
        }
    };
    assert_eq!(kind(device + 63), Ok(2));
    assert_eq!(kind(pinned as u64 + 63), Ok(1));
    assert_eq!(kind(device + 64), Err(INVALID_VALUE));
    let (mut base, mut bytes) = (0u64, 0usize);
    call!(cuda, cuMemGetAddressRange_v2, &mut base => *mut u64, &mut bytes => *mut usize, device + 9 => u64);
    assert_eq!((base, bytes), (device, 64));
    assert_eq!(call!(cuda, cuMemFreeHost, pinned => *mut c_void), OK);
    assert_eq!(call!(cuda, cuMemFreeHost, pinned => *mut c_void), INVALID_VALUE);
    let mut own = [0u8; 32];
    let own = own.as_mut_ptr();
    assert_eq!(call!(cuda, cuMemHostRegister_v2, own => *mut u8, 32 => usize, 0 => c_uint), OK);
    assert_eq!(call!(cuda, cuMemHostRegister_v2, own => *mut u8, 32 => usize, 0 => c_uint), 712);
    assert_eq!(call!(cuda, cuMemHostUnregister, own => *mut u8), OK);
    assert_eq!(call!(cuda, cuMemHostUnregister, own => *mut u8), 713);
    call!(cuda, cuMemFree_v2, device => u64);
}

#[test]
fn machine_code_is_refused_and_bad_ptx_explained() {
    let cuda = Cuda::new();
    let mut module = 0usize;
    let mut load =
        |image: &[u8]| call!(cuda, cuModuleLoadData, &mut module => *mut usize, image.as_ptr() => *const u8);
    assert_eq!(load(b"\x7fELF\x02\x01\x01"), NO_BINARY);
    assert_eq!(load(&[0x50, 0xed, 0x55, 0xba]), NO_BINARY);
    assert_eq!(load(b"\0"), 200);
    assert_eq!(load(b"no PTX at all\0"), INVALID_PTX);
    let mut log = [0u8; 128];
    let (options, values) = ([5u32, 6], [log.as_mut_ptr() as usize, log.len()]);
    let code = call!(cuda, cuModuleLoadDataEx, &mut module => *mut usize, c"?".as_ptr() => *const c_char,
        2 => c_uint, options.as_ptr() => *const u32, values.as_ptr() => *const usize);
    assert_eq!(code, INVALID_PTX);
    assert_ne!(log[0], 0);
    let module = cuda.module();
    let (mut out, mut bytes) = (0u64, 0usize);
    let code = call!(cuda, cuModuleGetFunction, &mut out => *mut u64, module => usize, c"none".as_ptr() => *const c_char);
    assert_eq!(code, NOT_FOUND);
    let code = call!(cuda, cuModuleGetGlobal_v2, &mut out => *mut u64, &mut bytes => *mut usize, module => usize,
        c"counter".as_ptr() => *const c_char);
    assert_eq!((code, bytes), (OK, 4));
    assert_eq!(cuda.get(out, 1), [0.0]);
    let function = cuda.function(module, "bounded");
    assert_eq!(call!(cuda, cuModuleUnload, module => usize), OK);
    assert_eq!(call!(cuda, cuModuleUnload, module => usize), INVALID_HANDLE);
    assert_eq!(cuda.launch(function, 1, 1, 0, 0, &[]), INVALID_HANDLE);
}

#[test]
fn launches_run_within_limits() {
    let cuda = Cuda::new();
    let module = cuda.module();
    let [add, shared, bounded] = ["add_one", "in_shared", "bounded"].map(|name| cuda.function(module, name));
    let data = cuda.alloc(400);
    cuda.put(data, &[0.5; 100]);
    assert_eq!(cuda.add_one(add, 0, data, 99), OK);
    assert_eq!(cuda.get(data, 100)[97..], [1.5, 1.5, 0.5]);
    let counters = cuda.text("cudaEmuCounters");
    assert!(counters.contains("\"add_one\":{\"launches\":1"), "{counters}");
    assert!(counters.contains("\"global_bytes_read\":396,\"global_bytes_written\":396"), "{counters}");
    assert!(counters.ends_with(",\"used_bytes\":512,\"peak_bytes\":512}"), "{counters}");
    // Parameters in a buffer.
    let mut packed = [0u8; 12];
    packed[..8].copy_from_slice(&data.to_le_bytes());
    packed[8..].copy_from_slice(&1u32.to_le_bytes());
    let bytes = packed.len();
    let extra = [1, packed.as_ptr() as usize, 2, &raw const bytes as usize, 0];
    let code = call!(cuda, cuLaunchKernel, add => usize, 1 => c_uint, 1 => c_uint, 1 => c_uint, 1 => c_uint,
        1 => c_uint, 1 => c_uint, 0 => c_uint, 0 => usize, null() => *const usize, extra.as_ptr() => *const usize);
    assert_eq!((code, cuda.get(data, 1)), (OK, vec![2.5]));
    // Shapes.
    assert_eq!(cuda.launch(shared, 1, 1025, 0, 0, &[]), INVALID_VALUE);
    assert_eq!(cuda.launch(shared, 0, 1, 0, 0, &[]), INVALID_VALUE);
    assert_eq!(cuda.launch(bounded, 1, 64, 0, 0, &[]), OK);
    assert_eq!(cuda.launch(bounded, 1, 65, 0, 0, &[]), OUT_OF_RESOURCES);
    assert_eq!(cuda.launch(add, 1, 32, 0, 0, &[null_mut(), null_mut()]), INVALID_VALUE);
    // Shared memory: 48 KB with the static part, more only by opting in.
    let set = |bytes: c_int| call!(cuda, cuFuncSetAttribute, shared => usize, 8 => c_int, bytes => c_int);
    assert_eq!(cuda.launch(shared, 1, 32, 47 << 10, 0, &[]), OK);
    assert_eq!(cuda.launch(shared, 1, 32, (47 << 10) + 1, 0, &[]), INVALID_VALUE);
    assert_eq!(set(163 << 10), INVALID_VALUE);
    assert_eq!(set(162 << 10), OK);
    assert_eq!(cuda.launch(shared, 1, 32, 162 << 10, 0, &[]), OK);
    let (mut count, mut fixed) = (0, 0);
    call!(cuda, cuOccupancyMaxActiveBlocksPerMultiprocessor, &mut count => *mut c_int, shared => usize,
        256 => c_int, 50 << 10 => usize);
    call!(cuda, cuFuncGetAttribute, &mut fixed => *mut c_int, 1 => c_int, shared => usize);
    assert_eq!((count, fixed), (3, 1024));
    call!(cuda, cuMemFree_v2, data => u64);
    call!(cuda, cuModuleUnload, module => usize);
}

#[test]
fn a_failed_check_sticks_to_its_context() {
    for (offset, expected) in [(64, ILLEGAL_ADDRESS), (2, MISALIGNED)] {
        let cuda = Cuda::new();
        let module = cuda.module();
        let function = cuda.function(module, "store_at");
        let mut addr = cuda.alloc(64) + offset;
        assert_eq!(cuda.launch(function, 1, 1, 0, 0, &[(&raw mut addr).cast()]), expected);
        assert!(cuda.text("cudaEmuLastReport").contains("store_at"));
        assert_eq!(call!(cuda, cuCtxSynchronize), expected);
        assert_eq!(call!(cuda, cuMemAlloc_v2, &mut addr => *mut u64, 4 => usize), expected);
        assert_eq!(call!(cuda, cuMemFree_v2, addr - offset => u64), expected);
        drop(cuda);
        let cuda = Cuda::new();
        assert_eq!(call!(cuda, cuCtxSynchronize), OK);
    }
}

#[test]
fn what_only_an_emulator_checks_is_a_failed_launch() {
    for (name, said) in [("traps", "Trap"), ("reads", "Uninitialised")] {
        let cuda = Cuda::new();
        let module = cuda.module();
        let mut addr = cuda.alloc(4);
        let args = [(&raw mut addr).cast()];
        assert_eq!(cuda.launch(cuda.function(module, name), 1, 1, 0, 0, &args), LAUNCH_FAILED, "{name}");
        let report = cuda.text("cudaEmuLastReport");
        assert!(report.contains(said) && report.contains(name), "{report}");
        // A reset is a way out, too, without an end of the context.
        assert_eq!(call!(cuda, cuCtxSynchronize), LAUNCH_FAILED);
        assert_eq!(call!(cuda, cudaEmuReset), OK);
        assert_eq!(call!(cuda, cuCtxSynchronize), OK);
        assert_eq!(cuda.text("cudaEmuLastReport"), "");
        cuda.put(addr, &[1.0]);
        assert_eq!(cuda.launch(cuda.function(module, "reads"), 1, 1, 0, 0, &args), OK);
        call!(cuda, cuMemFree_v2, addr => u64);
    }
}

#[test]
fn handles_are_told_apart() {
    let cuda = Cuda::new();
    let (stream, event) = (cuda.stream(), cuda.event());
    assert_eq!(call!(cuda, cuStreamSynchronize, event => usize), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuEventRecord, stream => usize, stream => usize), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuEventRecord, event => usize, 0xdead_beef => usize), INVALID_HANDLE);
    assert_eq!(cuda.launch(stream, 1, 1, 0, 0, &[]), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuGraphLaunch, event => usize, stream => usize), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuStreamDestroy_v2, stream => usize), OK);
    assert_eq!(call!(cuda, cuStreamDestroy_v2, stream => usize), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuEventDestroy_v2, event => usize), OK);
    assert_eq!(call!(cuda, cuEventDestroy_v2, event => usize), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuStreamDestroy_v2, 0 => usize), INVALID_HANDLE);
    assert_eq!(call!(cuda, cuTensorMapEncodeTiled, null_mut() => *mut u8, 0 => c_int), NOT_SUPPORTED);
    assert!(cuda.text("cudaEmuLastReport").contains("cuTensorMapEncodeTiled"));
    assert_eq!(call!(cuda, cuMulticastCreate, null_mut() => *mut u8, null() => *const u8), NOT_SUPPORTED);
    assert!(cuda.text("cudaEmuLastReport").contains("cuMulticastCreate"));
}

#[test]
fn events_keep_time_if_they_may() {
    let cuda = Cuda::new();
    let (start, end, mut timeless) = (cuda.event(), cuda.event(), 0);
    call!(cuda, cuEventCreate, &mut timeless => *mut usize, 2 => c_uint);
    let elapsed = |a: usize, b: usize| {
        let mut ms = -1f32;
        match call!(cuda, cuEventElapsedTime_v2, &mut ms => *mut f32, a => usize, b => usize) {
            OK => Ok(ms),
            code => Err(code),
        }
    };
    assert_eq!(elapsed(start, end), Err(INVALID_HANDLE));
    assert_eq!(call!(cuda, cuEventQuery, start => usize), OK);
    call!(cuda, cuEventRecord, start => usize, 0 => usize);
    std::thread::sleep(std::time::Duration::from_millis(2));
    call!(cuda, cuEventRecord, end => usize, 0 => usize);
    call!(cuda, cuEventRecord, timeless => usize, 0 => usize);
    assert!(elapsed(start, end).unwrap() >= 2.0);
    assert!(elapsed(end, start).unwrap() <= -2.0);
    assert_eq!(elapsed(start, timeless), Err(INVALID_HANDLE));
    for event in [start, end, timeless] {
        call!(cuda, cuEventDestroy_v2, event => usize);
    }
}

#[test]
fn host_functions_run_in_order_and_may_not_call_back() {
    unsafe extern "C" fn run(data: *mut c_void) {
        let synchronize: unsafe extern "C" fn() -> c_int = client::symbol(library(), "cuCtxSynchronize");
        // SAFETY: the data is the test's own variable; the function takes nothing.
        unsafe { *data.cast::<c_int>() = synchronize() };
    }
    let cuda = Cuda::new();
    let mut seen: c_int = 0;
    let data = (&raw mut seen).cast();
    let run: unsafe extern "C" fn(*mut c_void) = run;
    type Run = unsafe extern "C" fn(*mut c_void);
    assert_eq!(call!(cuda, cuLaunchHostFunc, 0 => usize, run => Run, data => *mut c_void), OK);
    assert_eq!(seen, NOT_PERMITTED);
}

#[test]
fn functions_are_found_by_name() {
    let cuda = Cuda::new();
    let find = |name: &CStr| {
        let (mut address, mut status) = (0usize, 7);
        let code = call!(cuda, cuGetProcAddress_v2, name.as_ptr() => *const c_char, &mut address => *mut usize,
            13_000 => c_int, 0 => u64, &mut status => *mut c_int);
        (code, status, address)
    };
    let direct: usize = client::symbol(cuda.library, "cuMemAlloc_v2");
    assert_eq!(find(c"cuMemAlloc"), (OK, 0, direct));
    assert_eq!(find(c"cuMemAlloc_v2"), (OK, 0, direct));
    assert_eq!(find(c"cuNothing"), (NOT_FOUND, 1, 0));
}

#[test]
fn a_captured_stream_does_its_work_at_launch() {
    let cuda = Cuda::new();
    let module = cuda.module();
    let (add, stream, other) = (cuda.function(module, "add_one"), cuda.stream(), cuda.stream());
    let (data, copy, fork, join) = (cuda.alloc(16), cuda.alloc(16), cuda.event(), cuda.event());
    cuda.put(data, &[1.0; 4]);
    cuda.put(copy, &[0.0; 4]);
    let begin = || call!(cuda, cuStreamBeginCapture_v2, stream => usize, 1 => c_int);
    let end = || {
        let mut graph = 0usize;
        (call!(cuda, cuStreamEndCapture, stream => usize, &mut graph => *mut usize), graph)
    };
    assert_eq!(begin(), OK);
    let mut status = 0;
    call!(cuda, cuStreamIsCapturing, stream => usize, &mut status => *mut c_int);
    assert_eq!(status, 1);
    assert_eq!(cuda.add_one(add, stream, data, 4), OK);
    // A second stream joins by an event and is joined back.
    call!(cuda, cuEventRecord, fork => usize, stream => usize);
    assert_eq!(call!(cuda, cuStreamWaitEvent, other => usize, fork => usize, 0 => c_uint), OK);
    assert_eq!(call!(cuda, cuMemcpyDtoDAsync_v2, copy => u64, data => u64, 16 => usize, other => usize), OK);
    call!(cuda, cuEventRecord, join => usize, other => usize);
    assert_eq!(call!(cuda, cuStreamWaitEvent, stream => usize, join => usize, 0 => c_uint), OK);
    let (code, graph) = end();
    assert_eq!(code, OK);
    assert_eq!((cuda.get(data, 1), cuda.get(copy, 1)), (vec![1.0], vec![0.0]));
    let mut exec = 0usize;
    assert_eq!(
        call!(cuda, cuGraphInstantiateWithFlags, &mut exec => *mut usize, graph => usize, 0 => u64),
        OK
    );
    assert_eq!(call!(cuda, cuGraphDestroy, graph => usize), OK);
    assert_eq!(call!(cuda, cuGraphUpload, exec => usize, stream => usize), OK);
    for _ in 0..3 {
        assert_eq!(call!(cuda, cuGraphLaunch, exec => usize, stream => usize), OK);
    }
    assert_eq!((cuda.get(data, 4), cuda.get(copy, 4)), (vec![4.0; 4], vec![4.0; 4]));
    assert_eq!(call!(cuda, cuGraphExecDestroy, exec => usize), OK);
    // What a capture forbids.
    assert_eq!(begin(), OK);
    assert_eq!(begin(), 401);
    assert_eq!(call!(cuda, cuStreamSynchronize, stream => usize), CAPTURE_UNSUPPORTED);
    assert_eq!(cuda.add_one(add, stream, data, 4), CAPTURE_INVALIDATED);
    assert_eq!(end(), (CAPTURE_INVALIDATED, 0));
    assert_eq!(begin(), OK);
    let mut addr = 0u64;
    assert_eq!(call!(cuda, cuMemAlloc_v2, &mut addr => *mut u64, 4 => usize), CAPTURE_UNSUPPORTED);
    assert_eq!(end().0, CAPTURE_INVALIDATED);
    let lone = cuda.event();
    call!(cuda, cuEventRecord, lone => usize, other => usize);
    assert_eq!(begin(), OK);
    assert_eq!(
        call!(cuda, cuStreamWaitEvent, stream => usize, lone => usize, 0 => c_uint),
        CAPTURE_ISOLATION
    );
    assert_eq!(end().0, CAPTURE_INVALIDATED);
    assert_eq!(begin(), OK);
    call!(cuda, cuEventRecord, fork => usize, stream => usize);
    call!(cuda, cuStreamWaitEvent, other => usize, fork => usize, 0 => c_uint);
    assert_eq!(call!(cuda, cuMemsetD8Async, copy => u64, 0 => u8, 16 => usize, other => usize), OK);
    assert_eq!(end().0, CAPTURE_UNJOINED);
    call!(cuda, cuStreamIsCapturing, other => usize, &mut status => *mut c_int);
    assert_eq!(status, 0);
}

#[test]
fn every_symbol_is_exported() {
    let cuda = Cuda::new();
    for name in include_str!("symbols.txt").split_whitespace() {
        let _: usize = client::symbol(cuda.library, name);
    }
}
