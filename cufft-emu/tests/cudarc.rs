//! cuFFT under cudarc, as an engine uses it: both libraries are open before cudarc asks for them by name.

use std::f64::consts::TAU;
use std::sync::{Arc, OnceLock};

use cudarc::cufft::result::{self, CufftError};
use cudarc::cufft::sys::{cufftResult, cufftType, float2};
use cudarc::cufft::{CudaFft, FftDirection};
use cudarc::driver::{CudaContext, CudaStream, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// A stream of a device whose libraries are open.
fn stream() -> Arc<CudaStream> {
    static OPEN: OnceLock<()> = OnceLock::new();
    OPEN.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows its own path");
        for name in ["libcuda_emu.so", "libcufft_emu.so"] {
            let path = test.with_file_name(name);
            // SAFETY: neither library has initialisers of its own.
            let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
            std::mem::forget(library.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
    });
    CudaContext::new(0).unwrap().new_stream().unwrap()
}

/// Values without a pattern, the same at every run.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn complex(count: usize, seed: u32) -> Vec<float2> {
    noise(2 * count, seed).chunks(2).map(|pair| float2 { x: pair[0], y: pair[1] }).collect()
}

/// The transform by its definition, for each array of rows × columns. `round` is what each operation's result goes
/// through: nothing for the reference, f32 for the error that the definition itself has in that precision.
fn dft(data: &[float2], [rows, columns]: [usize; 2], sign: f64, round: fn(f64) -> f64) -> Vec<[f64; 2]> {
    let table = |n: usize| -> Vec<[f64; 2]> {
        (0..n)
            .map(|k| TAU * sign * k as f64 / n as f64)
            .map(|angle| [round(angle.cos()), round(angle.sin())])
            .collect()
    };
    let product = |[a, b]: [f64; 2], [c, d]: [f64; 2]| {
        [round(round(a * c) - round(b * d)), round(round(a * d) + round(b * c))]
    };
    let (by_row, by_column) = (table(rows), table(columns));
    let mut out = Vec::new();
    for array in data.chunks(rows * columns) {
        for (u, v) in (0..rows * columns).map(|at| (at / columns, at % columns)) {
            let mut sum = [0.0; 2];
            for (at, value) in array.iter().enumerate() {
                let (y, x) = (at / columns, at % columns);
                let twiddle = product(by_row[u * y % rows], by_column[v * x % columns]);
                let term = product([value.x.into(), value.y.into()], twiddle);
                sum = [round(sum[0] + term[0]), round(sum[1] + term[1])];
            }
            out.push(sum);
        }
    }
    out
}

fn exact(x: f64) -> f64 {
    x
}

fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

fn error(found: &[[f64; 2]], reference: &[[f64; 2]]) -> f64 {
    assert_eq!(found.len(), reference.len());
    let errors = found.iter().zip(reference).map(|(a, b)| (a[0] - b[0]).abs().max((a[1] - b[1]).abs()));
    errors.fold(0.0, f64::max)
}

fn wide(values: &[float2]) -> Vec<[f64; 2]> {
    values.iter().map(|value| [value.x.into(), value.y.into()]).collect()
}

fn plan(dims: [usize; 2], batch: usize, of: cufftType, stream: &Arc<CudaStream>) -> CudaFft {
    let n = dims.map(|n| n as i32);
    let n = if dims[0] == 1 { &n[1..] } else { &n[..] };
    CudaFft::plan_many(n, None, 1, 0, None, 1, 0, of, batch as i32, stream.clone()).unwrap()
}

/// One-dimensional sizes, and two-dimensional ones.
const SHAPES: [[usize; 2]; 7] = [[1, 8], [1, 12], [1, 63], [1, 64], [8, 12], [12, 63], [64, 16]];
const BATCH: usize = 3;

#[test]
fn c2c_is_the_transform_by_its_definition_and_comes_back() {
    let stream = stream();
    for dims in SHAPES {
        let count = dims[0] * dims[1];
        let host = complex(BATCH * count, 7);
        let mut input = stream.clone_htod(&host).unwrap();
        let mut output = stream.alloc_zeros::<float2>(host.len()).unwrap();
        let fft = plan(dims, BATCH, cufftType::CUFFT_C2C, &stream);
        for (direction, sign) in [(FftDirection::Forward, -1.0), (FftDirection::Inverse, 1.0)] {
            fft.exec_c2c(&mut input, &mut output, direction).unwrap();
            let found = wide(&stream.clone_dtoh(&output).unwrap());
            let reference = dft(&host, dims, sign, exact);
            let bound = 2.0 * error(&dft(&host, dims, sign, single), &reference);
            let (error, most) = (error(&found, &reference), bound);
            assert!(error <= most, "{dims:?} {direction:?}: error {error:e}, at most {most:e}");
        }
        // The inverse is in `output` now: forward, in place, it is the input again, times the count.
        let mut back = stream.clone_dtod(&output).unwrap();
        let pointer = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut back, &stream).0;
        // SAFETY: the plan's arrays fill the allocation.
        unsafe { result::exec_c2c(fft.handle(), pointer as *mut _, pointer as *mut _, -1) }.unwrap();
        let back: Vec<_> = wide(&stream.clone_dtoh(&back).unwrap());
        let back: Vec<_> = back.iter().map(|value| value.map(|part| part / count as f64)).collect();
        // Two transforms, whose sums each err by less than an ε for each of the log2 levels and each twiddle.
        let bound = 8.0 * f64::from(f32::EPSILON) * (count as f64).log2();
        assert!(
            error(&back, &wide(&host)) <= bound,
            "{dims:?}: {:e} > {bound:e}",
            error(&back, &wide(&host))
        );
    }
}

