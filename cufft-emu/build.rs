//! cuFFT's SONAME, so that what asks for `libcufft.so` by name finds the one that is already open.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcufft.so");
}
