//! Folders of photographs: alone and in pairs, what is refused of them, and what they take of memory.
use std::fs;
use std::path::Path;
use std::sync::Arc;

use asasr_engine::data::{
    DeadLeaves, Degradation, Folder, HaarCodec, Image, Part, Sample, Sampler, Source, Split, Wanted,
};

const PLENTY: usize = 1 << 30;

fn wanted(min_side: usize) -> Wanted<'static> {
    Wanted { min_side, scale: 4, negatives: None, memory: PLENTY }
}

fn refusal(outcome: asasr_engine::Result<Folder>) -> String {
    outcome.err().expect("the folder is refused").to_string()
}

/// A picture whose every value tells which it is and where: pixel (y, x) of picture `i`, 64×48.
fn chart(i: usize, scale: usize) -> Image {
    let (h, w) = (64 / scale, 48 / scale);
    Image::from_fn(h, w, |c, y, x| {
        ([20 * i + 10 * scale, 4 * y * scale, 5 * x * scale][c] % 256) as f32 / 255.0
    })
}

/// `gt/`, `lr/` and `neg/` of `n` charts.
fn pairs(dir: &Path, n: usize) {
    for (part, scale) in [("gt", 1), ("lr", 4), ("neg", 1)] {
        fs::create_dir_all(dir.join(part)).unwrap();
        for i in 0..n {
            let mut image = chart(i, scale);
            if part == "neg" {
                image.data.iter_mut().for_each(|v| *v = 1.0 - *v);
            }
            image.save_png(dir.join(part).join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn a_folder_is_sorted_and_its_faults_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = |min| {
        Folder::open(dir.path(), &wanted(min)).map(|f| (0..f.len()).map(|i| f.name(i)).collect::<Vec<_>>())
    };
    assert!(open(1).unwrap_err().to_string().contains("no .png"));
    let leaves = DeadLeaves::new(1, 48).unwrap();
    for name in ["b.png", "a.PNG", "c.png"] {
        leaves.image(0).save_png(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("notes.txt"), "not a photo").unwrap();
    fs::write(dir.path().join(".hidden.png"), "nor this").unwrap();
    assert_eq!(open(48).unwrap(), ["a.PNG", "b.png", "c.png"]);
    let small = open(64).unwrap_err().to_string();
    assert!(small.contains("a.PNG") && small.contains("48×48") && small.contains("64×64"), "{small}");
    let whole = fs::read(dir.path().join("c.png")).unwrap();
    fs::write(dir.path().join("broken.png"), &whole[..whole.len() / 2]).unwrap();
    let broken = open(1).unwrap_err().to_string();
    assert!(broken.contains("broken.png") && broken.contains("decode"), "{broken}");
    fs::write(dir.path().join("broken.png"), "").unwrap();
    assert!(open(1).unwrap_err().to_string().contains("broken.png"));
    assert!(refusal(Folder::open(dir.path().join("nowhere"), &wanted(1))).contains("nowhere"));
}

/// What is cut off is seen in the file's end; what is damaged inside only where the pixels are read.
#[test]
fn a_folder_too_large_to_decode_is_looked_at_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let leaves = DeadLeaves::new(1, 48).unwrap();
    for i in 0..3 {
        leaves.image(i).save_png(dir.path().join(format!("{i}.png"))).unwrap();
    }
    let small = Wanted { memory: 48 * 48 * 3 * 2, ..wanted(32) };
    let whole = fs::read(dir.path().join("1.png")).unwrap();
    fs::write(dir.path().join("1.png"), &whole[..whole.len() - 20]).unwrap();
    assert!(refusal(Folder::open(dir.path(), &small)).contains("unexpected end of file"));
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x55;
    fs::write(dir.path().join("1.png"), &damaged).unwrap();
    assert!(refusal(Folder::open(dir.path(), &wanted(32))).contains("1.png"));
    let folder = Folder::open(dir.path(), &small).unwrap();
    assert!(folder.image(1).unwrap_err().to_string().contains("1.png"));
    // Two pictures fit: the third takes the first one's place, which is read again when it is wanted.
    let first = folder.photo(0, Part::Gt).unwrap();
    assert!(Arc::ptr_eq(&first, &folder.photo(0, Part::Gt).unwrap()));
    fs::write(dir.path().join("1.png"), &whole).unwrap();
    assert_eq!(folder.image(1).unwrap(), leaves.image(1));
    assert_eq!(folder.image(2).unwrap(), leaves.image(2));
    assert!(!Arc::ptr_eq(&first, &folder.photo(0, Part::Gt).unwrap()));
}

#[test]
fn pairs_are_cut_flipped_and_turned_together() {
    let dir = tempfile::tempdir().unwrap();
    pairs(dir.path(), 3);
    let folder = Folder::open(dir.path(), &wanted(32)).unwrap();
    assert!(folder.has(Part::Lr) && folder.has(Part::Neg) && folder.len() == 3);
    let codec = HaarCodec::new(vec![0.0; 24], vec![1.0; 24]).unwrap();
    let split = Split { train: vec![0, 2], held_out: vec![1] };
    let s = Sampler::new(Arc::new(folder), split, 32, Degradation::default(), codec, 3).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..64 {
        let Sample { hq, lq, neg } = s.sample(1, i).unwrap();
        let neg = neg.unwrap();
        assert_eq!((hq.height, hq.width, lq.height, lq.width), (32, 32, 8, 8));
        let byte = |v: f32| (v * 255.0).round() as usize;
        let inverse = |(a, b): (&f32, &f32)| byte(*a) + byte(*b) == 255;
        assert!(hq.data.iter().zip(&neg.data).all(inverse));
        // Of the four by four values that a bad pixel stands for, the one nearest to the corner is its own place.
        let corner = |image: &Image, y: usize, x: usize, side: usize| {
            let at = |c: usize| byte(image.data[(c * side + y) * side + x]);
            (at(1), at(2))
        };
        for (y, x) in [(0, 0), (3, 5), (7, 7)] {
            let block = (0..16).map(|k| corner(&hq, 4 * y + k / 4, 4 * x + k % 4, 32));
            assert_eq!(block.min().unwrap(), corner(&lq, y, x, 8), "sample {i}");
        }
        seen.insert((byte(hq.data[0]), corner(&lq, 0, 0, 8) < corner(&lq, 7, 7, 8)));
    }
    assert!(seen.len() == 4 && seen.iter().all(|(picture, _)| [10, 50].contains(picture)), "{seen:?}");
    let batch = s.batch(2, 0, 2, true).unwrap();
    let neg = s.sample(2, 0).unwrap().neg.unwrap();
    assert_eq!(s.latents(&batch.target[..1]).unwrap(), s.encode(&neg).unwrap());
}

#[test]
fn pairs_that_do_not_fit_are_named_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    pairs(dir.path(), 6);
    fs::remove_file(at("lr/0.png")).unwrap();
    fs::rename(at("neg/1.png"), at("neg/one.png")).unwrap();
    fs::copy(at("gt/2.png"), at("lr/2.png")).unwrap();
    fs::write(at("neg/3.png"), "no picture").unwrap();
    chart(4, 2).save_png(at("gt/4.png")).unwrap();
    fs::copy(at("lr/5.png"), at("lr/5.jpg")).unwrap();
    let said = refusal(Folder::open(dir.path(), &wanted(48)));
    for (name, why) in [
        ("gt/0.png", "no picture of this name"),
        ("gt/1.png", "no picture of this name"),
        ("neg/one.png", "no good picture of this name"),
        ("lr/2.png", "48×64 pixels; wanted 4 times smaller"),
        ("neg/3.png", "neither a PNG"),
        ("gt/4.png", "24×32 pixels is smaller than the 48×48 crop"),
        ("lr/5.png", "has the same name"),
    ] {
        let line = said.lines().find(|l| l.contains(&format!("{name}: ")) && l.contains(why));
        assert!(line.is_some(), "{name}: {why}: not in\n{said}");
    }
    assert!(said.contains("7 faults in its 6 pictures"), "{said}");
    fs::remove_dir_all(at("lr")).unwrap();
    assert!(refusal(Folder::open(dir.path(), &wanted(48))).contains("gt/ but no lr/"));
}

#[test]
fn an_upscalers_outputs_may_lie_elsewhere() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pairs(dir.path(), 2);
    for i in 0..2 {
        chart(7 + i, 1).save_png(other.path().join(format!("{i}.png"))).unwrap();
    }
    let folder = Folder::open(dir.path(), &Wanted { negatives: Some(other.path()), ..wanted(32) }).unwrap();
    assert_eq!(folder.photo(1, Part::Neg).unwrap().image(), chart(8, 1));
    fs::remove_file(other.path().join("1.png")).unwrap();
    let said = refusal(Folder::open(dir.path(), &Wanted { negatives: Some(other.path()), ..wanted(32) }));
    assert!(said.contains("gt/1.png") && said.contains("no picture of this name in"), "{said}");
}

/// One picture, seven, a hundred thousand: headers are looked at, and a path and four numbers are kept of each.
#[test]
fn a_folder_of_any_size_takes_little_memory() {
    let codec = HaarCodec::new(vec![0.0; 24], vec![1.0; 24]).unwrap();
    for n in [1usize, 7, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let leaves = DeadLeaves::new(3, 48).unwrap();
        leaves.image(0).save_png(dir.path().join("000000.png")).unwrap();
        let bytes = fs::read(dir.path().join("000000.png")).unwrap();
        for i in 1..n {
            // Links where the file system has enough of them for one file, else copies.
            let path = dir.path().join(format!("{i:06}.png"));
            if fs::hard_link(dir.path().join("000000.png"), &path).is_err() {
                fs::write(&path, &bytes).unwrap();
            }
        }
        let before = resident();
        let folder = Folder::open(dir.path(), &Wanted { memory: 1 << 20, ..wanted(32) }).unwrap();
        assert_eq!(folder.len(), n);
        let split = Split { train: (0..n).collect(), held_out: Vec::new() };
        let s = Sampler::new(Arc::new(folder), split, 32, Degradation::default(), codec.clone(), 3).unwrap();
        for step in 0..8 {
            s.batch(0, step, 16, false).unwrap();
        }
        let grown = resident().saturating_sub(before);
        println!("{n} pictures: {} KiB", grown >> 10);
        assert!(grown < (64 << 20) + 400 * n, "{n} pictures: {grown} bytes");
    }
}

/// Resident memory of this process, bytes; 0 where the system does not say.
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|s| s.split(' ').nth(1)?.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}
