//! A small seeded random source, handed to whoever needs chance.
//!
//! The one idea: chance is an argument. A decider takes `&mut Rng`, so a test or the
//! simulation can replay every choice from one printed seed, and two workers with two
//! seeds never walk in step.
//!
//! Source: xoshiro256++ by Blackman and Vigna (2019), its state filled by splitmix64 as
//! its authors advise. It deliberately is *not* cryptographic: no key, token or request
//! id that must not be guessed may come from here.

/// A deterministic generator of 64-bit numbers with a period of 2^256 − 1.
#[derive(Clone, Debug)]
pub struct Rng {
    /// Never all zero: splitmix64 is a bijection over distinct inputs.
    state: [u64; 4],
}

impl Rng {
    /// Makes a generator whose whole output follows from `seed`; any seed is good, 0 too.
    pub fn new(seed: u64) -> Self {
        let mut mix = seed;
        Self { state: std::array::from_fn(|_| splitmix(&mut mix)) }
    }

    /// Gives the next number, every bit of it usable.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let out = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    /// Gives a number in `0..n`, and 0 when `n` is 0.
    ///
    /// Source: Lemire (2019), multiply and take the high half. The bias is below n / 2^64,
    /// which no choice among servers can feel, so the rejection step is left out.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Gives a number in `0.0..1.0`, uniform over the multiples of 2^-53.
    pub fn f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_the_published_sequence() {
        let mut state = 1_234_567;
        assert_eq!(splitmix(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(splitmix(&mut state), 3_203_168_211_198_807_973);
    }

    #[test]
    fn xoshiro_gives_the_published_sequence() {
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let got: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(got, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn below_stays_below_and_reaches_every_value() {
        let mut rng = Rng::new(0);
        let mut seen = [0u32; 7];
        for _ in 0..7_000 {
            seen[rng.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (800..1_200).contains(&n)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn f64_stays_in_the_half_open_unit_interval() {
        let mut rng = Rng::new(7);
        let mean = (0..10_000)
            .map(|_| rng.f64())
            .inspect(|x| assert!((0.0..1.0).contains(x)))
            .sum::<f64>()
            / 1e4;
        assert!((0.48..0.52).contains(&mean), "{mean}");
    }

    #[test]
    fn the_same_seed_replays_and_another_does_not() {
        let take =
            |seed| (0..8).scan(Rng::new(seed), |r, _| Some(r.next_u64())).collect::<Vec<_>>();
        assert_eq!(take(3), take(3));
        assert_ne!(take(3), take(4));
    }
}
