//! Random numbers of a load: functions of the seed, so that two runs ask the same at the same times.

use lathe_numerics::philox::philox4x32;

/// What numbers are for; streams of different uses share nothing.
#[derive(Clone, Copy, Debug)]
pub enum Use {
    /// Times of arrival.
    Arrivals = 1,
    /// Lengths and tokens of one request.
    Request = 2,
    /// Tokens that all prompts begin with.
    Prefix = 3,
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    counter: [u32; 4],
}

impl Random {
    /// Stream number `index` of a use.
    pub fn new(seed: u64, purpose: Use, index: u64) -> Self {
        Random {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [0, index as u32, (index >> 32) as u32, purpose as u32],
        }
    }

    fn next(&mut self) -> [u32; 4] {
        let words = philox4x32(self.counter, self.key);
        self.counter[0] = self.counter[0].wrapping_add(1);
        words
    }

    /// Uniform in `(0, 1]`.
    pub fn unit(&mut self) -> f64 {
        let [low, high, ..] = self.next();
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        (bits + 1) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..below`; `below` is at least 1.
    pub fn below(&mut self, below: u32) -> u32 {
        let [low, high, ..] = self.next();
        // 64 random bits against a range of 32: the bias is below 2^-32.
        ((u128::from(u64::from(high) << 32 | u64::from(low)) * u128::from(below)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_functions_of_seed_use_and_index() {
        let draw = |seed, purpose, index| Random::new(seed, purpose, index).below(1 << 30);
        assert_eq!(draw(1, Use::Request, 7), draw(1, Use::Request, 7));
        let all = [
            draw(1, Use::Request, 7),
            draw(2, Use::Request, 7),
            draw(1, Use::Prefix, 7),
            draw(1, Use::Request, 8),
        ];
        assert!((1..4).all(|i| all[i] != all[0]), "{all:?}");
    }

    #[test]
    fn numbers_stay_in_their_range_and_fill_it() {
        let mut random = Random::new(3, Use::Request, 0);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[random.below(5) as usize] += 1;
            let unit = random.unit();
            assert!(unit > 0.0 && unit <= 1.0);
        }
        assert!(seen.iter().all(|n| (130..270).contains(n)), "{seen:?}");
        assert_eq!(random.below(1), 0);
    }
}
