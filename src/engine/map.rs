//! Files as memory.

use memmap2::Mmap;
use std::fs::File;

/// Maps a whole file for reading.
pub fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read, and its users copy out of it. The one hazard left, another process cutting the
    // file short under us, is the same as for any mapped weights; we never write a file in place.
    unsafe { Mmap::map(file) }
}
