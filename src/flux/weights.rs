//! Weight files: safetensors read through a memory map, sharded folders, and writes that are complete or absent.
//!
//! Reading copies a tensor out of the map, so a file may be replaced (not truncated in place) while a run holds it.

use crate::engine::map;
use crate::engine::{DType, Device, Tensor, simd};
use crate::error::did_you_mean;
use crate::files::replace;
use crate::{Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Values that one thread converts or checks at a time.
const PIECE: usize = 1 << 18;
/// Bytes before the header: its length as a little-endian u64.
const PREFIX: usize = 8;
/// The largest header the format allows.
const MAX_HEADER: usize = 100_000_000;

const _: () =
    assert!(cfg!(target_endian = "little"), "safetensors stores little-endian values; so must the machine");

/// One open safetensors file.
pub struct SafeFile {
    path: PathBuf,
    /// The file's bytes, mapped or in memory.
    all: Box<dyn AsRef<[u8]> + Send + Sync>,
    /// Where the tensors' bytes begin.
    start: usize,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl SafeFile {
    /// Opens `path` and validates its whole header: every tensor lies inside the file and fills its shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::io(&path))?;
        let meta = file.metadata().map_err(Error::io(&path))?;
        if meta.is_dir() {
            return Err(Error::format(&path, "is a folder, wanted a .safetensors file"));
        }
        if meta.len() == 0 {
            return Self::from_bytes(path, []); // which cannot be mapped
        }
        let map = map(&file).map_err(Error::io(&path))?;
        Self::from_bytes(path, map)
    }

    /// [`SafeFile::open`] of a file's bytes; errors name it `path`.
    pub fn from_bytes(path: impl AsRef<Path>, all: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let wrong = |detail: String| Error::format(&path, detail);
        let bytes = all.as_ref();
        let (header, start) = header(bytes).map_err(wrong)?;
        let parsed: Metadata = serde_json::from_slice(header).map_err(|e| {
            wrong(format!(
                "not a valid safetensors header ({e}): the file is damaged; fetch or save it again"
            ))
        })?;
        let (have, want) = (bytes.len() - start, parsed.data_len());
        if have != want {
            let what = if have < want { "truncated" } else { "followed by bytes that belong to no tensor" };
            return Err(wrong(format!(
                "{what}: its header describes {want} bytes of tensors, the file holds {have}; fetch or save it again"
            )));
        }
        let tensors = parsed.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path, all: Box::new(all), start, metadata, tensors })
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The free-form strings of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// How a tensor's values are stored, as the format calls it (`BF16`).
    pub fn dtype(&self, name: &str) -> Result<String> {
        Ok(format!("{:?}", self.info(name)?.dtype))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| {
            let hint = did_you_mean(name, self.names());
            Error::format(&self.path, format!("holds no tensor `{name}`{hint}"))
        })
    }

    fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &(*self.all).as_ref()[self.start + info.data_offsets.0..self.start + info.data_offsets.1]
    }

    fn unreadable(&self, name: &str, dtype: Dtype, wanted: &str) -> Error {
        Error::format(&self.path, format!("tensor `{name}` is {dtype:?}, wanted one of {wanted}"))
    }

    /// A tensor as f32: F32 as it is, BF16 and F16 widened, F64 rounded.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let slice = self.slice(name, &[])?;
        Tensor::from_slice(device, &slice.shape, &slice.f32s()?)
    }

    /// A tensor to compute with: [`SafeFile::tensor`], refused unless every value is a finite number.
    pub fn weight(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.slice(name, &[])?.weight(DType::F32, device)
    }

    /// The rows `rows` of a tensor, one range after the other; all of it where there is no range. Nothing is read yet.
    pub(super) fn slice(&self, name: &str, rows: &[Range<usize>]) -> Result<Slice<'_>> {
        let info = self.info(name)?;
        let (mut shape, all) = (info.shape.clone(), self.bytes(info));
        if rows.is_empty() {
            return Ok(Slice {
                file: self,
                name: name.to_owned(),
                dtype: info.dtype,
                shape,
                bytes: all.into(),
            });
        }
        let height = shape.first().copied().unwrap_or(0);
        if rows.iter().any(|r| r.start > r.end || r.end > height) {
            let detail = format!("rows {rows:?} of tensor `{name}` {shape:?} are wanted");
            return Err(Error::format(&self.path, detail));
        }
        let row = all.len().checked_div(height).unwrap_or(0);
        shape[0] = rows.iter().map(Range::len).sum();
        let part = |r: &Range<usize>| &all[r.start * row..r.end * row];
        let bytes = match rows {
            [one] => part(one).into(),
            more => more.iter().map(part).collect::<Vec<_>>().concat().into(),
        };
        Ok(Slice { file: self, name: name.to_owned(), dtype: info.dtype, shape, bytes })
    }

    /// [`SafeFile::weight`], refused unless its shape is `want`.
    pub fn shaped(&self, name: &str, want: &[usize], device: &Device) -> Result<Tensor> {
        let have = self.shape(name)?;
        if have != want {
            let detail = format!("tensor `{name}` has shape {have:?}, wanted {want:?}");
            return Err(Error::format(&self.path, detail));
        }
        self.weight(name, device)
    }

    /// A tensor as it is stored where that is BF16, as f32 otherwise (see [`SafeFile::tensor`]).
    pub fn stored(&self, name: &str, device: &Device) -> Result<Tensor> {
        let slice = self.slice(name, &[])?;
        match slice.dtype {
            Dtype::BF16 => Tensor::bf16_from_f32(device, &slice.shape, &slice.f32s()?),
            _ => Tensor::from_slice(device, &slice.shape, &slice.f32s()?),
        }
    }

    /// Rows of a matrix as f32, in the order asked for: of an embedding those that are used.
    pub fn rows(&self, name: &str, rows: &[usize]) -> Result<Vec<f32>> {
        let shape = self.shape(name)?;
        if shape.len() != 2 {
            let detail = format!("tensor `{name}` has shape {shape:?}, wanted a matrix");
            return Err(Error::format(&self.path, detail));
        }
        if let Some(&i) = rows.iter().find(|&&i| i >= shape[0]) {
            let detail = format!("row {i} of tensor `{name}` is wanted, which has {}", shape[0]);
            return Err(Error::format(&self.path, detail));
        }
        let rows: Vec<_> = rows.iter().map(|&i| i..i + 1).collect();
        Ok(self.slice(name, &rows)?.f32s()?.into_owned())
    }

    /// A tensor's values in f64, whatever they are stored as; for verification. I64 beyond 2⁵³ is rounded.
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        let info = self.info(name)?;
        let bytes = self.bytes(info);
        Ok(match info.dtype {
            Dtype::F64 => each(bytes, f64::from_le_bytes),
            Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
            Dtype::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::I16 => each(bytes, |b| f64::from(i16::from_le_bytes(b))),
            Dtype::U8 => each(bytes, |[b]: [u8; 1]| f64::from(b)),
            Dtype::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            other => return Err(self.unreadable(name, other, "F64, F32, F16, BF16, I64, I32, I16, U8")),
        })
    }
}

