//! NVRTC, NVIDIA's run-time compiler, through a table of its own functions: no CUDA is needed to build, a missing
//! library is an error with its remedy, and nothing here panics.
//!
//! One compilation for a real architecture (`sm_80`) yields cubin and PTX at once; the assembler's word on registers,
//! spills and shared memory is in the log. Must not know what is compiled.

mod find;

pub use find::cache_folder;

use crate::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

type Program = *mut c_void;
type Code = c_int;

/// The functions of `nvrtc.h` that are used, by its names.
struct Table {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    destroy: unsafe extern "C" fn(*mut Program) -> Code,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Code,
}

/// Major and minor, as 12.8.
pub type Version = (u32, u32);

/// The oldest NVRTC whose functions are those used here.
const OLDEST: Version = (12, 0);

/// The oldest driver that is supported, by the CUDA version it speaks.
const OLDEST_DRIVER: Version = (12, 8);

/// A loaded NVRTC.
pub struct Nvrtc {
    table: Table,
    path: PathBuf,
    version: Version,
    // Kept for as long as the table points into them; dropped last.
    _library: Library,
    _builtins: Option<Library>,
}

/// What is to be compiled.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name, as errors show it.
    pub name: &'a str,
    /// CUDA C++.
    pub text: &'a str,
    /// Name (as in `#include "name"`) and text of every header it may include.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Code for the one architecture asked for.
    pub cubin: Vec<u8>,
    /// The same for any driver to translate.
    pub ptx: String,
    /// What the compiler and the assembler said.
    pub log: String,
}

impl Nvrtc {
    /// Finds and loads NVRTC: the file or folder that `ASASR_NVRTC` names, else the system's, `CUDA_HOME`'s, pip's, or
    /// that in the project's own cache.
    pub fn find() -> Result<Self> {
        find::nvrtc(&find::Places::of_this_machine(), None)
    }

    /// The first of those whose code a driver of this version can load.
    pub fn find_for(driver: Version) -> Result<Self> {
        find::nvrtc(&find::Places::of_this_machine(), Some(driver))
    }