#[test]
fn r2c_is_half_of_c2c_and_c2r_brings_it_back() {
    let stream = stream();
    for dims in SHAPES {
        let [rows, columns] = dims;
        let (count, half) = (rows * columns, columns / 2 + 1);
        let host = noise(BATCH * count, 11);
        let input = stream.clone_htod(&host).unwrap();
        let mut spectrum = stream.alloc_zeros::<float2>(BATCH * rows * half).unwrap();
        plan(dims, BATCH, cufftType::CUFFT_R2C, &stream).exec_r2c(&input, &mut spectrum).unwrap();
        let whole: Vec<_> = host.iter().map(|&x| float2 { x, y: 0.0 }).collect();
        // Each of the two may err by twice what the definition does in this precision.
        let bound = 4.0 * error(&dft(&whole, dims, -1.0, single), &dft(&whole, dims, -1.0, exact));
        let (mut whole, mut full) =
            (stream.clone_htod(&whole).unwrap(), stream.alloc_zeros(host.len()).unwrap());
        let c2c = plan(dims, BATCH, cufftType::CUFFT_C2C, &stream);
        c2c.exec_c2c(&mut whole, &mut full, FftDirection::Forward).unwrap();
        let full = wide(&stream.clone_dtoh(&full).unwrap());
        let kept: Vec<_> = full.chunks(columns).flat_map(|row| &row[..half]).copied().collect();
        let error = error(&wide(&stream.clone_dtoh(&spectrum).unwrap()), &kept);
        assert!(error <= bound, "{dims:?}: error {error:e}, at most {bound:e}");
        let mut back = stream.alloc_zeros::<f32>(host.len()).unwrap();
        plan(dims, BATCH, cufftType::CUFFT_C2R, &stream).exec_c2r(&mut spectrum, &mut back).unwrap();
        let bound = 8.0 * f32::EPSILON * (count as f32).log2();
        for (found, wanted) in stream.clone_dtoh(&back).unwrap().iter().zip(&host) {
            assert!(
                (found / count as f32 - wanted).abs() <= bound,
                "{dims:?}: {found} / {count}, not {wanted}"
            );
        }
    }
}

#[test]
fn an_advanced_layout_is_followed_and_its_gaps_are_left_alone() {
    let stream = stream();
    let (rows, columns, batch) = (4, 6, 2);
    // Strides 2 and 3, rows of 7 and 8, arrays 80 and 101 apart.
    let place = |array: usize, y: usize, x: usize, [row, stride, distance]: [usize; 3]| {
        array * distance + (y * row + x) * stride
    };
    let (from, to) = ([7, 2, 80], [8, 3, 101]);
    let host = complex(2 * 80, 3);
    let fft = CudaFft::plan_many(
        &[rows as i32, columns as i32],
        Some(&[9, 7]),
        2,
        80,
        Some(&[9, 8]),
        3,
        101,
        cufftType::CUFFT_C2C,
        batch as i32,
        stream.clone(),
    )
    .unwrap();
    let guard = float2 { x: 7.0, y: -7.0 };
    let mut input = stream.clone_htod(&host).unwrap();
    let mut output = stream.clone_htod(&[guard; 202]).unwrap();
    fft.exec_c2c(&mut input, &mut output, FftDirection::Forward).unwrap();
    let found = stream.clone_dtoh(&output).unwrap();
    let all = || (0..batch).flat_map(|b| (0..rows).flat_map(move |y| (0..columns).map(move |x| (b, y, x))));
    let dense: Vec<_> = all().map(|(b, y, x)| host[place(b, y, x, from)]).collect();
    let mut plain = stream.clone_htod(&dense).unwrap();
    let mut wanted = stream.alloc_zeros::<float2>(dense.len()).unwrap();
    let basic = plan([rows, columns], batch, cufftType::CUFFT_C2C, &stream);
    basic.exec_c2c(&mut plain, &mut wanted, FftDirection::Forward).unwrap();
    let mut expected = vec![guard; 202];
    for ((b, y, x), value) in all().zip(stream.clone_dtoh(&wanted).unwrap()) {
        expected[place(b, y, x, to)] = value;
    }
    assert_eq!(wide(&found), wide(&expected));
}

