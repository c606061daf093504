//! The emulator's own functions: what failed, what leaked, what was counted.
//!
//! Those that answer a text return its length without the NUL, and write as much as fits; `length >= capacity`
//! says that it was cut. A null buffer only asks for the length.

use std::ffi::c_char;
use std::fmt::Write;

use super::abi::{Out, guard};
use super::state::{self, Leak, State};

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

/// A body that answers a text's length: a panic answers 0.
fn text(name: &str, buffer: Out<c_char>, capacity: usize, body: impl FnOnce() -> String) -> usize {
    let mut length = 0;
    guard(name, || {
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
    text("cudaEmuLastReport", buffer, capacity, || state::lock().report.clone())
}

/// What is live on the device, by a line each.
fn live(state: &State) -> impl Iterator<Item = String> + use<'_> {
    state.blocks.iter().map(|(&address, block)| {
        let leak = Leak { what: "allocation", name: block.name.clone(), address, bytes: block.bytes };
        format!("live: {leak}")
    })
}

/// What contexts that ended left behind since the last reset, and what is allocated now: a line each.
///
/// # Safety
/// `buffer` must be null or have `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmuLeaks(buffer: Out<c_char>, capacity: usize) -> usize {
    text("cudaEmuLeaks", buffer, capacity, || {
        let state = state::lock();
        let left = state.leaks.iter().map(|leak| format!("left by its context: {leak}"));
        left.chain(live(&state)).collect::<Vec<_>>().join("\n")
    })
}

/// Each kernel's launches and counters since the last reset, and the memory's peak, as a JSON object.
///
/// # Safety
/// `buffer` must be null or have `capacity` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmuCounters(buffer: Out<c_char>, capacity: usize) -> usize {
    text("cudaEmuCounters", buffer, capacity, || {
        let state = state::lock();
        let kernels = state.tallies.iter().map(|(name, tally)| {
            let mut fields = format!("{}:{{\"launches\":{}", quoted(name), tally.launches);
            for (name, count) in &tally.counts {
                let _ = write!(fields, ",{}:{count}", quoted(&name.replace(' ', "_")));
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
    guard("cudaEmuReset", || {
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
    guard("cudaEmuSetMemory", || {
        state::lock().capacity = bytes;
        Ok(())
    })
}

/// These functions, by name.
pub fn symbols() -> Vec<(&'static str, usize)> {
    vec![
        ("cudaEmuLastReport", cudaEmuLastReport as *const () as usize),
        ("cudaEmuLeaks", cudaEmuLeaks as *const () as usize),
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
