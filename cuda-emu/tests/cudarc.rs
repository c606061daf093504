//! The driver under cudarc, as an engine uses it. The library is open before cudarc asks for one by name.

mod client;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use cudarc::driver::sys::{self, CUfunction_attribute_enum as FunctionAttribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, ValidAsZeroBits, result,
};
use cudarc::nvrtc::Ptx;
use libloading::os::unix::Library;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<&'static Library> = OnceLock::new();
    LIBRARY.get_or_init(client::open)
}

/// One test at a time: the device is shared. Opens the library first.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_memory(1 << 30);
    let reset: extern "C" fn() -> i32 = client::symbol(library(), "cudaEmuReset");
    reset();
    alone
}

fn set_memory(bytes: u64) {
    let set: extern "C" fn(u64) -> i32 = client::symbol(library(), "cudaEmuSetMemory");
    set(bytes);
}

fn text(name: &str) -> String {
    client::text(library(), name)
}

fn ptx() -> Ptx {
    Ptx::from_src(client::PTX.trim_end_matches('\0'))
}

fn add_one(ctx: &Arc<CudaContext>) -> CudaFunction {
    ctx.load_module(ptx()).unwrap().load_function("add_one").unwrap()
}

fn run(stream: &Arc<CudaStream>, function: &CudaFunction, data: &mut cudarc::driver::CudaSlice<f32>) {
    let n = cudarc::driver::DeviceSlice::len(data) as u32;
    let config = LaunchConfig::for_num_elems(n);
    // SAFETY: the kernel takes a pointer to `n` floats and `n`.
    unsafe { stream.launch_builder(function).arg(data).arg(&n).launch(config) }.unwrap();
}

fn failed<T>(result: Result<T, DriverError>) -> Option<CUresult> {
    result.err().map(|DriverError(code)| code)
}

#[test]
fn a_whole_life_cycle_leaves_nothing() {
    let _alone = alone();
    // SAFETY: it only asks whether the library can be opened by name.
    assert!(unsafe { sys::is_culib_present() });
    let ctx = CudaContext::new(0).unwrap();
    assert_eq!(ctx.name().unwrap(), "cuda-emu (PTX interpreter)");
    assert_eq!(ctx.compute_capability().unwrap(), (8, 0));
    assert_eq!(ctx.mem_get_info().unwrap(), (1 << 30, 1 << 30));
    assert_eq!(ctx.total_mem().unwrap(), 1 << 30);
    ctx.uuid().unwrap();
    // SAFETY: every use of a slice here is in one stream.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let function = add_one(&ctx);
    let mut data = stream.alloc_zeros::<f32>(1000).unwrap();
    let host: Vec<f32> = (0..1000).map(|n| n as f32).collect();
    stream.memcpy_htod(&host, &mut data).unwrap();
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timed).unwrap();
    run(&stream, &function, &mut data);
    let end = stream.record_event(timed).unwrap();
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    stream.wait(&end).unwrap();
    let copy = stream.clone_dtod(&data).unwrap();
    let back = stream.clone_dtoh(&copy).unwrap();
    stream.synchronize().unwrap();
    assert!(back.iter().zip(&host).all(|(back, host)| *back == host + 1.0));
    stream.memset_zeros(&mut data).unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [0.0; 1000]);
    let mut pinned = zeroed_pinned::<f32>(&ctx, 1000);
    stream.memcpy_dtoh(&copy, &mut pinned).unwrap();
    assert_eq!(pinned.as_slice().unwrap(), back);
    let other = stream.fork().unwrap();
    other.join(&stream).unwrap();
    ctx.default_stream().synchronize().unwrap();
    ctx.synchronize().unwrap();
    ctx.check_err().unwrap();
    assert!(text("cudaEmuCounters").contains("\"add_one\":{\"launches\":1"));
    drop((data, copy, pinned, function, start, end, other, stream));
    assert_eq!(text("cudaEmuLeaks"), "");
    drop(ctx);
    assert_eq!(text("cudaEmuLeaks"), "");
}

fn zeroed_pinned<T: ValidAsZeroBits + cudarc::driver::DeviceRepr>(
    ctx: &Arc<CudaContext>,
    len: usize,
) -> cudarc::driver::PinnedHostSlice<T> {
    // SAFETY: all zeros are a value, and the driver's pinned memory is zeroed.
    unsafe { ctx.alloc_pinned(len) }.unwrap()
}

#[test]
fn cudarcs_own_event_tracking_works_too() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    let (one, two) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
    let function = add_one(&ctx);
    let mut data = one.clone_htod(&[1f32; 64]).unwrap();
    run(&one, &function, &mut data);
    run(&two, &function, &mut data);
    assert_eq!(one.clone_dtoh(&data).unwrap(), [3.0; 64]);
    ctx.check_err().unwrap();
}

#[test]
fn threads_share_the_device() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    let function = add_one(&ctx);
    thread::scope(|scope| {
        for worker in 0..8 {
            let (ctx, function) = (&ctx, &function);
            scope.spawn(move || {
                let stream = ctx.new_stream().unwrap();
                for round in 0..50 {
                    let mut data = stream.clone_htod(&vec![worker as f32; 10 + round]).unwrap();
                    run(&stream, function, &mut data);
                    assert_eq!(stream.clone_dtoh(&data).unwrap(), vec![worker as f32 + 1.0; 10 + round]);
                }
            });
        }
    });
    ctx.check_err().unwrap();
    assert!(text("cudaEmuCounters").contains("\"launches\":400"));
    assert_eq!(text("cudaEmuLeaks"), "");
}

