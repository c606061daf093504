//! How fast pairs are made: decoding, and Real-ESRGAN's degradation of 512² crops.
//!
//! `cargo bench --bench degrade -- [FOLDER]` prints both on one thread and on all, in processor time, which tells what a core
//! does even where other programs share it, and in images a second; without a folder of photographs, dead leaves stand in. `degrade FOLDER --peer` is the engine's side of
//! `benches/peers/basicsr_degrade.py`: it answers each line of stdin, a number of pairs, with the seconds they took.

use asasr_engine::data::{DeadLeaves, Photo, RealEsrgan};
use asasr_engine::engine::Philox;
use rayon::prelude::*;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

const CROP: usize = 512;
const PAIRS: usize = 96;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The files of a folder of photographs, as they are.
fn read(folder: &str) -> Outcome<Vec<Vec<u8>>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    let kind = |p: &Path| p.extension().is_some_and(|e| e == "png" || e == "jpg");
    Ok(paths.into_iter().filter(|p| kind(p)).map(std::fs::read).collect::<std::io::Result<_>>()?)
}

fn painted() -> Outcome<Vec<Vec<u8>>> {
    let (leaves, folder) = (DeadLeaves::new(1, 768)?, tempfile::tempdir()?);
    let file = |i: u64| {
        let path = folder.path().join(i.to_string());
        leaves.image(i).save_png(&path)?;
        Ok(std::fs::read(path)?)
    };
    (0..4).map(file).collect()
}

/// Makes pairs `first..first + n` in memory, each from a crop to its 8-bit outcome.
fn make(photos: &[Photo], config: &RealEsrgan, first: usize, n: usize) -> asasr_engine::Result<()> {
    (first..first + n).into_par_iter().try_for_each(|i| {
        let photo = &photos[i % photos.len()];
        let mut rng = Philox::new(i as u64, 0).reader();
        let (y, x) = (rng.below(photo.height() - CROP + 1), rng.below(photo.width() - CROP + 1));
        let steps = config.draw(CROP, CROP, &mut rng);
        std::hint::black_box(config.follow(&steps, photo.crop(y, x, CROP, CROP)?)?);
        Ok(())
    })
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let folder = args.iter().find(|a| !a.starts_with("--"));
    let files = folder.map_or_else(painted, |f| read(f))?;
    let decode = |bytes: &Vec<u8>| Photo::decode(bytes);
    let photos = files.par_iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    let config = RealEsrgan::default();
    if args.iter().any(|a| a == "--peer") {
        let mut made = 0;
        for line in std::io::stdin().lock().lines() {
            let (n, begun) = (line?.trim().parse()?, Instant::now());
            make(&photos, &config, made, n)?;
            made += n;
            println!("{}", begun.elapsed().as_secs_f64());
            std::io::stdout().flush()?;
        }
        return Ok(());
    }
    let all = rayon::current_num_threads();
    println!("{} photographs, {PAIRS} pairs of {CROP}²", photos.len());
    println!("{:<8} {:<8} {:>16} {:>16} {:>9}", "threads", "", "processor ms", "a second, core", "a second");
    for threads in if all > 1 { vec![1, all] } else { vec![1] } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let timed = |what: &str, work: &dyn Fn() -> Outcome<()>| -> Outcome<f64> {
            let (begun, before) = (Instant::now(), processor_seconds()?);
            work()?;
            let (wall, cpu) = (begun.elapsed().as_secs_f64(), processor_seconds()? - before);
            let n = PAIRS as f64;
            println!("{threads:<8} {what:<8} {:>16.1} {:>16.1} {:>9.1}", 1e3 * cpu / n, n / cpu, n / wall);
            Ok(cpu)
        };
        let decoding = timed("decode", &|| {
            let one =
                |i: usize| decode(&files[i % files.len()]).map(|photo| drop(std::hint::black_box(photo)));
            Ok(pool.install(|| (0..PAIRS).into_par_iter().try_for_each(one))?)
        })?;
        let degrading = timed("degrade", &|| Ok(pool.install(|| make(&photos, &config, 0, PAIRS))?))?;
        println!("{threads:<8} {:<8} {:>33.1}", "both", PAIRS as f64 / (decoding + degrading));
    }
    Ok(())
}

/// Processor time of this process so far, in hundredths: Linux's `/proc`.
fn processor_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // after the command's name, which may hold anything: state is field 3, user and system time are 14 and 15
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