    /// Loads the library at `path` (a bare name is looked up by the system), with the builtins beside it first:
    /// pip's build would not find them by itself.
    pub fn load(path: &Path) -> Result<Self> {
        let refuse = |detail: String| Error::Nvrtc { path: path.to_path_buf(), detail };
        let open = |path: &Path| {
            // SAFETY: the initialisers of NVRTC and of its builtins have no preconditions.
            unsafe { Library::new(path) }
        };
        let builtins = match find::builtins_beside(path) {
            Some(file) => Some(
                open(&file).map_err(|e| refuse(format!("its {}: {}", file.display(), loader_says(&e))))?,
            ),
            None => None,
        };
        let library = open(path).map_err(|e| refuse(format!("{}; {}", loader_says(&e), find::REMEDY)))?;
        let missing =
            |name: &str| refuse(format!("has no function {name}: not an NVRTC of CUDA 12 or later"));
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type in `Table` is that of this name in nvrtc.h; `library` outlives the pointer.
                unsafe { *library.get(concat!($name, "\0").as_bytes()).map_err(|_| missing($name))? }
            };
        }
        let table = Table {
            version: function!("nvrtcVersion"),
            error_string: function!("nvrtcGetErrorString"),
            create: function!("nvrtcCreateProgram"),
            destroy: function!("nvrtcDestroyProgram"),
            compile: function!("nvrtcCompileProgram"),
            log_size: function!("nvrtcGetProgramLogSize"),
            log: function!("nvrtcGetProgramLog"),
            ptx_size: function!("nvrtcGetPTXSize"),
            ptx: function!("nvrtcGetPTX"),
            cubin_size: function!("nvrtcGetCUBINSize"),
            cubin: function!("nvrtcGetCUBIN"),
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two pointers to integers that live through the call.
        let code = unsafe { (table.version)(&mut major, &mut minor) };
        let version = match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) if code == 0 => (major, minor),
            _ => return Err(refuse(format!("does not say its version (code {code}: {major}.{minor})"))),
        };
        if let Some(detail) = too_old(version) {
            return Err(refuse(detail));
        }
        Ok(Self { table, path: path.to_path_buf(), version, _library: library, _builtins: builtins })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Refuses a driver that could not load what this compiles.
    pub fn suits(&self, driver: Version) -> Result<()> {
        match unsuited(self.version, driver) {
            None => Ok(()),
            Some(detail) => Err(Error::Nvrtc { path: self.path.clone(), detail }),
        }
    }

    /// What was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles `source` for `arch` (`sm_80`), with further `options`, one flag each.
    pub fn compile(&self, source: &Source, arch: &str, options: &[&str]) -> Result<Output> {
        let strings = |texts: &mut dyn Iterator<Item = &str>| -> Result<Vec<CString>> {
            texts
                .map(|t| {
                    CString::new(t).map_err(|e| {
                        Error::Usage(format!("{} for NVRTC: a NUL at byte {}", source.name, e.nul_position()))
                    })
                })
                .collect()
        };
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let count = |n: usize| {
            c_int::try_from(n).map_err(|_| Error::Usage(format!("{n} arguments for NVRTC are too many")))
        };
        let main = strings(&mut [source.text, source.name].into_iter())?;
        let texts = strings(&mut source.headers.iter().map(|h| h.1))?;
        let names = strings(&mut source.headers.iter().map(|h| h.0))?;
        let arch_flag = format!("--gpu-architecture={arch}");
        let flags = strings(&mut std::iter::once(arch_flag.as_str()).chain(options.iter().copied()))?;

        let mut program = Owned { table: &self.table, program: std::ptr::null_mut() };
        // SAFETY: every string is terminated and outlives the call, which copies them; both tables have `names.len()`
        // entries.
        let code = unsafe {
            (self.table.create)(
                &mut program.program,
                main[0].as_ptr(),
                main[1].as_ptr(),
                count(names.len())?,
                pointers(&texts).as_ptr(),
                pointers(&names).as_ptr(),
            )
        };
        self.check(code, "nvrtcCreateProgram", source.name)?;
        // SAFETY: the program was created; the flags are terminated and outlive the call.
        let code =
            unsafe { (self.table.compile)(program.program, count(flags.len())?, pointers(&flags).as_ptr()) };
        let log = program.bytes(self.table.log_size, self.table.log);
        let log = log.map(|l| text(&l)).unwrap_or_default();
        if code != 0 {
            let name = source.name.to_string();
            let (major, minor) = self.version;
            let first = first_error(&log).map(|e| format!("{e}\n")).unwrap_or_default();
            let quoted = quoted_lines(source, &log);
            let log = format!("{first}{} (NVRTC {major}.{minor})\n{}{quoted}", self.word(code), log.trim());
            return Err(Error::Compile { name, arch: arch.to_string(), log });
        }
        let get = |size, data, what| {
            program.bytes(size, data).or_else(|code| {
                self.check(code, what, source.name)?;
                Ok(Vec::new())
            })
        };
        let cubin = get(self.table.cubin_size, self.table.cubin, "nvrtcGetCUBIN")?;
        let ptx = get(self.table.ptx_size, self.table.ptx, "nvrtcGetPTX")?;
        if cubin.is_empty() {
            return Err(Error::Usage(format!(
                "NVRTC makes no cubin for `{arch}`; ask for a real one: sm_80"
            )));
        }
        Ok(Output { cubin, ptx: unrooted(&text(&ptx)), log })
    }

    fn check(&self, code: Code, function: &str, name: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let detail = format!("{function} refused {name}: {}", self.word(code));
        Err(Error::Nvrtc { path: self.path.clone(), detail })
    }

    /// NVRTC's name of a code.
    fn word(&self, code: Code) -> String {
        // SAFETY: takes any code and returns a static string, or null.
        let word = unsafe { (self.table.error_string)(code) };
        if word.is_null() {
            return format!("code {code}");
        }
        // SAFETY: not null, and NVRTC's strings are terminated.
        unsafe { CStr::from_ptr(word) }.to_string_lossy().into_owned()
    }
}

/// Why a library does not open, in the system loader's words, which libloading keeps as the error's cause.
pub(super) fn loader_says(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

/// A program that is destroyed whatever happens.
struct Owned<'t> {
    table: &'t Table,
    program: Program,
}

impl Owned<'_> {
    /// What one of the (size, data) pairs of functions gives.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Code,
        data: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    ) -> Result<Vec<u8>, Code> {
        let mut n = 0;
        // SAFETY: the program was created; `n` lives through the call.
        match unsafe { size(self.program, &mut n) } {
            0 => {}
            code => return Err(code),
        }
        let mut bytes = vec![0u8; n];
        // SAFETY: `data` writes the `n` bytes that `size` announced.
        match unsafe { data(self.program, bytes.as_mut_ptr().cast()) } {
            0 => Ok(bytes),
            code => Err(code),
        }
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created once, destroyed once; sets the pointer to null.
            unsafe { (self.table.destroy)(&mut self.program) };
        }
    }
}

