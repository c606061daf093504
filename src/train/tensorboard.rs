//! TensorBoard's event files: a run's curves and pictures for those who look at many runs at once.
//!
//! A file is a sequence of records, `length u64 · masked CRC-32C of it · bytes · masked CRC-32C of them`, all
//! little-endian; the bytes are one `tensorflow.Event` in protobuf's encoding, of which only what scalars and pictures
//! need is written here. Scalars are f32: that is all the format's plain scalars hold.

use super::read::{Record, each_record, picture};
use crate::files::replace;
use crate::{Error, Result};
use crc::{CRC_32_ISCSI, Crc};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Where [`export`] writes, below the run's folder. TensorBoard knows event files by the word `tfevents` in the name.
pub const FILE: &str = "tensorboard/events.out.tfevents.0.asasr";
/// Where the events of a running session go, until its end or the next session puts them into [`FILE`].
const LIVE: &str = "tensorboard/events.out.tfevents.1.asasr";

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The events of a running session, to be watched while it goes on.
pub struct EventFile {
    run: PathBuf,
    out: BufWriter<File>,
}

impl EventFile {
    /// Begins the events of a session of `run`, after those of its logs so far.
    pub fn begin(run: &Path) -> Result<Self> {
        export(run)?;
        let path = run.join(LIVE);
        let begin = || -> io::Result<BufWriter<File>> {
            let mut out = BufWriter::new(File::create(&path)?);
            write_version(&mut out, 0.0)?;
            out.flush()?;
            Ok(out)
        };
        Ok(Self { run: run.to_owned(), out: begin().map_err(Error::io(&path))? })
    }

    /// Adds a line of `log.jsonl`, or of `validation.jsonl`; it is in the file when the call returns.
    pub fn add(&mut self, record: &Record, validation: bool) -> Result<()> {
        let prefix = if validation { VALIDATION } else { "" };
        let written = convert_record(&self.run, record, prefix, &mut self.out);
        written.and_then(|()| self.out.flush()).map_err(Error::io(self.run.join(LIVE)))
    }
}

/// What tags of `validation.jsonl` begin with.
const VALIDATION: &str = "validation/";

