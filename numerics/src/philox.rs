//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405).
//!
//! A draw is a function of (seed, choice, position) alone, so it is the same whatever shares the batch.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox on `counter` under `key`.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(WEYL[0]);
            key[1] = key[1].wrapping_add(WEYL[1]);
        }
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// Uniform draw in `[0, 1)` with 24 bits for the token at `position` of choice `choice` under `seed`.
pub fn uniform(seed: u64, choice: u32, position: u32) -> f32 {
    let word = philox4x32([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32])[0];
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 (kat_vectors, philox4x32-10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn draws_differ_by_every_input() {
        let base = uniform(1, 0, 0);
        assert!(
            [uniform(2, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1), uniform(1 << 32, 0, 0)]
                .iter()
                .all(|u| *u != base && (0.0..1.0).contains(u))
        );
    }
}
