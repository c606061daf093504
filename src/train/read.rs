//! Reading a run's line-by-line logs back, also those of a run that was killed while it wrote.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// One line of a log.
pub type Record = Map<String, Value>;

/// Calls `visit` with each line of the log at `path`, in order, and returns the numbers (from 1) of lines that are not
/// JSON objects. A last line without an end is one a kill has torn: it is passed over.
pub fn each_record(path: &Path, mut visit: impl FnMut(&Record)) -> Result<Vec<usize>> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let (mut line, mut damaged) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        file.read_until(b'\n', &mut line).map_err(Error::io(path))?;
        if line.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(record) => visit(&record),
            Err(_) => damaged.push(number),
        }
    }
    Ok(damaged)
}

/// Height and width of a PNG file, if that is what `bytes` are.
pub fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")?;
    let side = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some((side(4)?, side(0)?))
}

/// The bytes and the size of the picture that a log in the folder `run` calls `name`; `None` where there is no such PNG
/// below that folder. Logs are not trusted: a name that leads out of the folder is no picture.
pub fn picture(run: &Path, name: &str) -> Option<(Vec<u8>, (u32, u32))> {
    let inside = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if !inside {
        return None;
    }
    let bytes = std::fs::read(run.join(name)).ok()?;
    let size = png_size(&bytes)?;
    Some((bytes, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_lines_are_named_and_a_torn_one_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        std::fs::write(&path, b"{\"step\":0}\n\xff{}\n{\"step\":1}\n[1]\n{\"step\":2}").unwrap();
        let mut steps = Vec::new();
        let damaged = each_record(&path, |r| steps.push(r["step"].as_u64())).unwrap();
        assert_eq!((steps, damaged), (vec![Some(0), Some(1)], vec![2, 4]));
        assert!(each_record(&dir.path().join("none"), |_| ()).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn only_pictures_of_the_run_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let image = crate::data::Image::zeros(3, 5);
        for at in [dir.path(), &run] {
            image.save_png(at.join("p.png")).unwrap();
        }
        std::fs::write(run.join("x.png"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0").unwrap();
        assert_eq!(picture(&run, "p.png").unwrap().1, (3, 5));
        let outside = dir.path().join("p.png");
        for name in ["none.png", "../p.png", outside.to_str().unwrap(), "x.png", ""] {
            assert!(picture(&run, name).is_none(), "{name}");
        }
    }
}
