//! One file of the cache: `MAGIC`, a line with the SHA-256 of the rest, a line of JSON (reports and lengths), the cubin,
//! the PTX.

use super::Compiled;
use super::report::KernelReport;
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What an entry starts with; another layout gets another number.
pub(super) const MAGIC: &str = "asasr-kernel 2\n";

#[derive(Serialize, Deserialize)]
struct Head {
    cubin: usize,
    ptx: usize,
    kernels: Vec<KernelReport>,
}

/// The entry at `path`; `None` if there is none or it is not what was written.
pub(super) fn read(path: &Path) -> Option<Compiled> {
    parse(&std::fs::read(path).ok()?)
}

fn parse(bytes: &[u8]) -> Option<Compiled> {
    let rest = bytes.strip_prefix(MAGIC.as_bytes())?;
    let (hash, rest) = line(rest)?;
    if files::sha256(rest).as_bytes() != hash {
        return None;
    }
    let (head, rest) = line(rest)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let (cubin, ptx) = rest.split_at_checked(head.cubin)?;
    let ptx = String::from_utf8(ptx.get(..head.ptx)?.to_vec()).ok()?;
    Some(Compiled { cubin: cubin.to_vec(), ptx, kernels: head.kernels })
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The entry of `compiled`.
pub(super) fn bytes(compiled: &Compiled) -> Result<Vec<u8>> {
    let Compiled { cubin, ptx, kernels } = compiled;
    let head = Head { cubin: cubin.len(), ptx: ptx.len(), kernels: kernels.clone() };
    let mut rest = serde_json::to_vec(&head).map_err(|e| Error::Usage(format!("a kernel's report: {e}")))?;
    rest.push(b'\n');
    rest.extend(cubin);
    rest.extend(ptx.as_bytes());
    let mut out = format!("{MAGIC}{}\n", files::sha256(&rest)).into_bytes();
    out.extend(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_noticed() {
        let kernels = vec![KernelReport { name: "k".into(), ..KernelReport::default() }];
        let entry = Compiled { cubin: vec![0, 10, 255], ptx: "// ptx\n".into(), kernels };
        let written = bytes(&entry).unwrap();
        assert_eq!(parse(&written), Some(entry));
        for i in 0..written.len() {
            let mut damaged = written.clone();
            damaged[i] ^= 4;
            assert_eq!(parse(&damaged), None, "byte {i}");
            assert_eq!(parse(&written[..i]), None, "cut at {i}");
        }
    }
}
