//! Launches: the limits that hardware's driver enforces, and the parameters gathered into one block.

use std::ffi::{c_uint, c_void};

use super::abi::{Host, In, driver_api};
use super::device::{BLOCK, GRID, SHARED_OPT_IN};
use super::error::{Answer, Code};
use super::function::{self, Function};
use super::state::{self, Handle};
use super::work::{self, Op};

/// `CU_LAUNCH_PARAM_END`, `CU_LAUNCH_PARAM_BUFFER_POINTER` and `CU_LAUNCH_PARAM_BUFFER_SIZE`.
const END: usize = 0;
const BUFFER: usize = 1;
const BUFFER_BYTES: usize = 2;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    dynamic_shared: c_uint,
    stream: Handle,
    attributes: In<Attribute>,
    count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: [c_uint; 16],
}

impl Attribute {
    /// Whether the launch can honour it. Hints are ignored; what would change a result is refused.
    fn check(&self) -> Answer {
        match self.id {
            // Ignored, or a hint: access policy, synchronisation policy, cluster scheduling, priority,
            // memory domains, preferred cluster, carveout, NVLink.
            0 | 1 | 3 | 5 | 8..=11 | 14 | 16 => Ok(()),
            // Cooperative launches and programmatic serialisation, where they are not asked for.
            2 | 6 if self.value[0] == 0 => Ok(()),
            // A cluster of one block is a block.
            4 if self.value[..3].iter().all(|&n| n == 1) => Ok(()),
            _ => Err(Code::NOT_SUPPORTED),
        }
    }
}

/// A launch's shape.
struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
}

impl Shape {
    /// Refuses what the device cannot launch, saying why.
    fn check(&self, function: &Function) -> Answer {
        let Self { grid, block, dynamic_shared } = *self;
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        let (most, fixed) = (function.max_threads()?, function.kernel()?.static_shared());
        let within =
            |n: [u32; 3], limit: [u32; 3]| n.iter().zip(limit).all(|(&n, limit)| (1..=limit).contains(&n));
        let (code, why) = if !within(grid, GRID) {
            (Code::INVALID_VALUE, format!("a grid is from 1 to {GRID:?} blocks"))
        } else if !within(block, BLOCK) || threads > u64::from(BLOCK[0]) {
            (Code::INVALID_VALUE, format!("a block is from 1 to {BLOCK:?} threads, {} in all", BLOCK[0]))
        } else if threads > u64::from(most) {
            (Code::LAUNCH_OUT_OF_RESOURCES, format!("this kernel's blocks have at most {most} threads"))
        } else if dynamic_shared > function.max_dynamic() {
            let allowed = function.max_dynamic();
            (
                Code::INVALID_VALUE,
                format!("{allowed} bytes of dynamic shared memory are allowed: raise the attribute"),
            )
        } else if fixed.saturating_add(dynamic_shared) > SHARED_OPT_IN {
            (Code::INVALID_VALUE, format!("with {fixed} static bytes, shared memory is over {SHARED_OPT_IN}"))
        } else {
            return Ok(());
        };
        let name = &function.name;
        let report = format!(
            "kernel {name}: grid {grid:?}, block {block:?}, dynamic shared memory {dynamic_shared}: {why}"
        );
        Err(state::lock().refuse(code, report))
    }
}

/// The parameters: each from its pointer, or all of them from one buffer.
fn gather(function: &Function, pointers: In<*mut c_void>, extra: In<*mut c_void>) -> Answer<Vec<u8>> {
    let params = function.kernel()?.params();
    let bytes = params.iter().map(|param| param.offset + param.size).max().unwrap_or(0);
    let refuse = |why: String| {
        let report = format!("kernel {}: {why}", function.name);
        state::lock().refuse(Code::INVALID_VALUE, report)
    };
    if !extra.is_null() {
        if !pointers.is_null() && !params.is_empty() {
            return Err(refuse("parameters are passed in two ways at once".into()));
        }
        return buffer(extra, bytes, refuse);
    }
    let mut block = vec![0; bytes];
    for (index, param) in params.iter().enumerate() {
        let source = if pointers.is_null() { std::ptr::null_mut() } else { pointers.at(index)? };
        let source = Host::new(source).bytes(param.size);
        let source = source.map_err(|_| refuse(format!("parameter {index} of {} is null", params.len())))?;
        block[param.offset..][..param.size].copy_from_slice(source);
    }
    Ok(block)
}

fn buffer(extra: In<*mut c_void>, bytes: usize, refuse: impl Fn(String) -> Code) -> Answer<Vec<u8>> {
    let (mut start, mut size, mut index) = (None, None, 0);
    loop {
        match extra.at(index)? as usize {
            END => break,
            BUFFER => start = Some(Host::new(extra.at(index + 1)?)),
            BUFFER_BYTES => size = Some(Host::new(extra.at(index + 1)?).values::<usize>().get()?),
            other => return Err(refuse(format!("{other} is no launch option"))),
        }
        index += 2;
    }
    match (start, size) {
        (Some(start), Some(size)) if size >= bytes => Ok(start.bytes(bytes)?.to_vec()),
        (_, size) => {
            Err(refuse(format!("its parameters take {bytes} bytes, the buffer has {}", size.unwrap_or(0))))
        }
    }
}

fn launch(
    function: Handle,
    shape: Shape,
    stream: Handle,
    pointers: In<*mut c_void>,
    extra: In<*mut c_void>,
) -> Answer {
    let state = state::ready()?;
    let ctx = state.healthy()?;
    state.stream(ctx, stream)?;
    drop(state);
    let function = function::find(function)?;
    if function.ctx != ctx {
        return Err(Code::INVALID_HANDLE);
    }
    shape.check(&function)?;
    let params = gather(&function, pointers, extra)?;
    let Shape { grid, block, dynamic_shared } = shape;
    work::submit(stream, Op::Kernel { function, grid, block, dynamic_shared, params })
}

driver_api! {
    /// Launches a kernel. A check that fails is answered here, not at the next synchronisation.
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic_shared: c_uint,
        stream: Handle,
        params: In<*mut c_void>,
        extra: In<*mut c_void>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(function, Shape { grid, block, dynamic_shared }, stream, params, extra)
    }

    /// Launches a kernel with attributes.
    fn cuLaunchKernelEx(
        config: In<Config>,
        function: Handle,
        params: In<*mut c_void>,
        extra: In<*mut c_void>,
    ) {
        let Config { grid, block, dynamic_shared, stream, attributes, count } = config.get()?;
        for index in 0..count as usize {
            attributes.at(index)?.check()?;
        }
        launch(function, Shape { grid, block, dynamic_shared }, stream, params, extra)
    }

    /// Cooperative launches are not supported: blocks run one after another.
    fn cuLaunchCooperativeKernel(
        _function: Handle,
        _grid_x: c_uint,
        _grid_y: c_uint,
        _grid_z: c_uint,
        _block_x: c_uint,
        _block_y: c_uint,
        _block_z: c_uint,
        _dynamic_shared: c_uint,
        _stream: Handle,
        _params: In<*mut c_void>,
    ) {
        Err(Code::NOT_SUPPORTED)
    }

    /// Begins profiling: nothing happens.
    fn cuProfilerStart() {
        state::ready().map(drop)
    }

    /// Ends profiling: nothing happens.
    fn cuProfilerStop() {
        state::ready().map(drop)
    }
}

/// The attribute's layout is the header's.
const _: () = assert!(size_of::<Attribute>() == 72 && size_of::<Config>() == 56);