#[test]
fn memory_runs_out_and_comes_back() {
    let _alone = alone();
    set_memory(1 << 20);
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let most = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    assert_eq!(ctx.mem_get_info().unwrap(), (0, 1 << 20));
    assert_eq!(failed(stream.alloc_zeros::<u8>(1)), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    assert!(text("cudaEmuLastReport").contains("0 of 1048576 are free"));
    drop(most);
    drop(stream.alloc_zeros::<u8>(1 << 20).unwrap());
}

#[test]
fn a_leak_is_reported_when_its_context_ends() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    let lost = ctx.default_stream().alloc_zeros::<u8>(12345).unwrap().leak();
    assert!(text("cudaEmuLeaks").starts_with("live: allocation "));
    drop(ctx);
    let leaks = text("cudaEmuLeaks");
    assert!(leaks.starts_with("left by its context: allocation cuMemAllocAsync#"), "{leaks}");
    assert!(leaks.contains(&format!(" at {lost:#x} (12345 bytes)")), "{leaks}");
}

/// The environment is read once by a process, so another one is asked: this test's own binary, for the test below.
#[test]
fn the_environment_sets_the_capacity_and_keeps_it_quiet() {
    let run = |quiet: &str| {
        let test = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new(test);
        command.args(["--exact", "in_another_process", "--ignored", "--nocapture"]);
        let output = command.env("CUDA_EMU_MEMORY", "3M").env("CUDA_EMU_QUIET", quiet).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(
        run("0")
            .contains("cuda-emu: cuMemAllocAsync: 4194304 bytes are asked for; 3145728 of 3145728 are free")
    );
    assert!(!run("1").contains("cuda-emu:"));
}

#[test]
#[ignore = "the test above runs it, with an environment of its own"]
fn in_another_process() {
    library();
    let stream = CudaContext::new(0).unwrap().default_stream();
    assert_eq!(failed(stream.alloc_zeros::<u8>(4 << 20)), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    assert!(text("cudaEmuLastReport").starts_with("cuMemAllocAsync"));
}

#[test]
fn what_is_wrong_is_answered_as_the_driver_answers() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let cubin = Ptx::from_binary(b"\x7fELF\x02\x01\x01\0".to_vec());
    assert_eq!(failed(ctx.load_module(cubin)), Some(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
    let broken = Ptx::from_src("this is not PTX");
    assert_eq!(failed(ctx.load_module(broken)), Some(CUresult::CUDA_ERROR_INVALID_PTX));
    let module = ctx.load_module(ptx()).unwrap();
    assert_eq!(failed(module.load_function("none")), Some(CUresult::CUDA_ERROR_NOT_FOUND));
    let function = module.load_function("in_shared").unwrap();
    assert_eq!(function.shared_size_bytes().unwrap(), 1024);
    let dynamic = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let launch = |bytes: u32| {
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: bytes };
        // SAFETY: the kernel takes nothing.
        failed(unsafe { stream.launch_builder(&function).launch(config) }.map(drop))
    };
    assert_eq!(launch(100 << 10), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(failed(function.set_attribute(dynamic, 200 << 10)), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
    function.set_attribute(dynamic, 100 << 10).unwrap();
    assert_eq!(launch(100 << 10), None);
    let wrong = 0x1234_5678usize as sys::CUstream;
    // SAFETY: the emulator tells a wrong handle.
    let synchronized = unsafe { result::stream::synchronize(wrong) };
    assert_eq!(failed(synchronized), Some(CUresult::CUDA_ERROR_INVALID_HANDLE));
    assert_eq!(function.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap(), 8);
}

#[test]
fn a_failed_check_ends_with_its_context() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let function = ctx.load_module(ptx()).unwrap().load_function("store_at").unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    let illegal = Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    // SAFETY: the emulator tells a wrong address.
    let launched = unsafe { stream.launch_builder(&function).arg(&64u64).launch(config) };
    assert_eq!(failed(launched.map(drop)), illegal);
    assert_eq!(failed(stream.synchronize()), illegal);
    assert!(text("cudaEmuLastReport").contains("store_at"));
    drop((stream, function, ctx));
    CudaContext::new(0).unwrap().synchronize().unwrap();
}

#[test]
fn a_graph_replays_a_stream() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: every use of a slice here is in one stream.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let function = add_one(&ctx);
    let mut data = stream.alloc_zeros::<f32>(64).unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    run(&stream, &function, &mut data);
    run(&stream, &function, &mut data);
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [0.0; 64]);
    graph.upload().unwrap();
    for _ in 0..5 {
        graph.launch().unwrap();
    }
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [10.0; 64]);
    drop((graph, data, function, stream, ctx));
    assert_eq!(text("cudaEmuLeaks"), "");
}

#[test]
fn a_launch_with_attributes_runs_without_a_cluster() {
    let _alone = alone();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let function = ctx.load_module(ptx()).unwrap().load_function("bounded").unwrap();
    let launch = |blocks: u32| {
        // SAFETY: both structures are plain data, for which all zeros are a value.
        let (mut config, mut attribute): (sys::CUlaunchConfig, sys::CUlaunchAttribute) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        (config.gridDimX, config.gridDimY, config.gridDimZ) = (2, 1, 1);
        (config.blockDimX, config.blockDimY, config.blockDimZ) = (64, 1, 1);
        config.hStream = stream.cu_stream();
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.clusterDim.x = blocks;
        attribute.value.clusterDim.y = 1;
        attribute.value.clusterDim.z = 1;
        (config.attrs, config.numAttrs) = (&mut attribute, 1);
        // SAFETY: the configuration and its attribute live here, and the kernel takes nothing.
        unsafe {
            sys::cuLaunchKernelEx(&config, function.cu_function(), std::ptr::null_mut(), std::ptr::null_mut())
        }
    };
    assert_eq!(launch(1), CUresult::CUDA_SUCCESS);
    assert_eq!(launch(2), CUresult::CUDA_ERROR_NOT_SUPPORTED);
}
