//! A decoded photograph as its file holds it: 8 or 16 bits a channel, a quarter or half of the memory of [`Image`].
//!
//! Sources keep photographs in this form and cut float crops out of it. An EXIF orientation is applied on load.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use crate::data::Image;
use crate::{Error, Result};

/// The most pixels of a photograph, 2²⁸: 16384×16384, three bytes each in memory, six where the file has 16 bits.
pub const MAX_PIXELS: u64 = 1 << 28;

/// More pixels than a byte of any file can hold: deflate turns one byte into 1032, at one bit a pixel in a PNG. JPEG, one
/// bit at least for each block of 64 pixels, stays below.
const PIXELS_PER_BYTE: u64 = 8 * 1032;

/// Interleaved RGB, row by row: `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pixels {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

/// What a file says of its picture, before its pixels are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rows, after the EXIF orientation.
    pub height: usize,
    /// Columns, after the EXIF orientation.
    pub width: usize,
    /// Bytes of memory that the [`Photo`] takes.
    pub bytes: usize,
}

/// A photograph in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    height: usize,
    width: usize,
    pixels: Pixels,
}

impl Photo {
    /// Decodes a PNG, JPEG or WebP file of any colour type: grey is repeated into RGB, alpha is dropped (not blended),
    /// 16-bit files keep their 16 bits. The format is told from the content, not from the name.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::decode(&bytes).map_err(|why| Error::format(path, why))
    }

    /// What the header of a file says, which is read without its pixels, and whether the file reaches its end. A file that
    /// passes can be damaged in its middle.
    pub fn probe(path: impl AsRef<Path>) -> Result<Header> {
        let path = path.as_ref();
        let probe = |file: File| -> std::io::Result<Result<Header, String>> {
            let mut file = BufReader::new(file);
            let size = file.seek(SeekFrom::End(0))?;
            let complete = is_complete(&mut file, size)?;
            file.rewind()?;
            Ok(header(file, size, complete).map(|(_, header)| header))
        };
        let outcome = File::open(path).and_then(probe).map_err(Error::io(path))?;
        outcome.map_err(|why| Error::format(path, why))
    }

    /// [`Photo::load`] of a file's bytes. Nothing is allocated for an image of more than [`MAX_PIXELS`], or of more than
    /// so many bytes can hold; `Err` says what is wrong with them, and what to do.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (mut decoder, _) = header(Cursor::new(bytes), bytes.len() as u64, is_whole(bytes))?;
        let decode = || -> ::image::ImageResult<DynamicImage> {
            let orientation = decoder.orientation()?;
            let mut image = DynamicImage::from_decoder(decoder)?;
            image.apply_orientation(orientation);
            Ok(image)
        };
        let image = decode().map_err(|e| wrong(&e.to_string()))?;
        let (height, width) = (image.height() as usize, image.width() as usize);
        let pixels = if is_deep(image.color()) {
            Pixels::Sixteen(image.into_rgb16().into_raw())
        } else {
            Pixels::Eight(image.into_rgb8().into_raw())
        };
        Ok(Self { height, width, pixels })
    }

    /// `image` rounded to 8 bits (clamped, half to even).
    pub fn from_image(image: &Image) -> Self {
        Self { height: image.height, width: image.width, pixels: Pixels::Eight(image.to_rgb8()) }
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        match &self.pixels {
            Pixels::Eight(p) => p.len(),
            Pixels::Sixteen(p) => 2 * p.len(),
        }
    }

    /// The window of `h`×`w` pixels whose top left corner is at row `y`, column `x`, in [0, 1].
    pub fn crop(&self, y: usize, x: usize, h: usize, w: usize) -> Result<Image> {
        check_window("Photo::crop", (self.height, self.width), (y, x), (h, w))?;
        let mut out = Image::zeros(h, w);
        let (plane, stride) = (h * w, self.width);
        for row in 0..h {
            let from = 3 * ((y + row) * stride + x);
            for col in 0..w {
                for c in 0..3 {
                    let i = from + 3 * col + c;
                    out.data[c * plane + row * w + col] = match &self.pixels {
                        Pixels::Eight(p) => f32::from(p[i]) / 255.0,
                        Pixels::Sixteen(p) => f32::from(p[i]) / 65535.0,
                    };
                }
            }
        }
        Ok(out)
    }

    /// The whole photograph in [0, 1].
    pub fn image(&self) -> Image {
        self.crop(0, 0, self.height, self.width).expect("the whole photograph is a window of itself")
    }
}

pub(super) fn wrong(why: &str) -> String {
    format!("cannot decode this image: {why}; remove it or save it again")
}

fn is_deep(color: ColorType) -> bool {
    color.bytes_per_pixel() / color.channel_count() > 1
}