/// A stored tensor, or rows of one.
pub(super) struct Slice<'f> {
    file: &'f SafeFile,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'f, [u8]>,
}

impl Slice<'_> {
    /// Bytes in the file.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Refuses what cannot be computed with.
    pub fn expect_readable(&self) -> Result<()> {
        match self.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F64 => Ok(()),
            other => Err(self.file.unreadable(&self.name, other, "F32, BF16, F16, F64")),
        }
    }

    fn f32s(&self) -> Result<Cow<'_, [f32]>> {
        self.expect_readable()?;
        let bytes = &*self.bytes;
        Ok(Cow::Owned(match self.dtype {
            Dtype::F32 => match bytemuck::try_cast_slice(bytes) {
                Ok(aligned) => return Ok(Cow::Borrowed(aligned)),
                Err(_) => each(bytes, f32::from_le_bytes),
            },
            Dtype::BF16 => widened::<bf16>(bytes),
            Dtype::F16 => widened::<f16>(bytes),
            _ => each(bytes, |b| f64::from_le_bytes(b) as f32),
        }))
    }

    /// As a tensor of `dtype`, refused unless every value is a finite number there. On the host no more than this one
    /// tensor is held, and nothing of one that is stored as it is wanted.
    pub fn weight(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        if device.is_meta() {
            self.expect_readable()?;
            return Tensor::empty_as(device, &self.shape, dtype);
        }
        match dtype {
            DType::F32 => {
                let values = self.f32s()?;
                let bad = values.par_chunks(PIECE).enumerate().find_map_first(|(i, piece)| {
                    let at = simd::first_non_finite(piece)?;
                    Some((i * PIECE + at, piece[at]))
                });
                self.expect_finite(bad)?;
                Tensor::from_slice(device, &self.shape, &values)
            }
            DType::Bf16 => {
                let halves = self.bf16s()?;
                let bad = halves.par_chunks(PIECE).enumerate().find_map_first(|(i, piece)| {
                    let wrong = piece.iter().fold(false, |bad, v| bad | !v.is_finite());
                    let at = if wrong { piece.iter().position(|v| !v.is_finite())? } else { return None };
                    Some((i * PIECE + at, piece[at].to_f32()))
                });
                self.expect_finite(bad)?;
                Tensor::from_bf16(device, &self.shape, &halves)
            }
        }
    }

    fn bf16s(&self) -> Result<Cow<'_, [bf16]>> {
        if self.dtype == Dtype::BF16
            && let Ok(aligned) = bytemuck::try_cast_slice(&self.bytes)
        {
            return Ok(Cow::Borrowed(aligned));
        }
        let values = self.f32s()?;
        let mut halves = vec![bf16::ZERO; values.len()];
        let pieces = halves.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
        pieces.for_each(|(to, from)| to.convert_from_f32_slice(from));
        Ok(Cow::Owned(halves))
    }

    fn expect_finite(&self, bad: Option<(usize, f32)>) -> Result<()> {
        let Some((i, value)) = bad else { return Ok(()) };
        let (name, shape) = (&self.name, &self.shape);
        Err(Error::format(
            &self.file.path,
            format!(
                "tensor `{name}` {shape:?} holds {value} at index {:?}, wanted finite numbers: the training that wrote \
                 it went astray, or the file is damaged; use an earlier one",
                index(shape, i)
            ),
        ))
    }
}