#[test]
fn in_place_real_rows_are_padded() {
    let stream = stream();
    let (rows, columns, half) = (5, 6, 4);
    let host = noise(rows * columns, 5);
    let padded: Vec<_> = host.chunks(columns).flat_map(|row| row.iter().copied().chain([9.0; 2])).collect();
    let fft = CudaFft::plan_2d(rows as i32, columns as i32, cufftType::CUFFT_R2C, stream.clone()).unwrap();
    let data = stream.clone_htod(&padded).unwrap();
    let pointer = cudarc::driver::DevicePtr::device_ptr(&data, &stream).0;
    // SAFETY: the padded rows are as long as their spectra.
    unsafe { result::exec_r2c(fft.handle(), pointer as *mut _, pointer as *mut _) }.unwrap();
    let mut apart = stream.alloc_zeros::<float2>(rows * half).unwrap();
    fft.exec_r2c(&stream.clone_htod(&host).unwrap(), &mut apart).unwrap();
    let wanted: Vec<f32> =
        stream.clone_dtoh(&apart).unwrap().iter().flat_map(|value| [value.x, value.y]).collect();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), wanted);
}

#[test]
fn a_captured_transform_is_done_at_each_launch() {
    let stream = stream();
    // SAFETY: every use of a slice here is in one stream.
    unsafe { stream.context().disable_event_tracking() };
    let fft = CudaFft::plan_1d(8, cufftType::CUFFT_C2C, 1, stream.clone()).unwrap();
    let mut input = stream.alloc_zeros::<float2>(8).unwrap();
    let mut output = stream.alloc_zeros::<float2>(8).unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    fft.exec_c2c(&mut input, &mut output, FftDirection::Forward).unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for value in [1.0, 2.5] {
        stream.memcpy_htod(&[float2 { x: value, y: 0.0 }; 8], &mut input).unwrap();
        graph.launch().unwrap();
        let found = wide(&stream.clone_dtoh(&output).unwrap());
        assert_eq!(found[0], [8.0 * f64::from(value), 0.0]);
        assert!(found[1..].iter().all(|value| *value == [0.0, 0.0]));
    }
}

#[test]
fn what_is_wrong_is_answered_in_cuffts_codes() {
    let stream = stream();
    let code = |answer: Result<(), CufftError>| answer.err().map(|CufftError(code)| code);
    assert_eq!(result::get_version().unwrap(), 12_000);
    let failed = |nx, of, batch| code(CudaFft::plan_1d(nx, of, batch, stream.clone()).map(drop));
    assert_eq!(failed(0, cufftType::CUFFT_C2C, 1), Some(cufftResult::CUFFT_INVALID_SIZE));
    assert_eq!(failed(8, cufftType::CUFFT_C2C, -1), Some(cufftResult::CUFFT_INVALID_SIZE));
    assert_eq!(failed(8, cufftType::CUFFT_Z2Z, 1), Some(cufftResult::CUFFT_NOT_SUPPORTED));
    let fft = CudaFft::plan_1d(8, cufftType::CUFFT_C2C, 1, stream.clone()).unwrap();
    let mut short = stream.alloc_zeros::<float2>(7).unwrap();
    let mut enough = stream.alloc_zeros::<float2>(8).unwrap();
    let outside = fft.exec_c2c(&mut short, &mut enough, FftDirection::Forward);
    assert_eq!(code(outside), Some(cufftResult::CUFFT_EXEC_FAILED));
    let wrong = fft.exec_r2c(&stream.alloc_zeros::<f32>(8).unwrap(), &mut enough);
    assert_eq!(code(wrong), Some(cufftResult::CUFFT_INVALID_TYPE));
    let handle = result::create().unwrap();
    // SAFETY: handles are checked, and the functions take nothing else that is followed.
    unsafe {
        assert_eq!(result::get_size(handle).unwrap(), 0);
        result::set_auto_allocation(handle, false).unwrap();
        assert_eq!(code(result::exec_c2c(handle, 8 as _, 8 as _, -1)), Some(cufftResult::CUFFT_INVALID_PLAN));
        result::make_plan_1d(handle, 8, cufftType::CUFFT_C2C, 1).unwrap();
        let again = result::make_plan_1d(handle, 8, cufftType::CUFFT_C2C, 1).map(drop);
        assert_eq!(code(again), Some(cufftResult::CUFFT_INVALID_PLAN));
        result::destroy(handle).unwrap();
        assert_eq!(code(result::destroy(handle)), Some(cufftResult::CUFFT_INVALID_PLAN));
    }
}
