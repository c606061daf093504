//! A run as one page to look at: `report.html`, readable on a phone, without a network, kept with the run.
//!
//! Responsible for reading a run directory, also a partial one, and for showing what is in it; and for the page of what
//! methods score on folders of pictures ([`eval`]). Must not compute anything of training or restoring: what is not in
//! the run's files is not in its report.

mod chart;
pub mod eval;
mod figures;
mod gather;
mod html;
mod page;
mod tables;

use crate::files::write_atomic;
use crate::{Error, Result};
use gather::Run;
use std::path::Path;

/// Writes the report of one run, or of two side by side, to the file `to`.
///
/// A run may have died: the report says so and shows what there is. A folder that holds nothing of a run is a usage
/// error.
pub fn write(runs: &[&Path], to: &Path) -> Result<()> {
    if !(1..=2).contains(&runs.len()) {
        return Err(Error::Usage(format!(
            "a report of {} runs; expected one, or two to compare",
            runs.len()
        )));
    }
    let read: Vec<Run> = runs.iter().map(|run| Run::read(run)).collect::<Result<_>>()?;
    let same_name = read.len() == 2 && read[0].name == read[1].name;
    let label = |run: &Run| match (read.len(), same_name) {
        (1, _) => String::new(),
        (_, false) => run.name.clone(),
        (_, true) => run.folder.display().to_string(),
    };
    let labels: Vec<String> = read.iter().map(label).collect();
    let page = page::page(&labels.into_iter().zip(read).collect::<Vec<_>>())?;
    write_atomic(to, page.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DeadLeaves, Image};
    use crate::eval::{Evaluation, Scores};
    use std::fmt::Write;

    const BAD: &str = "<script>alert(1)</script>";

    /// A run's folder with every file there can be, `BAD` in all that is text.
    fn whole_run(folder: &Path) {
        std::fs::create_dir_all(folder.join("samples")).unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        put("config.toml", &format!("[run]\nfrom = \"{BAD}\"\n[asdpo]\nsteps = 7\n"));
        put(
            "log.jsonl",
            &format!(
                "{{\"stage\":\"sft\",\"step\":0,\"loss\":2.5,\"lr\":1e-4,\"grad_norm\":null,\"warnings\":[\"{BAD}\"]}}\n\
                 {{\"stage\":\"{BAD}\",\"step\":1,\"loss\":1.5,\"margin\":0.1}}\n\
                 {{\"stage\":\"asdpo\",\"step\":3,\"loss\":0.5,\"beta\":2000}}\n{{\"stage\":\"asdpo\",\"st"
            ),
        );
        put(
            "validation.jsonl",
            "{\"stage\":\"sft\",\"step\":0,\"hf_ratio\":0.7,\"picture\":\"samples/sft.png\"}\n\
             {\"stage\":\"sft\",\"step\":1,\"hf_ratio\":0.8,\"picture\":\"../secret.png\"}\n",
        );
        put("environment.json", &format!("{{\"cpu\":\"{BAD}\",\"cores\":2}}"));
        put("summary.json", "{\"wall_s\": 42.0, \"eval\": {}}");
        let picture = Image::zeros(4, 6);
        picture.save_png(folder.join("samples/sft.png")).unwrap();
        picture.save_png(folder.join("samples.png")).unwrap();
        picture.save_png(folder.join("../secret.png")).unwrap();
        let leaves = DeadLeaves::new(2, 32).unwrap();
        let hq: Vec<Image> = (0..4).map(|i| leaves.image(i)).collect();
        let scaled = |factor: f32| {
            let mut sr = hq.clone();
            sr.iter_mut().flat_map(|s| &mut s.data).for_each(|v| *v *= factor);
            Scores::of(&sr, &hq).unwrap()
        };
        let methods = [("bicubic", 0.5), ("sft", 0.7), ("asdpo", 0.9)];
        let methods = methods.map(|(name, factor)| (name.to_owned(), scaled(factor))).to_vec();
        let evaluation = Evaluation { crops: vec![BAD.to_owned(); 4], methods };
        put("evaluation.json", &evaluation.to_json().unwrap());
    }

    fn page(runs: &[&Path]) -> String {
        let to = runs[0].join("report.html");
        write(runs, &to).unwrap();
        let page = std::fs::read_to_string(to).unwrap();
        assert!(!page.contains("<script>alert"), "what a file says became markup");
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("NaN"));
        page
    }

    #[test]
    fn one_run_is_shown_whole_and_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("<script>alert(1)<");
        whole_run(&run);
        let page = page(&[&run]);
        for wanted in [
            "<h1>&lt;script&gt;alert(1)&lt;</h1>",
            "finished in 42 s",
            "asdpo − sft",
            "▲",
            "better",
            "sft, step 0: &lt;script&gt;",
            "grad_norm is not finite",
            "Validation: high-frequency ratio",
            "Power by radial frequency",
            "<details>",
            "<th scope=\"row\">cores</th><td>2</td>",
        ] {
            assert!(page.contains(wanted), "{wanted}");
        }
        // the final picture and the one validation picture inside the run
        assert_eq!(page.matches("data:image/png;base64,").count(), 2);
    }

    #[test]
    fn two_runs_are_shown_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        whole_run(&a);
        whole_run(&b);
        std::fs::write(b.join("config.toml"), "[asdpo]\nsteps = 8\n").unwrap();
        let page = page(&[&a, &b]);
        for wanted in [
            "<h1>a and b</h1>",
            "asdpo · a",
            "asdpo · b",
            "asdpo: b − a",
            "not distinguishable",
            "<th scope=\"row\">asdpo.steps</th><td>7</td><td>8</td>",
            "all options of b",
        ] {
            assert!(page.contains(wanted), "{wanted}");
        }
        assert!(!page.contains("not knowingly"), "both were scored on the same crops");
    }

    #[test]
    fn a_run_that_died_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        whole_run(run);
        for gone in ["summary.json", "samples.png", "environment.json", "validation.jsonl"] {
            std::fs::remove_file(run.join(gone)).unwrap();
        }
        std::fs::write(run.join("evaluation.json"), "{\"crops\"").unwrap();
        let shown = page(&[run]);
        assert!(shown.contains("stopped at stage asdpo, step 3 (7 steps asked for)"));
        assert!(shown.contains("not a run&#39;s evaluation") && shown.contains("There is no evaluation"));
        for gone in ["log.jsonl", "evaluation.json"] {
            std::fs::remove_file(run.join(gone)).unwrap();
        }
        assert!(page(&[run]).contains("no step was logged"));
    }

    #[test]
    fn what_is_no_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("x.html");
        for path in [dir.path(), &dir.path().join("none")] {
            let e = write(&[path], &to).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("no log.jsonl"), "{e}");
        }
        assert!(write(&[], &to).is_err() && !to.exists());
    }

    #[test]
    fn a_long_log_makes_a_small_page() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = String::new();
        for step in 0..100_000 {
            let value = f64::from(step % 977) / 977.0;
            let _ = writeln!(
                log,
                "{{\"stage\":\"asdpo\",\"step\":{step},\"loss\":{value},\"grad_norm\":{value},\"margin\":{value}}}"
            );
        }
        std::fs::write(dir.path().join("log.jsonl"), log).unwrap();
        let page = page(&[dir.path()]);
        assert!(page.len() < 200_000, "{} bytes", page.len());
        let longest = page.split("<path").map(|path| path.matches('L').count()).max();
        assert!(longest.is_some_and(|n| n > 500 && n < 1000), "{longest:?}");
    }
}
