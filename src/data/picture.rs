//! A picture with what its file holds beside colours: transparency, grey or colour, 8 or 16 bits, ICC profile, EXIF. What
//! the upscaler reads and writes; training reads [`Photo`](crate::data::Photo).
//!
//! ```text
//! png    8 or 16 bits, grey or RGB, with or without alpha; the note is an iTXt chunk
//! jpg    8 bits, grey or RGB, chroma halved on both sides; the note is a comment
//! webp   8 bits, RGB, with or without alpha, lossless; the note is the description in an XMP packet
//! ```

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, guess_format};
use image_webp::{WebPDecoder, WebPEncoder};
use jpeg_encoder::SamplingFactor;

use crate::data::Image;
use crate::data::photo::{header, is_whole, wrong};

/// What a note is filed under.
const KEY: &str = "asasr-engine";
/// What stands around a note in an XMP packet.
const XMP: [&str; 2] = [
    "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"><rdf:Description \
     rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\"><dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">",
    "</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>",
];

/// The kinds of file that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP, lossless when written.
    WebP,
}

impl Format {
    /// Every kind and the ending of its files' names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("png", Self::Png), ("jpg", Self::Jpeg), ("webp", Self::WebP)];

    /// The kind that the ending of a file's name speaks of.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_string_lossy().to_ascii_lowercase();
        let ending = if ending == "jpeg" { "jpg" } else { &*ending };
        Self::NAMES.iter().find(|(name, _)| *name == ending).map(|&(_, format)| format)
    }

    /// The usual ending of such a file's name.
    pub fn ending(self) -> &'static str {
        Self::NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// A decoded picture file.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The colours, upright; a grey picture's three planes are equal.
    pub color: Image,
    /// One value for each pixel, 0 where nothing is seen of it; colours are not multiplied by it. `None`: opaque.
    pub alpha: Option<Vec<f32>>,
    /// The file has no colours.
    pub grey: bool,
    /// The file has 16 bits a channel.
    pub deep: bool,
    icc: Option<Vec<u8>>,
    exif: Option<Vec<u8>>,
}