/// Why an NVRTC of this version is not used.
fn too_old(version: Version) -> Option<String> {
    let ((major, minor), (want, want_minor)) = (version, OLDEST);
    (version < OLDEST).then(|| {
        format!("is version {major}.{minor}; {want}.{want_minor} or later is wanted; {}", find::REMEDY)
    })
}

/// Why code of NVRTC version `nvrtc` is not given to a driver that speaks CUDA `driver`; `None` if it can be. A driver
/// reads the PTX and the cubins of its own version and of older ones.
pub fn unsuited(nvrtc: Version, driver: Version) -> Option<String> {
    let (major, minor) = driver;
    if driver < OLDEST_DRIVER {
        let (want, want_minor) = OLDEST_DRIVER;
        return Some(format!(
            "the driver speaks CUDA {major}.{minor}; {want}.{want_minor} or later is wanted: update the driver"
        ));
    }
    // Until CUDA 12 the wheel's name carried the major version.
    let wheel = if major == 12 { "nvidia-cuda-nvrtc-cu12" } else { "nvidia-cuda-nvrtc" };
    (nvrtc > driver).then(|| {
        format!(
            "is version {}.{}, newer than the driver, which speaks CUDA {major}.{minor}; `pip install \
             '{wheel}=={major}.{minor}.*'`, or update the driver",
            nvrtc.0, nvrtc.1
        )
    })
}

/// The log's first line that says `error`, with its file and line.
fn first_error(log: &str) -> Option<&str> {
    log.lines().map(str::trim).find(|l| l.contains("error"))
}

/// The PTX with its source files named as they were given: NVRTC puts the current folder before them, and who reads the
/// cache later stands elsewhere.
fn unrooted(ptx: &str) -> String {
    let Ok(here) = std::env::current_dir() else { return ptx.into() };
    let root = format!("\"{}/", here.display());
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.split_inclusive('\n') {
        if line.trim_start().starts_with(".file") {
            out += &line.replacen(&root, "\"", 1);
        } else {
            out += line;
        }
    }
    out
}

/// Text that may end with a NUL.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string()
}

