//! temporary
/// temporary
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// cos
    pub cos: Vec<f32>,
    /// sin
    pub sin: Vec<f32>,
    /// half
    pub half: usize,
}
impl RopeTable {
    /// temporary
    pub fn new(ids: &[[f32; 3]], axes: &[usize], theta: f64) -> crate::Result<Self> {
        let half = axes.iter().sum::<usize>() / 2;
        let (mut cos, mut sin) = (vec![], vec![]);
        for id in ids {
            for (k, &d) in axes.iter().enumerate() {
                for i in 0..d / 2 {
                    let a = f64::from(id[k]) / theta.powf(2.0 * i as f64 / d as f64);
                    cos.push(a.cos() as f32);
                    sin.push(a.sin() as f32);
                }
            }
        }
        Ok(Self { cos, sin, half })
    }
}