impl Picture {
    /// Decodes a PNG, JPEG or WebP file; [`Photo::decode`](crate::data::Photo::decode) says what is refused. An EXIF
    /// orientation is applied, and then reset.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (mut decoder, _) = header(Cursor::new(bytes), bytes.len() as u64, is_whole(bytes))?;
        let refused = |e: ::image::ImageError| wrong(&e.to_string());
        let icc = decoder.icc_profile().ok().flatten();
        let mut exif = decoder.exif_metadata().ok().flatten();
        let orientation = decoder.orientation().map_err(refused)?;
        // A chunk without an orientation stays as it is.
        let _ = exif.as_mut().and_then(|chunk| Orientation::remove_from_exif_chunk(chunk));
        let mut image = DynamicImage::from_decoder(decoder).map_err(refused)?;
        image.apply_orientation(orientation);
        let (h, w) = (image.height() as usize, image.width() as usize);
        let (grey, deep) =
            (!image.color().has_color(), image.color().bytes_per_pixel() > image.color().channel_count());
        let channels = usize::from(image.color().channel_count());
        let mut planes = match &image {
            DynamicImage::ImageLuma8(p) => planes(p, channels, 255.0),
            DynamicImage::ImageLumaA8(p) => planes(p, channels, 255.0),
            DynamicImage::ImageRgb8(p) => planes(p, channels, 255.0),
            DynamicImage::ImageRgba8(p) => planes(p, channels, 255.0),
            DynamicImage::ImageLuma16(p) => planes(p, channels, 65535.0),
            DynamicImage::ImageLumaA16(p) => planes(p, channels, 65535.0),
            DynamicImage::ImageRgb16(p) => planes(p, channels, 65535.0),
            DynamicImage::ImageRgba16(p) => planes(p, channels, 65535.0),
            other => return Err(wrong(&format!("its pixels are {:?}", other.color()))),
        };
        let alpha = if channels.is_multiple_of(2) { planes.pop() } else { None };
        let data = if grey { planes[0].repeat(3) } else { planes.concat() };
        // A profile for other colours than those decoded (a CMYK JPEG's) would only mislead.
        let space: &[u8] = if grey { b"GRAY" } else { b"RGB " };
        let icc = icc.filter(|profile| profile.get(16..20) == Some(space));
        Ok(Self {
            color: Image { height: h, width: w, data },
            alpha: alpha.filter(|a| a.iter().any(|&v| v < 1.0)),
            grey,
            deep,
            icc,
            exif,
        })
    }

    /// The colours, those of pixels that are not seen at all replaced by what is around them: they must not show at the
    /// edges of what is seen once the picture is enlarged.
    pub fn filled(&self) -> Cow<'_, Image> {
        match &self.alpha {
            Some(alpha) if alpha.contains(&0.0) => Cow::Owned(fill(&self.color, alpha)),
            _ => Cow::Borrowed(&self.color),
        }
    }

    /// Another picture of the same kind: grey if this one is, with as many bits, this one's profile and EXIF.
    pub fn replaced(&self, mut color: Image, alpha: Option<Vec<f32>>) -> Self {
        if self.grey {
            let n = color.height * color.width;
            for i in 0..n {
                let luma = 0.299 * color.data[i] + 0.587 * color.data[n + i] + 0.114 * color.data[2 * n + i];
                [i, n + i, 2 * n + i].into_iter().for_each(|at| color.data[at] = luma);
            }
        }
        Self {
            color,
            alpha,
            grey: self.grey,
            deep: self.deep,
            icc: self.icc.clone(),
            exif: self.exif.clone(),
        }
    }

    /// The bytes of a file that also holds `note`, ASCII without a line's end; `quality` (1 to 100) is a JPEG's. Values are
    /// rounded half to even. `Err` says what such a file cannot hold.
    pub fn encode(&self, format: Format, quality: u8, note: &str) -> Result<Vec<u8>, String> {
        let (h, w) = (self.color.height, self.color.width);
        let most = if format == Format::Png {
            i32::MAX as usize
        } else if format == Format::Jpeg {
            65535
        } else {
            16384
        };
        if h.max(w) > most {
            return Err(format!(
                "{w}×{h} pixels, a {} file has at most {most} on a side; choose another format",
                format.ending()
            ));
        }
        match format {
            Format::Png => self.png(note).map_err(|e| e.to_string()),
            Format::WebP => self.webp(note).map_err(|e| e.to_string()),
            Format::Jpeg if self.alpha.is_some() => {
                Err("has transparency, which a jpg file cannot hold; choose png or webp".to_owned())
            }
            Format::Jpeg => self.jpeg(quality, note).map_err(|e| e.to_string()),
        }
    }

    /// Levels of 0 to `full`, interleaved.
    fn levels(&self, grey: bool, full: f32) -> impl Iterator<Item = f32> {
        let n = self.color.height * self.color.width;
        let colors = if grey { 1 } else { 3 };
        let planes: Vec<&[f32]> =
            (0..colors).map(|c| self.color.plane(c)).chain(self.alpha.as_deref()).collect();
        (0..n * planes.len()).map(move |i| {
            let v = planes[i % planes.len()][i / planes.len()];
            (v * full).round_ties_even().clamp(0.0, full)
        })
    }

    fn png(&self, note: &str) -> Result<Vec<u8>, png::EncodingError> {
        let mut info = png::Info::with_size(self.color.width as u32, self.color.height as u32);
        info.color_type = match (self.grey, self.alpha.is_some()) {
            (true, false) => png::ColorType::Grayscale,
            (true, true) => png::ColorType::GrayscaleAlpha,
            (false, false) => png::ColorType::Rgb,
            (false, true) => png::ColorType::Rgba,
        };
        info.bit_depth = if self.deep { png::BitDepth::Sixteen } else { png::BitDepth::Eight };
        info.icc_profile = self.icc.as_deref().map(Cow::Borrowed);
        info.exif_metadata = self.exif.as_deref().map(Cow::Borrowed);
        let mut out = Vec::new();
        let mut encoder = png::Encoder::with_info(&mut out, info)?;
        encoder.add_itxt_chunk(KEY.to_owned(), note.to_owned())?;
        let data: Vec<u8> = if self.deep {
            self.levels(self.grey, 65535.0).flat_map(|v| (v as u16).to_be_bytes()).collect()
        } else {
            self.levels(self.grey, 255.0).map(|v| v as u8).collect()
        };
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&data)?;
        writer.finish()?;
        Ok(out)
    }

    fn jpeg(&self, quality: u8, note: &str) -> Result<Vec<u8>, jpeg_encoder::EncodingError> {
        let mut out = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut out, quality);
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        if let Some(icc) = &self.icc {
            encoder.add_icc_profile(icc)?;
        }
        if let Some(exif) = &self.exif {
            encoder.add_exif_metadata(exif)?;
        }
        let kind = if self.grey { jpeg_encoder::ColorType::Luma } else { jpeg_encoder::ColorType::Rgb };
        let data: Vec<u8> = self.levels(self.grey, 255.0).map(|v| v as u8).collect();
        encoder.encode(&data, self.color.width as u16, self.color.height as u16, kind)?;
        // The comment stands behind the first segment, JFIF's, which has to be the first.
        let at = 4 + usize::from(u16::from_be_bytes([out[4], out[5]]));
        let length = ((note.len() + 2) as u16).to_be_bytes();
        let comment = [&[0xff, 0xfe], &length[..], note.as_bytes()].concat();
        out.splice(at..at, comment);
        Ok(out)
    }

    fn webp(&self, note: &str) -> Result<Vec<u8>, image_webp::EncodingError> {
        let mut out = Vec::new();
        let mut encoder = WebPEncoder::new(&mut out);
        if let Some(icc) = self.icc.as_ref().filter(|_| !self.grey) {
            encoder.set_icc_profile(icc.clone());
        }
        if let Some(exif) = &self.exif {
            encoder.set_exif_metadata(exif.clone());
        }
        encoder.set_xmp_metadata([XMP[0], note, XMP[1]].concat().into_bytes());
        let data: Vec<u8> = self.levels(false, 255.0).map(|v| v as u8).collect();
        let kind =
            if self.alpha.is_some() { image_webp::ColorType::Rgba8 } else { image_webp::ColorType::Rgb8 };
        encoder.encode(&data, self.color.width as u32, self.color.height as u32, kind)?;
        Ok(out)
    }
}