/// The lines of the source that the log's errors, `name(line): error`, point to and do not show themselves.
fn quoted_lines(source: &Source, log: &str) -> String {
    let files = std::iter::once((source.name, source.text)).chain(source.headers.iter().copied());
    let mut out = String::new();
    for (name, text) in files {
        for line in log.lines().filter(|l| l.contains("error")) {
            let number = line.split_once(&format!("{name}(")).and_then(|(_, rest)| {
                rest.split_once(')').and_then(|(number, _)| number.parse::<usize>().ok())
            });
            let Some(quoted) = number.and_then(|n| text.lines().nth(n.checked_sub(1)?)) else { continue };
            if !log.contains(quoted.trim()) {
                out += &format!("\n{name}:{}: {}", number.unwrap_or(0), quoted.trim());
            }
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The machine's NVRTC; says so when there is none, and fails where there must be one: under `CI=true`.
    pub(crate) fn nvrtc() -> Option<Nvrtc> {
        match Nvrtc::find() {
            Ok(nvrtc) => Some(nvrtc),
            Err(e) => {
                assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{e}");
                println!("skipped: {e}");
                None
            }
        }
    }

    const OPTIONS: [&str; 2] = ["--std=c++17", "--ptxas-options=-v"];

    #[test]
    fn cubin_and_ptx_at_once_with_a_header_from_memory() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = Source {
            name: "one.cu",
            text: "#include \"common/two.cuh\"\nextern \"C\" __global__ void k(float* x) { *x *= two(); }",
            headers: &[("common/two.cuh", "__device__ float two() { return 2.f; }")],
        };
        let out = nvrtc.compile(&source, "sm_80", &OPTIONS).unwrap();
        assert!(out.cubin.starts_with(b"\x7fELF"));
        assert!(out.ptx.contains(".visible .entry k(") && out.ptx.contains(".target sm_80"), "{}", out.ptx);
        assert!(out.log.contains("registers"), "{}", out.log);
    }

    #[test]
    fn source_lines_are_of_files_as_they_were_named() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = Source {
            name: "one.cu",
            text: "#include \"common/two.cuh\"\nextern \"C\" __global__ void k(float* x) { *x = two(*x); }",
            headers: &[("common/two.cuh", "__device__ float two(float x) { return x * 2.f; }")],
        };
        let ptx = nvrtc.compile(&source, "sm_80", &["-lineinfo"]).unwrap().ptx;
        for file in ["\"one.cu\"", "\"common/two.cuh\""] {
            assert!(
                ptx.lines().any(|l| l.trim_start().starts_with(".file") && l.contains(file)),
                "{file}: {ptx}"
            );
        }
    }

    #[test]
    fn a_syntax_error_shows_its_line() {
        let Some(nvrtc) = nvrtc() else { return };
        let text = "// one\nextern \"C\" __global__ void k(float* x) {\n    *x = undeclared + 1;\n}\n";
        let source = Source { name: "wrong.cu", text, headers: &[] };
        let e = nvrtc.compile(&source, "sm_80", &OPTIONS).unwrap_err().to_string();
        let first = e.lines().next().unwrap_or_default();
        assert!(first.starts_with("wrong.cu does not compile for sm_80: wrong.cu(3): error:"), "{e}");
        assert!(first.contains("undeclared") && e.contains("*x = undeclared + 1;"), "{e}");
    }

    #[test]
    fn an_error_in_a_header_shows_its_file() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = Source {
            name: "k.cu",
            text: "#include \"common/two.cuh\"\nextern \"C\" __global__ void k() {}",
            headers: &[("common/two.cuh", "\n__device__ flot two();")],
        };
        let e = nvrtc.compile(&source, "sm_80", &OPTIONS).unwrap_err().to_string();
        let first = e.lines().next().unwrap_or_default();
        assert!(first.contains("common/two.cuh(2): error:") && e.contains("flot two()"), "{e}");
    }

    #[test]
    fn versions_that_do_not_go_together_say_what_to_install() {
        assert_eq!(too_old((12, 0)), None);
        let e = too_old((11, 8)).unwrap();
        assert!(e.contains("11.8") && e.contains("12.0") && e.contains("pip install"), "{e}");

        for (nvrtc, driver) in [((12, 8), (12, 8)), ((12, 4), (13, 0)), ((13, 0), (13, 2))] {
            assert_eq!(unsuited(nvrtc, driver), None);
        }
        let e = unsuited((13, 2), (13, 0)).unwrap();
        assert!(e.contains("13.2") && e.contains("pip install 'nvidia-cuda-nvrtc==13.0.*'"), "{e}");
        let e = unsuited((13, 0), (12, 9)).unwrap();
        assert!(e.contains("13.0") && e.contains("pip install 'nvidia-cuda-nvrtc-cu12==12.9.*'"), "{e}");
        let e = unsuited((12, 0), (12, 4)).unwrap();
        assert!(e.contains("driver speaks CUDA 12.4; 12.8 or later"), "{e}");
    }

    #[test]
    fn a_driver_older_than_the_library_is_refused() {
        let Some(nvrtc) = nvrtc() else { return };
        nvrtc.suits((nvrtc.version().0, nvrtc.version().1)).unwrap();
        let e = nvrtc.suits((12, 0)).unwrap_err().to_string();
        assert!(e.contains("update the driver"), "{e}");
    }

    #[test]
    fn other_refusals_are_errors_too() {
        let Some(nvrtc) = nvrtc() else { return };
        let good = Source { name: "k.cu", text: "extern \"C\" __global__ void k() {}", headers: &[] };
        let e = nvrtc.compile(&good, "sm_7", &OPTIONS).unwrap_err().to_string();
        assert!(e.contains("sm_7") && e.contains("NVRTC_ERROR"), "{e}");
        let e = nvrtc.compile(&good, "compute_80", &OPTIONS).unwrap_err().to_string();
        assert!(e.contains("compute_80"), "{e}");
        let nul = Source { text: "a\0b", ..good };
        assert!(nvrtc.compile(&nul, "sm_80", &OPTIONS).unwrap_err().to_string().contains("NUL at byte 1"));
    }

    #[test]
    fn what_is_not_nvrtc_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libnvrtc.so.13");
        let e = Nvrtc::load(&path).err().expect("no file").to_string();
        assert!(e.contains("libnvrtc.so.13") && e.contains("pip"), "{e}");
        std::fs::write(&path, b"not a library").unwrap();
        assert!(matches!(Nvrtc::load(&path), Err(Error::Nvrtc { .. })));
        if cfg!(target_os = "linux") {
            let e = Nvrtc::load(Path::new("libc.so.6")).err().expect("no functions").to_string();
            assert!(e.contains("nvrtcVersion"), "{e}");
        }
    }

    #[test]
    fn errors_quote_lines_of_headers() {
        let source = Source { name: "a.cu", text: "one\ntwo", headers: &[("b.cuh", "three\nfour")] };
        let lines = quoted_lines(&source, "a.cu(2): error: x\nb.cuh(1): error: y\nb.cuh(9): error: z");
        assert_eq!(lines, "\na.cu:2: two\nb.cuh:1: three");
    }
}
