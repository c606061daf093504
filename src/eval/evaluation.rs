//! What a run writes of its evaluation: every method's [`Scores`], from which its report makes tables and intervals.

use serde::{Deserialize, Serialize};
use std::path::Path;

use super::{Difference, Scores, compare};
use crate::{Error, Result};

/// Every method's scores on the same held-out crops: `{"crops": [name…], "methods": {"bicubic": {…}, …}}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The crops' names, in the scores' order.
    pub crops: Vec<String>,
    /// Scores by method, in the order they are shown: bicubic, base, sft, asdpo.
    #[serde(with = "in_order")]
    pub methods: Vec<(String, Scores)>,
}

/// One method against another.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The method judged.
    pub ours: String,
    /// The one it is measured against.
    pub theirs: String,
    /// `ours` − `theirs`, an entry per quantity.
    pub differences: Vec<Difference>,
}

impl Evaluation {
    /// Reads `evaluation.json`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let read: Self = serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("not a run's evaluation: {e}")))?;
        for (name, scores) in &read.methods {
            if let Some(fault) = scores.fault() {
                return Err(Error::format(path, format!("method {name}: {fault}")));
            }
            let (n, m) = (scores.len(), read.crops.len());
            if n != m {
                return Err(Error::format(path, format!("method {name}: scores of {n} crops, names of {m}")));
            }
        }
        Ok(read)
    }

    /// The file's text. Every number survives reading to the bit; one that is not finite becomes `null`, which
    /// [`Evaluation::load`] refuses.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string(self);
        text.map_err(|e| Error::shape("evaluation", format!("the scores are not JSON: {e}")))
    }

    /// The scores of the method called `name`.
    pub fn method(&self, name: &str) -> Option<&Scores> {
        self.methods.iter().find(|(n, _)| n == name).map(|(_, scores)| scores)
    }

    /// What each training stage changed: asdpo − sft and sft − bicubic, those there are.
    pub fn comparisons(&self) -> Result<Vec<Comparison>> {
        let mut made = Vec::new();
        for (ours, theirs) in [("asdpo", "sft"), ("sft", "bicubic")] {
            if let (Some(a), Some(b)) = (self.method(ours), self.method(theirs)) {
                let differences = compare(a, b)?;
                made.push(Comparison { ours: ours.to_owned(), theirs: theirs.to_owned(), differences });
            }
        }
        Ok(made)
    }
}

/// A list of pairs as a JSON object that keeps their order.
mod in_order {
    use super::Scores;
    use serde::de::{MapAccess, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(pairs: &[(String, Scores)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(pairs.iter().map(|(name, scores)| (name, scores)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, Scores)>, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(String, Scores)>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of scores by method")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        from.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DeadLeaves;
    use crate::eval::evaluate;

    fn evaluation(methods: &[&str]) -> Evaluation {
        let leaves = DeadLeaves::new(2, 48).unwrap();
        let hq: Vec<_> = (0..3).map(|i| leaves.image(i)).collect();
        let method = |(k, name): (usize, &&str)| {
            let mut sr = hq.clone();
            sr.iter_mut().flat_map(|s| &mut s.data).for_each(|v| *v *= 0.8 + 0.05 * k as f32);
            let scores = Scores::of(&sr, &hq).unwrap();
            assert_eq!(scores.metrics(), evaluate(&sr, &hq).unwrap());
            ((*name).to_owned(), scores)
        };
        let crops = (0..3).map(|i| format!("leaf-{i}")).collect();
        Evaluation { crops, methods: methods.iter().enumerate().map(method).collect() }
    }

    #[test]
    fn an_evaluation_survives_its_file_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("evaluation.json");
        let made = evaluation(&["bicubic", "base", "sft", "asdpo"]);
        std::fs::write(&path, made.to_json().unwrap()).unwrap();
        let read = Evaluation::load(&path).unwrap();
        assert_eq!(read, made);
        assert_eq!(read.method("sft").unwrap().metrics(), made.methods[2].1.metrics());
        let names: Vec<_> =
            read.comparisons().unwrap().into_iter().map(|c| format!("{} {}", c.ours, c.theirs)).collect();
        assert_eq!(names, ["asdpo sft", "sft bicubic"]);
        assert!(evaluation(&["bicubic", "base"]).comparisons().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("evaluation.json");
        let refuse = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Evaluation::load(&path).unwrap_err().to_string()
        };
        assert!(refuse("{\"crops\":").contains("not a run's evaluation"));
        let mut made = evaluation(&["sft"]);
        made.crops.pop();
        assert!(refuse(&made.to_json().unwrap()).contains("scores of 3 crops, names of 2"));
        made = evaluation(&["sft"]);
        made.methods[0].1.lsd_db.pop();
        assert!(refuse(&made.to_json().unwrap()).contains("[3, 3, 2, 3]"));
        let text = evaluation(&["sft"]).to_json().unwrap().replace("\"n\":48", "\"n\":50");
        assert!(refuse(&text).contains("rings"));
    }
}
