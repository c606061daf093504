//! The CUDA sources, embedded by `build.rs`.

use crate::{Error, Result, error::did_you_mean};

/// Path below `kernels/` and text of every `.cu` and `.cuh` file, sorted by path.
pub const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The source `name`, as `gelu.cu`.
pub fn text(name: &str) -> Result<&'static str> {
    SOURCES.iter().find(|s| s.0 == name).map(|s| s.1).ok_or_else(|| {
        let near = did_you_mean(name, SOURCES.iter().map(|s| s.0));
        Error::Usage(format!("there is no kernel source `{name}`{near}"))
    })
}

/// Name and text of the headers that the source `name` includes, directly or through others, sorted by name.
pub fn headers(name: &str) -> Result<Vec<(&'static str, &'static str)>> {
    headers_of(text(name)?)
}

/// The same for a source that is not embedded.
pub fn headers_of(source: &'static str) -> Result<Vec<(&'static str, &'static str)>> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    let mut open = vec![source];
    while let Some(source) = open.pop() {
        for included in includes(source) {
            if found.iter().all(|f| f.0 != included) {
                let text = text(included)?;
                found.push((included, text));
                open.push(text);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn includes(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|l| l.strip_prefix("#include \"")?.split('"').next())
}

/// The names of the kernels in a source, in its order: `extern "C" __global__`, the name before the parameters.
pub fn names(source: &str) -> Vec<&str> {
    let kernels = source.split("extern \"C\" __global__").skip(1);
    kernels
        .filter_map(|k| {
            let mut rest = k.trim_start().strip_prefix("void")?.trim_start();
            if let Some(bounds) = rest.strip_prefix("__launch_bounds__(") {
                rest = bounds.split_once(')')?.1.trim_start();
            }
            Some(rest.split_once('(')?.0.trim())
        })
        .collect()
}

/// Bytes of shared memory that a launch of kernel `name` must ask for, as its source's heading says
/// (`Dynamic shared: N bytes`); 0 if it says nothing.
pub fn dynamic_shared(source: &str, name: &str) -> u32 {
    heading(source, name)
        .and_then(|h| h.split_once("Dynamic shared: ")?.1.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// The comment that describes kernel `name`: the block of `//` lines whose first is `// a, b, c:`, one of them the name,
/// or, where there is none, the name without its last part, the dtype.
pub fn heading<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let find = |name: &str| headings(source).find(|(names, _)| names.split(',').any(|n| n.trim() == name));
    find(name).or_else(|| find(name.rsplit_once('_')?.0)).map(|(_, block)| block)
}

/// Every block of `//` lines whose first has a `:`, with what stands before that.
fn headings(source: &str) -> impl Iterator<Item = (&str, &str)> {
    source.split("\n\n").filter_map(|part| {
        let lines = part.lines().take_while(|l| l.starts_with("//"));
        let block = part.get(..lines.map(|l| l.len() + 1).sum::<usize>().min(part.len()))?;
        let (names, _) = block.strip_prefix("// ")?.split_once(':')?;
        Some((names, block))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_embedded_once_in_order() {
        let names: Vec<&str> = SOURCES.iter().map(|s| s.0).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert!(names.iter().all(|n| n.ends_with(".cu") || n.ends_with(".cuh")), "{names:?}");
        let wanted = [
            "adamw.cu",
            "common/copy.cuh",
            "common/elementwise.cuh",
            "common/gelu.cuh",
            "common/mma.cuh",
            "common/philox.cuh",
            "common/reduce.cuh",
            "common/types.cuh",
            "elementwise.cu",
            "gelu.cu",
            "linear.cu",
            "ln_modulate.cu",
            "negative.cu",
            "philox.cu",
            "silu.cu",
            "sobolev.cu",
        ];
        for name in wanted {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
    }

    /// Shape, layout, alignment and aliasing of every pointer; grid and block; cost; idea: above every kernel.
    #[test]
    fn every_kernel_has_its_heading() {
        for (file, source) in SOURCES.iter().filter(|s| s.0.ends_with(".cu")) {
            let kernels = names(source);
            assert!(!kernels.is_empty(), "{file} has no kernel");
            for kernel in kernels {
                let heading = heading(source, kernel);
                let heading = heading.unwrap_or_else(|| panic!("{file}: {kernel} has no heading"));
                for word in ["Shapes:", "Layout:", "Grid:", "Cost:", "Idea:"] {
                    assert!(heading.contains(word), "{file}: the heading of {kernel} lacks `{word}`");
                }
                assert!(
                    ["f32", "bf16", "mixed"].contains(&kernel.rsplit('_').next().unwrap()),
                    "{file}: {kernel}"
                );
            }
            assert!(source.lines().all(|l| l.chars().count() <= 120), "{file}: a line exceeds 120");
        }
    }

    #[test]
    fn dynamic_shared_memory_is_read_from_the_heading() {
        let of = |file: &str, kernel: &str| dynamic_shared(text(file).unwrap(), kernel);
        assert_eq!(of("linear.cu", "linear_fwd_bf16"), 65_536);
        assert_eq!(of("linear_f32.cu", "linear_fwd_f32"), 0);
        assert_eq!(of("gelu.cu", "gelu_fwd_f32"), 0);
        assert_eq!(of("gelu.cu", "none_f32"), 0);
    }

    #[test]
    fn headers_are_found_through_headers() {
        let names = |of: &str| headers(of).unwrap().iter().map(|h| h.0).collect::<Vec<_>>();
        assert_eq!(names("philox.cu"), ["common/philox.cuh", "common/types.cuh"]);
        let e = headers("gelo.cu").unwrap_err().to_string();
        assert!(e.contains("did you mean `gelu.cu`"), "{e}");
    }
}