/// The note in a file that [`Picture::encode`] wrote.
pub fn note(bytes: &[u8]) -> Option<String> {
    match guess_format(bytes).ok().filter(|_| is_whole(bytes))? {
        ImageFormat::Png => {
            let reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
            reader.info().utf8_text.iter().find(|chunk| chunk.keyword == KEY)?.get_text().ok()
        }
        ImageFormat::Jpeg => comment(bytes),
        ImageFormat::WebP => {
            let xmp = WebPDecoder::new(Cursor::new(bytes)).ok()?.xmp_metadata().ok()??;
            let text = String::from_utf8(xmp).ok()?;
            Some(text.strip_prefix(XMP[0])?.strip_suffix(XMP[1])?.to_owned())
        }
        _ => None,
    }
}

/// A JPEG's first comment.
fn comment(bytes: &[u8]) -> Option<String> {
    let mut at = 2;
    loop {
        let &[0xff, kind, hi, lo] = bytes.get(at..at + 4)? else { return None };
        let end = at + 2 + usize::from(u16::from_be_bytes([hi, lo]));
        match kind {
            0xfe => return String::from_utf8(bytes.get(at + 4..end)?.to_vec()).ok(),
            0xda => return None, // pixels
            _ => at = end,
        }
    }
}

/// Interleaved levels as planes in [0, 1].
fn planes<T: Copy + Into<f32>>(levels: &[T], channels: usize, full: f32) -> Vec<Vec<f32>> {
    (0..channels)
        .map(|c| levels.iter().skip(c).step_by(channels).map(|&v| v.into() / full).collect())
        .collect()
}

/// `color` with every pixel of no weight replaced by the mean of what is nearest to it: the picture is halved, weight by
/// weight, until nothing is missing, and what was missing comes from the halved one.
fn fill(color: &Image, weight: &[f32]) -> Image {
    let (h, w) = (color.height, color.width);
    if h * w <= 1 || !weight.contains(&0.0) || weight.iter().all(|&v| v == 0.0) {
        return color.clone();
    }
    let (half_h, half_w) = (h.div_ceil(2), w.div_ceil(2));
    let mut sums = vec![0f32; half_h * half_w];
    let mut half = Image::zeros(half_h, half_w);
    let cell = |i: usize| i / w / 2 * half_w + i % w / 2;
    for (i, &k) in weight.iter().enumerate() {
        sums[cell(i)] += k;
        for c in 0..3 {
            half.data[c * half_h * half_w + cell(i)] += k * color.data[c * h * w + i];
        }
    }
    for (i, v) in half.data.iter_mut().enumerate() {
        let sum = sums[i % (half_h * half_w)];
        *v = if sum > 0.0 { *v / sum } else { 0.0 };
    }
    let half = fill(&half, &sums);
    let mut out = color.clone();
    for (i, v) in out.data.iter_mut().enumerate().filter(|(i, _)| weight[i % (h * w)] == 0.0) {
        *v = half.plane(i / (h * w))[cell(i % (h * w))];
    }
    out
}

#[cfg(test)]
mod tests;
