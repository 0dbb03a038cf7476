//! Random numbers of a schedule: a counter, mixed.
//!
//! The one idea: the n-th number of a seed is a pure function of both, with nothing
//! of the machine in it but the floating point of its logarithm.

use crate::text::mix;

/// A stream of random numbers from a seed.
#[derive(Clone, Debug)]
pub(super) struct Draws {
    seed: u64,
    drawn: u64,
}

impl Draws {
    pub(super) fn new(seed: u64) -> Draws {
        Draws { seed, drawn: 0 }
    }

    /// In (0, 1]: a logarithm of it is finite.
    fn uniform(&mut self) -> f64 {
        self.drawn += 1;
        let bits = mix(self.seed ^ mix(self.drawn)) >> 11;
        (bits + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub(super) fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller; the second value is not kept).
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Gamma with this shape and scale 1, so with mean `shape`.
    ///
    /// Source: Marsaglia, Tsang, "A simple method for generating gamma variables",
    /// 2000; below shape 1 by their `gamma(a + 1) · U^(1/a)`.
    pub(super) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let power = self.uniform().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * power;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        // Each turn is accepted with more than 95 %.
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v <= 0.0 {
                continue;
            }
            if self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_the_mean_and_the_variance_of_its_shape() {
        for shape in [0.1, 0.5, 1.0, 3.0, 40.0] {
            let mut draws = Draws::new(11);
            let count = 200_000;
            let drawn: Vec<f64> = (0..count).map(|_| draws.gamma(shape)).collect();
            let mean = drawn.iter().sum::<f64>() / f64::from(count);
            let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(count);
            assert!((mean / shape - 1.0).abs() < 0.03, "shape {shape}: mean {mean}");
            assert!((variance / shape - 1.0).abs() < 0.05, "shape {shape}: variance {variance}");
        }
    }
}