/// Builds the file for a whole run from its `log.jsonl` and `validation.jsonl`, complete or not at all: what is in the
/// logs is in the events. Tags are `<stage>/<field>`, `validation/<stage>/<field>` and `validation/<stage>/picture`;
/// values that are not finite, and pictures that are not there, are left out.
pub fn export(run: &Path) -> Result<()> {
    let to = run.join(FILE);
    if !run.join("log.jsonl").is_file() {
        return Err(Error::Usage(format!("{} is not a run: it has no log.jsonl", run.display())));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut outcome = Ok(());
    replace(&to, |out| {
        write_version(out, 0.0)?;
        for (log, prefix) in [("log.jsonl", ""), ("validation.jsonl", VALIDATION)] {
            let path = run.join(log);
            if path.is_file() {
                outcome = convert(run, &path, prefix, out);
            }
            // The reason is kept aside, whole; this only keeps the file from being put in place.
            if outcome.is_err() {
                return Err(io::Error::other("not converted"));
            }
        }
        Ok(())
    })
    .map_err(|failed| outcome.err().unwrap_or(failed))?;
    let live = run.join(LIVE);
    if live.exists() {
        std::fs::remove_file(&live).map_err(Error::io(&live))?;
    }
    Ok(())
}

/// Writes an event per record of the log at `path`.
fn convert(run: &Path, path: &Path, prefix: &str, out: &mut dyn Write) -> Result<()> {
    let mut written = Ok(());
    each_record(path, |record| {
        if written.is_ok() {
            written = convert_record(run, record, prefix, out);
        }
    })?;
    written.map_err(Error::io(run.join(FILE)))
}

fn convert_record(run: &Path, record: &Record, prefix: &str, out: &mut dyn Write) -> io::Result<()> {
    let text = |key: &str| record.get(key).and_then(|v| v.as_str());
    let (Some(stage), Some(step)) = (text("stage"), record.get("step").and_then(|v| v.as_u64())) else {
        return Ok(());
    };
    let time = record.get("time").and_then(|v| v.as_f64()).unwrap_or(0.0);
    let fields = record.iter().filter(|(key, _)| !matches!(key.as_str(), "step" | "time"));
    let mut values: Vec<Vec<u8>> = fields
        .filter_map(|(key, value)| Some(scalar(&format!("{prefix}{stage}/{key}"), value.as_f64()?)))
        .collect();
    if let Some((png, size)) = text("picture").and_then(|name| picture(run, name)) {
        values.push(image(&format!("{prefix}{stage}/picture"), &png, size));
    }
    write_summary(out, time, step, &values)
}

/// `Event { wall_time, file_version }`.
fn write_version(out: &mut dyn Write, wall_time: f64) -> io::Result<()> {
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    bytes(&mut event, 3, b"brain.Event:2");
    write_record(out, &event)
}

/// `Event { wall_time, step, summary { value… } }`.
fn write_summary(out: &mut dyn Write, wall_time: f64, step: u64, values: &[Vec<u8>]) -> io::Result<()> {
    let mut summary = Vec::new();
    values.iter().for_each(|value| bytes(&mut summary, 1, value));
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    integer(&mut event, 2, step);
    bytes(&mut event, 5, &summary);
    write_record(out, &event)
}

/// `Summary.Value { tag, simple_value }`.
fn scalar(tag: &str, value: f64) -> Vec<u8> {
    let mut to = Vec::new();
    bytes(&mut to, 1, tag.as_bytes());
    key(&mut to, 2, 5);
    to.extend((value as f32).to_le_bytes());
    to
}

/// `Summary.Value { tag, image { height, width, colorspace: RGB, encoded_image_string } }`.
fn image(tag: &str, png: &[u8], (h, w): (u32, u32)) -> Vec<u8> {
    let mut image = Vec::new();
    integer(&mut image, 1, u64::from(h));
    integer(&mut image, 2, u64::from(w));
    integer(&mut image, 3, 3);
    bytes(&mut image, 4, png);
    let mut to = Vec::new();
    bytes(&mut to, 1, tag.as_bytes());
    bytes(&mut to, 4, &image);
    to
}

fn write_record(out: &mut dyn Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked(&length).to_le_bytes())?;
    out.write_all(data)?;
    out.write_all(&masked(data).to_le_bytes())
}

