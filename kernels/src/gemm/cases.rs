//! Shapes that tests and benches share.

/// (n, k) of weights: one, odd, aligned, K slices of every count.
pub const WEIGHTS: &[(usize, usize)] = &[
    (1, 1),
    (5, 3),
    (16, 32),
    (17, 33),
    (48, 64),
    (50, 129),
    (80, 200),
    (64, 1024),
    (64, 2048),
    (40, 4096),
    (256, 8192),
];

/// Row counts around every tile border.
pub const ROWS: &[usize] = &[1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 24, 25, 40, 97];

/// (name, n, k) of Llama-3.2-1B's weights.
pub const LLAMA_1B: &[(&str, usize, usize)] = &[
    ("qkv", 3072, 2048),
    ("o", 2048, 2048),
    ("gate_up", 16384, 2048),
    ("down", 2048, 8192),
    ("head", 128_256, 2048),
];