/// Values of two bytes as f32.
fn widened<H>(bytes: &[u8]) -> Vec<f32>
where
    H: bytemuck::Pod + Sync,
    [H]: HalfFloatSliceExt,
{
    let mut out = vec![0.0; bytes.len() / 2];
    out.par_chunks_mut(PIECE).zip(bytes.par_chunks(2 * PIECE)).for_each(|(to, from)| {
        match bytemuck::try_cast_slice::<u8, H>(from) {
            Ok(aligned) => aligned.convert_to_f32_slice(to),
            Err(_) => bytemuck::pod_collect_to_vec::<u8, H>(from).convert_to_f32_slice(to),
        }
    });
    out
}

/// Where element `i` of a row-major tensor is.
fn index(shape: &[usize], mut i: usize) -> Vec<usize> {
    let mut at: Vec<usize> = Vec::new();
    for &side in shape.iter().rev() {
        at.push(i % side);
        i /= side;
    }
    at.reverse();
    at
}

/// The header's bytes and where the data begins.
fn header(map: &[u8]) -> Result<(&[u8], usize), String> {
    let (prefix, rest) = map
        .split_first_chunk::<PREFIX>()
        .ok_or_else(|| format!("has {} bytes: truncated, or not a safetensors file", map.len()))?;
    let length = u64::from_le_bytes(*prefix);
    if rest.first() != Some(&b'{') {
        return Err("not a safetensors file: no header begins at byte 8".into());
    }
    match usize::try_from(length) {
        Ok(n) if n <= MAX_HEADER && n <= rest.len() => Ok((&rest[..n], PREFIX + n)),
        Ok(n) if n <= MAX_HEADER => Err(format!(
            "its header is said to take {n} bytes and the file holds {} after byte 8: truncated, or not a safetensors \
             file",
            rest.len()
        )),
        _ => Err(format!(
            "not a safetensors file: a header of {length} bytes, at most {MAX_HEADER} are allowed"
        )),
    }
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| read(b)).collect()
}

/// A diffusers model folder: one `*.safetensors`, or the shards named by a `*.safetensors.index.json`.
pub struct Folder {
    dir: PathBuf,
    files: Vec<SafeFile>,
    /// Tensor name → place in `files`.
    index: BTreeMap<String, usize>,
}

impl From<SafeFile> for Folder {
    /// One file, in the place of a folder that has it alone.
    fn from(file: SafeFile) -> Self {
        let index = file.names().map(|n| (n.to_owned(), 0)).collect();
        Self { dir: file.path().to_path_buf(), files: vec![file], index }
    }
}

