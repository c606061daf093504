//! The CUDA sources, embedded by `build.rs`. There are none yet: the CPU is the only device today.

/// Path below `kernels/` and text of every `.cu` and `.cuh` file, sorted by path.
pub const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

#[cfg(test)]
mod tests {
    #[test]
    fn every_source_is_embedded_once_in_order() {
        let names: Vec<&str> = super::SOURCES.iter().map(|s| s.0).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert!(names.iter().all(|n| n.ends_with(".cu") || n.ends_with(".cuh")), "{names:?}");
    }
}
