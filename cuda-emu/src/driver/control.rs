//! The emulator's own functions: what failed, what leaked, what was counted.
//!
//! Those that answer a text return its length without the NUL, and write as much as fits; `length >= capacity`
//! says that it was cut. A null buffer only asks for the length.

use std::ffi::c_char;
use std::fmt::Write;

use super::abi::{Out, guard};
use super::state;

fn answer(text: &str, buffer: Out<c_char>, capacity: usize) -> usize {
    let _ = buffer.fill(text, capacity);
    text.len()
}

/// A text that JSON can quote.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => write!(out, "\\u{:04x}", c as u32).unwrap_or_default(),
            c => out.push(c),
        }
    }
    out + "\""
}

fn item(what: &str, name: &str, address: u64, bytes: u64) -> String {
    let (what, name) = (quoted(what), quoted(name));
    format!("{{\"what\":{what},\"name\":{name},\"address\":\"{address:#x}\",\"bytes\":{bytes}}}")
}

/// A body that answers a text's length: a panic answers 0.
fn text(buffer: Out<c_char>, capacity: usize, body: impl FnOnce() -> String) -> usize {
    let mut length = 0;
    guard(|| {
        length = answer(&body(), buffer, capacity);
        Ok(())
    });
    length
}

/// The last check that failed, or call that was refused with a reason.
///
/// # Safety
/// `buffer` must be null or have `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmuLastReport(buffer: Out<c_char>, capacity: usize) -> usize {
    text(buffer, capacity, || state::lock().report.clone())
}

/// What contexts that ended left behind, as a JSON array.
///
/// # Safety
/// `buffer` must be null or have `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmuLeaks(buffer: Out<c_char>, capacity: usize) -> usize {
    text(buffer, capacity, || {
        let state = state::lock();
        let items = state.leaks.iter().map(|leak| item(leak.what, &leak.name, leak.address, leak.bytes));
        format!("[{}]", items.collect::<Vec<_>>().join(","))
    })
}

/// What is allocated on the device now, as a JSON array.
///
/// # Safety
/// `buffer` must be null or have `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmuLive(buffer: Out<c_char>, capacity: usize) -> usize {
    text(buffer, capacity, || {
        let state = state::lock();
        let items =
            state.blocks.iter().map(|(&addr, block)| item("allocation", &block.name, addr, block.bytes));
        format!("[{}]", items.collect::<Vec<_>>().join(","))
    })
}

/// Each kernel's launches and counters since the last reset, and the memory's peak, as a JSON object.
///
/// # Safety
/// `buffer` must be null or have `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmuCounters(buffer: Out<c_char>, capacity: usize) -> usize {
    text(buffer, capacity, || {
        let state = state::lock();
        let kernels = state.tallies.iter().map(|(name, tally)| {
            let mut fields = format!("{}:{{\"launches\":{}", quoted(name), tally.launches);
            for (name, count) in &tally.counts {
                let _ = write!(fields, ",{}:{count}", quoted(name));
            }
            fields + "}"
        });
        let kernels = kernels.collect::<Vec<_>>().join(",");
        format!("{{\"kernels\":{{{kernels}}},\"used_bytes\":{},\"peak_bytes\":{}}}", state.used, state.peak)
    })
}

/// Forgets the counters, the leaks, the last report and every context's failed check. Allocations stay.
#[unsafe(no_mangle)]
pub extern "C" fn cudaEmuReset() -> i32 {
    guard(|| {
        let mut state = state::lock();
        state.tallies.clear();
        state.leaks.clear();
        state.report.clear();
        state.peak = state.used;
        for ctx in state.contexts.values_mut() {
            ctx.sticky = None;
        }
        Ok(())
    })
}

/// Sets the capacity of the device's memory, in bytes. What is allocated stays, though it be more.
#[unsafe(no_mangle)]
pub extern "C" fn cudaEmuSetMemory(bytes: u64) -> i32 {
    guard(|| {
        state::lock().capacity = bytes;
        Ok(())
    })
}

/// These functions, by name.
pub fn symbols() -> Vec<(&'static str, usize)> {
    vec![
        ("cudaEmuLastReport", cudaEmuLastReport as *const () as usize),
        ("cudaEmuLeaks", cudaEmuLeaks as *const () as usize),
        ("cudaEmuLive", cudaEmuLive as *const () as usize),
        ("cudaEmuCounters", cudaEmuCounters as *const () as usize),
        ("cudaEmuReset", cudaEmuReset as *const () as usize),
        ("cudaEmuSetMemory", cudaEmuSetMemory as *const () as usize),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn json_is_quoted() {
        assert_eq!(super::quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
