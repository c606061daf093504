use super::*;

const NOTE: &str = r#"{"seed":42,"why":"\u003c"}"#;

/// A picture of this kind whose values are levels of its files.
fn made(h: usize, w: usize, grey: bool, alpha: bool, deep: bool) -> Picture {
    let full = if deep { 65535.0 } else { 255.0 };
    let level = |i: usize| ((i * 7919 + 13) % (full as usize + 1)) as f32 / full;
    let color = Image::from_fn(h, w, |c, y, x| level(if grey { 0 } else { c * h * w } + y * w + x));
    let alpha = alpha.then(|| (0..h * w).map(|i| level(3 * i + 5)).collect());
    let space = if grey { b"GRAY" } else { b"RGB " };
    let icc = [&[7; 16], &space[..], &[9; 300]].concat();
    // Little-endian TIFF, one entry: orientation, a short, 1.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    Picture { color, alpha, grey, deep, icc: Some(icc), exif: Some(exif) }
}

#[test]
fn lossless_files_give_back_all_there_is() {
    for (h, w) in [(1, 1), (5, 3), (16, 33)] {
        for kind in 0..8 {
            let picture = made(h, w, kind & 1 > 0, kind & 2 > 0, kind & 4 > 0);
            let bytes = picture.encode(Format::Png, 90, NOTE).unwrap();
            assert_eq!(Picture::decode(&bytes).unwrap(), picture, "{h}×{w}, kind {kind}");
            assert_eq!(note(&bytes).as_deref(), Some(NOTE));
        }
        for alpha in [false, true] {
            let picture = made(h, w, false, alpha, false);
            let bytes = picture.encode(Format::WebP, 90, NOTE).unwrap();
            assert_eq!(Picture::decode(&bytes).unwrap(), picture, "{h}×{w}");
            assert_eq!(note(&bytes).as_deref(), Some(NOTE));
        }
    }
}

#[test]
fn jpeg_keeps_what_it_can_and_refuses_the_rest() {
    for grey in [false, true] {
        let mut picture = made(24, 40, grey, false, true);
        picture.color = Image::from_fn(24, 40, |_, y, x| (y + x) as f32 / 64.0);
        let bytes = picture.encode(Format::Jpeg, 95, NOTE).unwrap();
        let back = Picture::decode(&bytes).unwrap();
        assert_eq!(note(&bytes).as_deref(), Some(NOTE));
        assert_eq!((back.grey, back.deep, &back.icc, &back.exif), (grey, false, &picture.icc, &picture.exif));
        let off = back.color.data.iter().zip(&picture.color.data).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f32::max) < 0.02);
        let worse = picture.encode(Format::Jpeg, 20, NOTE).unwrap();
        assert!(worse.len() < bytes.len());
    }
    let transparent = made(4, 4, false, true, false).encode(Format::Jpeg, 90, NOTE).unwrap_err();
    assert!(transparent.contains("transparency"), "{transparent}");
    let wide = made(1, 65536, true, false, false).encode(Format::Jpeg, 90, NOTE).unwrap_err();
    assert!(wide.contains("65536×1") && wide.contains("65535"), "{wide}");
}

#[test]
fn an_orientation_is_applied_and_reset() {
    let mut picture = made(2, 3, false, false, false);
    picture.exif.as_mut().unwrap()[18] = 6; // a quarter turn clockwise
    let bytes = picture.encode(Format::Png, 90, NOTE).unwrap();
    let back = Picture::decode(&bytes).unwrap();
    assert_eq!((back.color.height, back.color.width), (3, 2));
    assert_eq!(back.color, picture.color.transpose().flip_horizontal());
    assert_eq!(back.exif.as_ref().unwrap()[18], 1);
}

#[test]
fn what_is_not_seen_takes_the_colours_around_it() {
    // A red disc on transparent green.
    let inside = |y: usize, x: usize| (y as i32 - 9).pow(2) + (x as i32 - 12).pow(2) < 30;
    let color = Image::from_fn(21, 30, |c, y, x| [f32::from(inside(y, x)), f32::from(!inside(y, x)), 0.0][c]);
    let alpha: Vec<f32> = (0..21 * 30).map(|i| f32::from(inside(i / 30, i % 30))).collect();
    let picture = Picture { color, alpha: Some(alpha), ..made(1, 1, false, false, false) };
    let filled = picture.filled();
    assert!(filled.plane(0).iter().all(|&v| (v - 1.0).abs() < 1e-6));
    assert!(filled.plane(1).iter().all(|&v| v == 0.0), "green is seen");
    // All of it unseen: nothing to take.
    let none = Picture { alpha: Some(vec![0.0; 21 * 30]), ..picture.clone() };
    assert_eq!(*none.filled(), none.color);
}

#[test]
fn other_peoples_files_hold_no_note() {
    for bytes in [
        &b""[..],
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xfe\0\x09ab",
        b"RIFF\0\0\0\0WEBPVP8 ",
    ] {
        assert_eq!(note(bytes), None);
    }
}