/// The decoder of a file of `size` bytes, and what its header says; refuses what no such file can hold.
pub(super) fn header<'r>(
    file: impl BufRead + Seek + 'r,
    size: u64,
    complete: bool,
) -> Result<(impl ImageDecoder + 'r, Header), String> {
    let reader = ImageReader::new(file).with_guessed_format().map_err(|e| wrong(&e.to_string()))?;
    match reader.format() {
        Some(ImageFormat::Jpeg) if !complete => return Err(wrong("the JPEG data ends too early")),
        Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP) => {}
        _ => return Err(wrong("it is neither a PNG, nor a JPEG, nor a WebP file")),
    }
    if reader.format() == Some(ImageFormat::WebP) && !complete {
        return Err(wrong("the WebP data end too early"));
    }
    let png = reader.format() == Some(ImageFormat::Png);
    let mut decoder = reader.into_decoder().map_err(|e| wrong(&e.to_string()))?;
    if png && !complete {
        return Err(wrong("unexpected end of file"));
    }
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(format!(
            "{width}×{height} pixels, at most {MAX_PIXELS} are read; scale it down or cut it up"
        ));
    }
    let most = size.saturating_mul(PIXELS_PER_BYTE);
    if pixels > most {
        return Err(wrong(&format!(
            "it says it has {width}×{height} pixels, and {size} bytes hold {most} at most"
        )));
    }
    if pixels == 0 {
        return Err(wrong(&format!("{width}×{height} pixels")));
    }
    let turned = decoder.orientation().map_err(|e| wrong(&e.to_string()))?;
    let turned = matches!(
        turned,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    let (height, width) = if turned { (width, height) } else { (height, width) };
    let bytes = 3 * pixels as usize * if is_deep(decoder.color_type()) { 2 } else { 1 };
    Ok((decoder, Header { height: height as usize, width: width as usize, bytes }))
}

/// How a JPEG file begins.
const JPEG: [u8; 2] = [0xff, 0xd8];
/// Bytes at a file's end in which its end marker is looked for first.
const TAIL: u64 = 32;

/// Whether a file's bytes are all there, where its decoder would not see that they are not.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    match bytes {
        [0xff, 0xd8, ..] => jpeg_is_complete(bytes),
        [b'R', b'I', b'F', b'F', ..] => {
            webp_is_complete(&mut Cursor::new(bytes), bytes.len() as u64).unwrap_or(false)
        }
        _ => true,
    }
}

/// Whether every chunk of a WebP file lies inside it: the decoder believes what a chunk says of its size, up to 4 GiB.
fn webp_is_complete(file: &mut (impl Read + Seek), size: u64) -> std::io::Result<bool> {
    let mut at = 12;
    while at < size {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        if size - at < 8 {
            break; // padding
        }
        file.read_exact(&mut head)?;
        let length = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        at += 8 + length;
        if at > size {
            return Ok(false);
        }
        at += length % 2;
    }
    Ok(true)
}

/// Whether a PNG, JPEG or WebP file of `size` bytes reaches its end; others are believed to. Decoders fill what is missing of
/// a JPEG with grey, which must not be trained on. Reads the end of a file alone, unless something follows the marker.
fn is_complete(file: &mut (impl Read + Seek), size: u64) -> std::io::Result<bool> {
    let mut start = [0; 2];
    file.rewind()?;
    if size < 2 || file.read_exact(&mut start).is_err() {
        return Ok(false);
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    file.read_to_end(&mut tail)?;
    let whole = |file: &mut dyn ReadSeek| -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match start {
        JPEG if tail.ends_with(&[0xff, 0xd9]) => Ok(true),
        JPEG => Ok(jpeg_is_complete(&whole(file)?)),
        [0x89, b'P'] if tail.windows(4).any(|w| w == b"IEND") => Ok(true),
        [0x89, b'P'] => Ok(whole(file)?.windows(4).any(|w| w == b"IEND")),
        [b'R', b'I'] => webp_is_complete(file, size),
        _ => Ok(true),
    }
}

trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// Whether JPEG data reach their end marker.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2; // after the start marker
    while let Some(&[mark, kind]) = bytes.get(at..at + 2) {
        // stuffed zeros, restart markers and fill bytes belong to the scan, which this loop walks byte by byte
        if mark != 0xff || matches!(kind, 0x00 | 0x01 | 0xd0..=0xd8 | 0xff) {
            at += 1;
        } else if kind == 0xd9 {
            return true;
        } else {
            let Some(&[hi, lo]) = bytes.get(at + 2..at + 4) else { return false };
            at += 2 + usize::from(u16::from_be_bytes([hi, lo]));
        }
    }
    false
}

/// Refuses a window that is empty or leaves the image.
pub(crate) fn check_window(
    op: &'static str,
    (height, width): (usize, usize),
    (y, x): (usize, usize),
    (h, w): (usize, usize),
) -> Result<()> {
    let fits = |at: usize, n: usize, side: usize| n > 0 && at.checked_add(n).is_some_and(|end| end <= side);
    if fits(y, h, height) && fits(x, w, width) {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!(
            "a window of {h}×{w} (rows × columns) at row {y}, column {x} does not lie inside {height}×{width}"
        ),
    ))
}