/// The checksum as the format wants it: turned and shifted, so that a checksum of checksums says something.
fn masked(data: &[u8]) -> u32 {
    CRC32C.checksum(data).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// A protobuf field's number and wire type (0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes).
fn key(to: &mut Vec<u8>, field: u64, wire: u64) {
    varint(to, field << 3 | wire);
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn integer(to: &mut Vec<u8>, field: u64, value: u64) {
    key(to, field, 0);
    varint(to, value);
}

fn double(to: &mut Vec<u8>, field: u64, value: f64) {
    key(to, field, 1);
    to.extend(value.to_le_bytes());
}

fn bytes(to: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(to, field, 2);
    varint(to, value.len() as u64);
    to.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_published_ones() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xE306_9283);
        // RFC 3720, B.4
        assert_eq!(CRC32C.checksum(&[0; 32]), 0x8A91_36AA);
        assert_eq!(CRC32C.checksum(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(masked(b"123456789"), 0xC78A_B0E5);
    }

    /// Fields of a protobuf message: number and bytes (varints as eight).
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(data: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = data[0];
                *data = &data[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let n = match key & 7 {
                0 => {
                    found.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                5 => 4,
                _ => varint(&mut data) as usize,
            };
            found.push((key >> 3, data[..n].to_vec()));
            data = &data[n..];
        }
        found
    }

    /// Step, and tags with the value's or the picture's bytes.
    type Event = (u64, Vec<(String, Vec<u8>)>);

    /// The events of a file; checks every frame.
    fn events(path: &Path) -> Vec<Event> {
        let file = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&file[..], Vec::new());
        let word = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().unwrap());
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(word(&rest[8..]), masked(&rest[..8]));
            let data = &rest[12..12 + n];
            assert_eq!(word(&rest[12 + n..]), masked(data));
            rest = &rest[16 + n..];
            let mut event: Event = (0, Vec::new());
            for (field, value) in fields(data) {
                match field {
                    1 => assert_eq!(value.len(), 8),
                    2 => event.0 = u64::from_le_bytes(value.try_into().unwrap()),
                    3 => assert_eq!((value.as_slice(), events.len()), (&b"brain.Event:2"[..], 0)),
                    5 => {
                        for (_, v) in fields(&value) {
                            let v = fields(&v);
                            event.1.push((String::from_utf8(v[0].1.clone()).unwrap(), v[1].1.clone()));
                        }
                    }
                    _ => panic!("field {field}"),
                }
            }
            events.push(event);
        }
        events
    }

    /// Live and exported, the same lines give the same events.
    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        crate::data::Image::zeros(3, 5).save_png(run.join("p.png")).unwrap();
        let png = std::fs::read(run.join("p.png")).unwrap();
        std::fs::write(run.join("log.jsonl"), "").unwrap();
        let mut live = EventFile::begin(run).unwrap();
        let line = r#"{"stage":"a","step":300,"loss":0.1,"lr":-2.0,"time":1e9}"#;
        let look = r#"{"stage":"a","step":301,"picture":"p.png"}"#;
        live.add(&serde_json::from_str(line).unwrap(), false).unwrap();
        live.add(&serde_json::from_str(look).unwrap(), true).unwrap();
        let read = events(&run.join(LIVE));
        assert_eq!((read.len(), read[1].0, read[2].0), (3, 300, 301));
        assert_eq!(read[1].1[0], ("a/loss".into(), 0.1f32.to_le_bytes().to_vec()));
        assert_eq!(read[1].1[1], ("a/lr".into(), (-2f32).to_le_bytes().to_vec()));
        let picture = fields(&read[2].1[0].1);
        assert_eq!(picture.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!((picture[0].1[0], picture[1].1[0], &picture[3].1), (3, 5, &png));
        std::fs::write(run.join("log.jsonl"), format!("{line}\n")).unwrap();
        std::fs::write(run.join("validation.jsonl"), format!("{look}\n")).unwrap();
        export(run).unwrap();
        assert_eq!(events(&run.join(FILE)), read);
        assert!(!run.join(LIVE).exists(), "it is all in the one file");
    }

    #[test]
    fn a_run_is_exported_as_logged() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        assert_eq!(export(run).unwrap_err().exit_code(), 2);
        crate::data::Image::zeros(3, 5).save_png(run.join("p.png")).unwrap();
        let log = "{\"stage\":\"sft\",\"step\":4,\"loss\":0.5,\"grad_norm\":null,\"time\":7.5,\"warnings\":[\"w\"]}\n\
                   {\"step\":5}\n{\"stage\":\"sft\",\"step\":5,\"loss\":0.25,\"ti";
        std::fs::write(run.join("log.jsonl"), log).unwrap();
        export(run).unwrap();
        let loss = |v: f32| ("sft/loss".to_owned(), v.to_le_bytes().to_vec());
        assert_eq!(events(&run.join(FILE))[1..], [(4, vec![loss(0.5)])]);
        let validation = "{\"stage\":\"sft\",\"step\":4,\"psnr_y\":20.5,\"picture\":\"p.png\"}\n\
                          {\"stage\":\"sft\",\"step\":8,\"picture\":\"gone.png\"}\n";
        std::fs::write(run.join("validation.jsonl"), validation).unwrap();
        export(run).unwrap();
        let read = events(&run.join(FILE));
        let tags: Vec<Vec<&str>> = read.iter().map(|e| e.1.iter().map(|v| v.0.as_str()).collect()).collect();
        let shown = ["validation/sft/psnr_y", "validation/sft/picture"];
        assert_eq!(tags, [&[][..], &["sft/loss"], &shown, &[]]);
    }
}