/// What we read of an index file.
#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Folder {
    /// Opens the folder `dir`; with an index, every shard and every tensor it promises must be there.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
            names.push(entry.map_err(Error::io(dir))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let ending = |end: &str| names.iter().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
        let (indices, files) = (ending(".safetensors.index.json"), ending(".safetensors"));
        match (indices[..].as_ref(), files[..].as_ref()) {
            ([index], _) => Self::sharded(dir, &dir.join(index)),
            ([], [file]) => Ok(Self { dir: dir.to_path_buf(), ..SafeFile::open(dir.join(file))?.into() }),
            ([], []) => Err(Error::format(dir, "holds no .safetensors file")),
            ([], many) => Err(Error::format(
                dir,
                format!(
                    "holds {} .safetensors files and no .safetensors.index.json; keep one: {many:?}",
                    many.len()
                ),
            )),
            (many, _) => {
                Err(Error::format(dir, format!("holds {} indices, wanted one: {many:?}", many.len())))
            }
        }
    }

    fn sharded(dir: &Path, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let map: ShardIndex = serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("not a shard index: {e}")))?;
        let mut opened = BTreeMap::<&str, usize>::new();
        let mut files: Vec<SafeFile> = Vec::new();
        let mut index = BTreeMap::new();
        for (tensor, shard) in &map.weight_map {
            let place = match opened.get(shard.as_str()) {
                Some(&place) => place,
                None => {
                    files.push(open_shard(dir, path, tensor, shard)?);
                    opened.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[place].contains(tensor) {
                return Err(Error::format(
                    path,
                    format!(
                        "promises tensor `{tensor}` in {shard}, which does not hold it; fetch that shard again"
                    ),
                ));
            }
            index.insert(tensor.clone(), place);
        }
        Ok(Self { dir: dir.to_path_buf(), files, index })
    }

    /// The files its tensors are in.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(SafeFile::path)
    }
    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }
    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        self.file(name)?.shape(name)
    }
    /// A tensor as f32; see [`SafeFile::tensor`].
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.file(name)?.tensor(name, device)
    }
    /// A tensor to compute with; see [`SafeFile::weight`].
    pub fn weight(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.file(name)?.weight(name, device)
    }
    /// Rows of a matrix; see [`SafeFile::rows`].
    pub fn rows(&self, name: &str, rows: &[usize]) -> Result<Vec<f32>> {
        self.file(name)?.rows(name, rows)
    }
    /// A tensor in bf16 where it is stored so; see [`SafeFile::stored`].
    pub fn stored(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.file(name)?.stored(name, device)
    }

    /// The rows `rows` of a tensor; see [`SafeFile::slice`].
    pub(super) fn slice(&self, name: &str, rows: &[Range<usize>]) -> Result<Slice<'_>> {
        self.file(name)?.slice(name, rows)
    }

    /// A hash that tells these weights from others without reading them whole: of every tensor's name, dtype, shape and
    /// first 4 KiB, as no training leaves any matrix as it was.
    pub fn identity(&self) -> String {
        const LOOKED_AT: usize = 4096;
        let mut hash = Sha256::new();
        for (name, &place) in &self.index {
            let file = &self.files[place];
            // The index names what its file holds.
            let Some(info) = file.tensors.get(name) else { continue };
            let bytes = file.bytes(info);
            hash.update(format!("{name} {:?} {:?}\n", info.dtype, info.shape));
            hash.update(&bytes[..bytes.len().min(LOOKED_AT)]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Refuses a folder that lacks one of these tensors or holds it in another shape. Others may be there as well.
    pub fn expect(&self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        for (name, want) in wanted {
            let file = self.file(name)?;
            let have = file.shape(name)?;
            if have != want {
                return Err(Error::format(
                    file.path(),
                    format!("tensor `{name}` has shape {have:?}, the model's config.json wants {want:?}"),
                ));
            }
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<&SafeFile> {
        self.index.get(name).map(|&place| &self.files[place]).ok_or_else(|| {
            let hint = did_you_mean(name, self.names());
            Error::format(
                &self.dir,
                format!("no file of it holds tensor `{name}`{hint}; fetch or save the folder again"),
            )
        })
    }
}

/// A shard beside its index; the index may only name files of its own folder.
fn open_shard(dir: &Path, index: &Path, tensor: &str, shard: &str) -> Result<SafeFile> {
    if Path::new(shard).file_name().is_none_or(|n| n != shard) {
        return Err(Error::format(
            index,
            format!("puts tensor `{tensor}` into \"{shard}\", which is not a plain file name"),
        ));
    }
    let path = dir.join(shard);
    if !path.exists() {
        return Err(Error::format(
            index,
            format!("puts tensor `{tensor}` into {shard}, which is missing; fetch it again"),
        ));
    }
    SafeFile::open(path)
}

/// Writes tensors (f32 or bf16, each in its own dtype) as one safetensors file; complete or absent.
///
/// The bytes depend on the arguments alone, not on their order: names and metadata are sorted.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, String>,
    tensors: &[(String, Tensor)],
) -> Result<()> {
    let path = path.as_ref();
    let mut sorted: Vec<&(String, Tensor)> = tensors.iter().collect();
    // By falling alignment first, as the format's own writer does, so that every tensor stays aligned.
    sorted.sort_by_key(|(name, t)| (std::cmp::Reverse(t.dtype().size()), name.clone()));
    let header = write_header(metadata, &sorted).map_err(|detail| Error::format(path, detail))?;
    replace(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, t) in &sorted {
            let values = t.values().map_err(std::io::Error::other)?;
            match t.dtype() {
                DType::F32 => out.write_all(bytemuck::cast_slice(&values))?,
                DType::Bf16 => {
                    let half: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                    out.write_all(bytemuck::cast_slice(&half))?;
                }
            }
        }
        Ok(())
    })
}

fn write_header(
    metadata: &BTreeMap<String, String>,
    sorted: &[&(String, Tensor)],
) -> Result<Vec<u8>, String> {
    let mut map = serde_json::Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut at = 0;
    for (name, t) in sorted {
        let end = at + t.len() * t.dtype().size();
        let dtype = match t.dtype() {
            DType::F32 => "F32",
            DType::Bf16 => "BF16",
        };
        let info = serde_json::json!({"dtype": dtype, "shape": t.shape(), "data_offsets": [at, end]});
        if name == "__metadata__" || map.insert(name.clone(), info).is_some() {
            return Err(format!("tensor name `{name}` cannot be used twice or for metadata"));
        }
        at = end;
    }
    let mut header = serde_json::to_vec(&map).map_err(|e| e.to_string())?;
    header.resize(header.len().next_multiple_of(PREFIX), b' ');
    if header.len() > MAX_HEADER {
        return Err(format!("a header of {} bytes, at most {MAX_HEADER} are allowed", header.len()));
    }
    Ok(header)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Larger golden files that are not kept in the repository; says so where they are absent.
    pub(crate) fn fixtures(part: &str) -> Option<PathBuf> {
        let path = Path::new("../shared/fixtures").join(part);
        if !path.exists() {
            println!("skipped: {} is not here", path.display());
            return None;
        }
        Some(path)
    }

    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn pair() -> Vec<(String, Tensor)> {
        let d = Device::cpu();
        vec![
            ("b".into(), Tensor::bf16_from_f32(&d, &[3], &[1.0, -2.5, 0.125]).unwrap()),
            ("a".into(), Tensor::from_slice(&d, &[2, 2], &[1.0, 2.0, 3.0, 0.1]).unwrap()),
        ]
    }

    #[test]
    fn written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("x".into(), "ü".into())]);
        let mut tensors = pair();
        write_safetensors(&path, &metadata, &tensors).unwrap();
        let first = std::fs::read(&path).unwrap();
        safetensors::SafeTensors::deserialize(&first).unwrap();
        tensors.reverse();
        write_safetensors(&path, &metadata, &tensors).unwrap();
        assert_eq!(first, std::fs::read(&path).unwrap());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");

        let (file, d) = (SafeFile::open(&path).unwrap(), Device::cpu());
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.shape("a").unwrap(), [2, 2]);
        assert_eq!(file.tensor("a", &d).unwrap().f32(), [1.0, 2.0, 3.0, 0.1]);
        assert_eq!(file.tensor("b", &d).unwrap().f32(), [1.0, -2.5, 0.125]);
        let b = file.stored("b", &d).unwrap();
        assert_eq!((b.dtype(), &*b.to_f32()), (DType::Bf16, &[1.0, -2.5, 0.125][..]));
        assert_eq!(file.stored("a", &d).unwrap().dtype(), DType::F32);
        assert_eq!(file.f64s("a").unwrap()[3], f64::from(0.1f32));
    }

    #[test]
    fn every_dtype_is_read_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let read = |dtype: &str, data: &[u8]| {
            let n = data.len();
            let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{n}]}}}}"#);
            std::fs::write(&path, raw(&header, data)).unwrap();
            SafeFile::open(&path).unwrap()
        };
        let d = Device::cpu();
        let f = read("F64", &1.5f64.to_le_bytes());
        assert_eq!((f.f64s("t").unwrap()[0], f.tensor("t", &d).unwrap().f32()[0]), (1.5, 1.5));
        let f = read("F16", &f16::from_f32(0.75).to_le_bytes());
        assert_eq!((f.f64s("t").unwrap()[0], f.tensor("t", &d).unwrap().f32()[0]), (0.75, 0.75));
        assert_eq!(read("I32", &(-7i32).to_le_bytes()).f64s("t").unwrap(), [-7.0]);
        let f = read("I64", &9i64.to_le_bytes());
        assert_eq!(f.f64s("t").unwrap(), [9.0]);
        assert!(f.tensor("t", &d).unwrap_err().to_string().contains("`t` is I64"));
        assert_eq!(read("I16", &(-300i16).to_le_bytes()).f64s("t").unwrap(), [-300.0]);
        assert_eq!(read("U8", &[200]).f64s("t").unwrap(), [200.0]);
        assert!(read("U16", &[1, 0]).f64s("t").unwrap_err().to_string().contains("U16"));
        assert!(f.shape("tt").unwrap_err().to_string().contains("did you mean `t`"));
    }

    #[test]
    fn damaged_files_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            SafeFile::open(&path).err().expect("damaged").to_string()
        };
        assert!(error(b"").contains("has 0 bytes"));
        assert!(error(b"hello").contains("has 5 bytes"));
        assert!(error(b"a picture, say").contains("not a safetensors"));
        write_safetensors(&path, &BTreeMap::new(), &pair()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            assert!(error(&whole[..cut]).contains("w.safetensors"), "cut at {cut}");
        }
        let e = error(&whole[..whole.len() - 3]);
        assert!(e.contains("22 bytes") && e.contains("19"), "{e}");
        assert!(error(&[&whole[..], &[0]].concat()).contains("belong to no tensor"));
        assert!(error(&whole[..40]).contains("truncated"));
        let mut long = whole.clone();
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(error(&long).contains(&u64::MAX.to_string()));
        for header in [
            r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            r#"{"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#,
            r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551615]}}"#,
            r#"{"t":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"t":4}"#,
            r#"{"t""#,
        ] {
            assert!(error(&raw(header, &[0; 4])).contains("header"), "{header}");
        }
    }

    #[test]
    fn shards() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let open = || Folder::open(dir.path());
        let error = || open().err().expect("incomplete").to_string();
        assert!(error().contains("no .safetensors"));
        let tensors = pair();
        write_safetensors(at("m-1.safetensors"), &BTreeMap::new(), &tensors[..1]).unwrap();
        assert_eq!(open().unwrap().names().collect::<Vec<_>>(), ["b"]);
        write_safetensors(at("m-2.safetensors"), &BTreeMap::new(), &tensors[1..]).unwrap();
        assert!(error().contains("2 .safetensors files and no"));

        let index = |text: &str| std::fs::write(at("m.safetensors.index.json"), text).unwrap();
        index(r#"{"metadata": {}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}}"#);
        let folder = open().unwrap();
        assert_eq!(folder.tensor("a", &Device::cpu()).unwrap().f32()[2], 3.0);
        assert_eq!(folder.stored("b", &Device::cpu()).unwrap().dtype(), DType::Bf16);
        folder.expect(&[("a".into(), vec![2, 2])]).unwrap();
        let e = folder.expect(&[("a".into(), vec![4])]).unwrap_err().to_string();
        assert!(e.contains("[2, 2]") && e.contains("[4]") && e.contains("m-2"), "{e}");
        assert!(folder.shape("c").unwrap_err().to_string().contains("`c`"));

        index(r#"{"weight_map": {"a": "m-1.safetensors"}}"#);
        assert!(error().contains("promises tensor `a` in m-1.safetensors"));
        index(r#"{"weight_map": {"a": "m-3.safetensors"}}"#);
        assert!(error().contains("puts tensor `a` into m-3.safetensors, which is missing"));
        index(r#"{"weight_map": {"a": "../m-1.safetensors"}}"#);
        assert!(error().contains("plain file name"));
        index("[]");
        assert!(error().contains("shard index"));
    }

    #[test]
    fn two_tensors_of_one_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let twice = [pair().remove(0), pair().remove(0)];
        assert!(write_safetensors(&path, &BTreeMap::new(), &twice).unwrap_err().to_string().contains("`b`"));
    }
}
