//! What is compared: an arm is a preference stage with some options of its own.

/// One way to train the preference adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    /// The method, as the paper calls it, or the option that is swept.
    pub method: &'static str,
    /// Its options besides β.
    pub sets: Vec<String>,
    /// DPO's β.
    pub beta: f32,
}

impl Arm {
    fn new(method: &'static str, sets: &[&str], beta: f32) -> Self {
        Self { method, sets: sets.iter().map(|&s| s.to_owned()).collect(), beta }
    }

    /// A name for its folder, and for its row.
    pub fn name(&self) -> String {
        format!("{} β={}", self.method, self.beta)
    }

    /// The folder of its run.
    pub fn folder(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let method: String = self.method.replace('½', "half").chars().map(plain).collect();
        format!("{method}-beta{}", self.beta)
    }

    /// Every option it sets.
    pub fn options(&self) -> Vec<String> {
        let beta = format!("asdpo.beta={}", self.beta);
        self.sets.iter().cloned().chain([beta]).collect()
    }
}

/// The paper's methods.
pub const METHODS: [(&str, &[&str]); 4] = [
    ("DPO", &["asdpo.s=0", "asdpo.adversary=none"]),
    ("S-DPO", &["asdpo.s=1.5", "asdpo.adversary=none"]),
    ("AS-DPO", &["asdpo.s=1.5", "asdpo.adversary=lora"]),
    ("AS-DPO (Riesz)", &["asdpo.s=1.5", "asdpo.adversary=riesz"]),
];

/// One option of AS-DPO changed at a time.
const SWEEPS: [(&str, &[&str]); 8] = [
    ("AS-DPO, s = 0", &["asdpo.s=0"]),
    ("AS-DPO, s = 0.75", &["asdpo.s=0.75"]),
    ("AS-DPO, s = 2.25", &["asdpo.s=2.25"]),
    ("AS-DPO, λ = 0.25", &["asdpo.lambda=0.25"]),
    ("AS-DPO, λ = 0.5", &["asdpo.lambda=0.5"]),
    ("AS-DPO, the loser's noise shared", &["asdpo.loser_noise=shared"]),
    ("AS-DPO, half the spectrum", &["asdpo.spectrum=half"]),
    ("AS-DPO, s = 0, loser's noise shared", &["asdpo.s=0", "asdpo.loser_noise=shared"]),
];

/// Every method at every β (a smaller β is a stronger pull), then the sweeps at the middle one.
pub fn all(betas: &[f32]) -> Vec<Arm> {
    let methods = METHODS.iter().flat_map(|(m, sets)| betas.iter().map(|&b| Arm::new(m, sets, b)));
    let middle = betas[betas.len() / 2];
    methods.chain(SWEEPS.iter().map(|(m, sets)| Arm::new(m, sets, middle))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_names_are_apart() {
        let arms = all(&[250.0, 1000.0, 4000.0]);
        assert_eq!(arms.len(), 4 * 3 + SWEEPS.len());
        let folders: std::collections::BTreeSet<_> = arms.iter().map(Arm::folder).collect();
        let names: std::collections::BTreeSet<_> = arms.iter().map(Arm::name).collect();
        assert!(folders.len() == arms.len() && names.len() == arms.len(), "{folders:?}");
        assert!(folders.iter().all(|f| f.is_ascii()));
    }
}
