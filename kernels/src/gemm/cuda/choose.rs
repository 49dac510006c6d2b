//! How a GEMM is cut on a device: one [`Config`] per range of row counts, by a model of where the bytes go.
//!
//! Nothing here can change a bit: every configuration adds the same numbers in the same order.

use lathe_numerics::DType;
use lathe_numerics::contract::gemm_slices;

use super::{NAME, Problem, stored_rows};
use crate::KernelError;
use crate::gemm::Epilogue;

/// How rows `min..=max` are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Fewest rows.
    pub min: u32,
    /// Most rows.
    pub max: u32,
    /// Which kernel.
    pub body: Body,
}

/// A kernel and its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Tensor cores.
    Mma(Tile),
    /// Plain multiply-adds in f32; tokens per thread, four threads' tokens per block, 64 features.
    Fma(usize),
}

/// A block of the tensor core kernel. All but `slices`, `stages`, `group` and `min_blocks` are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Features of a block.
    pub features: usize,
    /// Tokens of a block.
    pub tokens: usize,
    /// Features of a warp.
    pub warp_features: usize,
    /// Tokens of a warp.
    pub warp_tokens: usize,
    /// K slices of the weight.
    pub slices: usize,
    /// K slices that are summed at a time: all, by different warps, or one.
    pub parallel: usize,
    /// Columns of K in a stage, per slice.
    pub depth: usize,
    /// Stages of the ring.
    pub stages: usize,
    /// Token tiles that go round together.
    pub group: usize,
    /// Blocks per multiprocessor that registers must allow.
    pub min_blocks: usize,
}

/// Shared memory of a block that every supported architecture grants (99 KiB on sm_86, sm_89 and sm_120).
pub const MAX_SHARED: usize = 99 * 1024;
/// Ring of a block: two blocks fit an A100's multiprocessor, three an H200's.
pub(super) const RING: usize = 72 * 1024;
/// Ring of a block that has its multiprocessor to itself and must keep more under way.
const LONE_RING: usize = 96 * 1024;
/// Bytes of a stage: larger ones leave too few stages.
const STAGE: usize = 16 * 1024;
/// Bytes of a stage of depth 32 up to which all slices are summed at once.
const PARALLEL_STAGE: usize = 20 * 1024;
/// Token tiles in turn cover about this many rows: x of them stays in the second-level cache.
const GROUP_TOKENS: usize = 2048;
/// Upper ends of the ranges of rows with a kernel of their own.
const ENDS: [u32; 6] = [8, 16, 32, 64, 128, 384];

/// The reference device of the model: multiprocessors, GB/s of memory and of the second-level cache, GFLOP/s that
/// `mma.sync` reaches. An H200; no bit depends on it.
pub(super) const MULTIPROCESSORS: u64 = 132;
const MEMORY_RATE: u64 = 4300;
const CACHE_RATE: u64 = 5500;
const MMA_RATE: u64 = 500_000;

/// The configurations of a problem, by ascending rows; together they cover `1..=max_m` once.
pub fn choose(p: &Problem) -> Vec<Config> {
    let mut configs = Vec::new();
    let ends: &[u32] = if p.dtype == DType::F32 { &[4] } else { &ENDS };
    let mut min = 1;
    for end in ends.iter().copied().chain([u32::MAX]) {
        if min > p.max_m {
            break;
        }
        let max = end.min(p.max_m);
        let body = match p.dtype {
            DType::F32 => Body::Fma(if max <= 4 { 1 } else { 4 }),
            _ => Body::Mma(tile(p, max as usize)),
        };
        configs.push(Config { min, max, body });
        min = max.saturating_add(1);
    }
    configs
}

/// The tile for up to `most` rows: the cheapest by the model, of those within 3 % the one with the fewest features.
pub(super) fn tile(p: &Problem, most: usize) -> Tile {
    let rows = stored_rows(p.n, p.epilogue);
    let widest = rows.next_power_of_two().clamp(16, 128);
    let narrowest = narrowest(p.epilogue);
    let tokens = match most {
        0..=8 => &[8][..],
        9..=16 => &[16],
        17..=32 => &[32],
        33..=64 => &[32, 64],
        65..=384 => &[64, 128],
        _ => &[128, 256],
    };
    let mut tiles = Vec::new();
    for features in [16, 32, 64, 128].into_iter().filter(|f| (narrowest..=widest.max(narrowest)).contains(f))
    {
        let fits = |t: &&usize| **t <= 128 || gemm_slices(rows, p.k) == 1;
        let cost = |t| (picoseconds(rows, p.k, most, features, t), features, t);
        tiles.extend(tokens.iter().filter(fits).map(|t| cost(*t)));
    }
    let best = tiles.iter().map(|t| t.0).min().unwrap_or(0);
    let near = tiles.into_iter().find(|t| t.0 * 100 <= best * 103);
    let (_, features, tokens) = near.unwrap_or((0, narrowest, tokens[0]));
    detail(rows, p.k, most, features, tokens)
}

/// Fewest features of a tile: 16, and as many of gate and of up.
fn narrowest(epilogue: Epilogue) -> usize {
    if epilogue.is_gated() { 32 } else { 16 }
}

/// The tile for one of `experts` weights that are multiplied at once, with so many tokens of each.
pub(crate) fn grouped_tile(p: &Problem, experts: usize, tokens: usize) -> Tile {
    let rows = stored_rows(p.n, p.epilogue);
    let narrowest = narrowest(p.epilogue);
    let widest = rows.next_power_of_two().clamp(narrowest, 128);
    let fits = |f: &usize| (narrowest..=widest).contains(f);
    let cost = |f: &usize| (picoseconds(rows * experts, p.k, tokens, *f, tokens), *f);
    let features = [16, 32, 64, 128].into_iter().filter(fits).min_by_key(cost).unwrap_or(narrowest);
    detail(rows, p.k, tokens, features, tokens)
}

/// What the slowest of memory, second-level cache and tensor cores takes, with idle multiprocessors.
fn picoseconds(rows: usize, k: usize, most: usize, features: usize, tokens: usize) -> u64 {
    let blocks = (rows.div_ceil(features) * most.div_ceil(tokens)) as u64;
    let (k, rows) = (k as u64, rows as u64);
    let memory = 2 * rows * k * 1000 / MEMORY_RATE;
    let cache = 2 * blocks * (features + tokens.min(most)) as u64 * k * 1000 / CACHE_RATE;
    let mma = 2 * blocks * (features * tokens) as u64 * k * 1000 / MMA_RATE;
    memory.max(cache).max(mma) * MULTIPROCESSORS.max(blocks) / blocks.max(1)
}

/// The rest of a tile, given its sides.
pub(super) fn detail(rows: usize, k: usize, most: usize, features: usize, tokens: usize) -> Tile {
    let slices = gemm_slices(rows, k);
    let bytes = |parallel: usize, depth: usize| parallel * (features + tokens) * depth * 2;
    let parallel = if bytes(slices, 32) <= PARALLEL_STAGE { slices } else { 1 };
    let steps = |depth: usize| k.div_ceil(parallel * depth);
    let fits = |depth: &usize| bytes(parallel, *depth) <= STAGE && (*depth == 32 || steps(*depth) > 1);
    let depth = [128, 64].into_iter().find(fits).unwrap_or(32);
    let warp_tokens = if tokens == 256 { 64 } else { tokens.min(32) };
    let mut warp_features = if tokens >= 64 { features.min(32) } else { 16 };
    let warps = |warp_features| parallel * (features / warp_features) * (tokens / warp_tokens);
    while warps(warp_features) > 8 && warp_features < features.min(64) {
        warp_features *= 2;
    }
    // Sums of earlier slices take as many registers as the running ones: then one block is what fits.
    let one = parallel < slices || warps(warp_features) > 8 || warp_tokens == 64;
    let blocks = (rows.div_ceil(features) * most.div_ceil(tokens)) as u64;
    let ring = if one || blocks < 2 * MULTIPROCESSORS { LONE_RING } else { RING };
    let stages = (ring / bytes(parallel, depth)).min(steps(depth) + 1).clamp(2, 8);
    Tile {
        features,
        tokens,
        warp_features,
        warp_tokens,
        slices,
        parallel,
        depth,
        stages,
        group: (GROUP_TOKENS / tokens).min(most.div_ceil(tokens)),
        min_blocks: if one { 1 } else { 2 },
    }
}

impl Tile {
    /// Threads of a block.
    pub const fn threads(&self) -> usize {
        32 * self.parallel * (self.features / self.warp_features) * (self.tokens / self.warp_tokens)
    }

    /// Dynamic shared memory of a block in bytes: the ring, whose place the finished sums take.
    pub fn shared_bytes(&self) -> usize {
        self.ring_bytes().max(self.pass_bytes(self.pass_tokens()))
    }

    /// The same with `held` bytes of x behind a ring of weights alone.
    pub(super) fn shared_bytes_holding(&self, held: usize) -> usize {
        let ring = self.stages * self.parallel * self.features * self.depth * 2;
        (ring + held).max(self.pass_bytes(self.pass_tokens()))
    }

    /// Tokens whose finished sums are in shared memory at once.
    pub fn pass_tokens(&self) -> usize {
        let mut tokens = self.tokens;
        while self.pass_bytes(tokens) > MAX_SHARED && tokens > self.warp_tokens {
            tokens /= 2;
        }
        tokens
    }

    const fn ring_bytes(&self) -> usize {
        self.stages * self.parallel * (self.features + self.tokens) * self.depth * 2
    }

    const fn pass_bytes(&self, tokens: usize) -> usize {
        tokens * (self.features + 4) * 4
    }

    /// What device code asserts.
    ///
    /// # Errors
    /// `Unsupported` with what does not hold.
    pub fn check(&self, p: &Problem) -> Result<(), KernelError> {
        self.check_with(p, self.shared_bytes())
    }

    /// The same for a block of so much shared memory.
    pub(super) fn check_with(&self, p: &Problem, shared_bytes: usize) -> Result<(), KernelError> {
        let no =
            |what: &str| Err(KernelError::Unsupported { kernel: NAME, what: format!("{self:?}: {what}") });
        let powers =
            [self.features, self.tokens, self.warp_features, self.warp_tokens, self.depth, self.slices];
        if !powers.iter().all(|x| x.is_power_of_two()) {
            return no("sizes are powers of two");
        }
        let narrowest = narrowest(p.epilogue);
        if !(narrowest..=1024).contains(&self.features) || !(16..=self.features).contains(&self.warp_features)
        {
            return no(
                "a warp takes 16 features or more, and a block its whole warps and pairs of gate and up",
            );
        }
        if !(8..=1024).contains(&self.tokens) || !(8..=self.tokens).contains(&self.warp_tokens) {
            return no("a warp takes 8 tokens or more, and a block its whole warps");
        }
        if self.slices != gemm_slices(stored_rows(p.n, p.epilogue), p.k)
            || (self.parallel != 1 && self.parallel != self.slices)
        {
            return no("slices are the weight's, summed one at a time or all at once");
        }
        if !(32..=1024).contains(&self.depth)
            || !(2..=64).contains(&self.stages)
            || self.group == 0
            || self.min_blocks == 0
        {
            return no("stages are two or more, 32 columns or deeper");
        }
        if self.slices > 1 && !(p.k / self.slices).is_multiple_of(self.depth) {
            return no("a stage lies in one slice");
        }
        if self.threads() > 1024 || shared_bytes > MAX_SHARED {
            return no("a block has 1,024 threads and 99 KiB of shared memory at most");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lathe_device::Symbol;
    use lathe_numerics::Activation;

    use super::*;
    use crate::gemm::cases::{LLAMA_1B, WEIGHTS};

    fn problem(n: usize, k: usize, epilogue: Epilogue) -> Problem {
        Problem {
            m: Symbol::Tokens,
            max_m: 8192,
            n,
            k,
            dtype: DType::BF16,
            out: DType::BF16,
            epilogue,
            bias: false,
        }
    }

    fn all() -> Vec<Problem> {
        let llama_8b = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)];
        let small = [(1024, 1024), (1024, 4096), (2048, 65_536), (1, 1 << 20), (1 << 20, 1)];
        let shapes = WEIGHTS.iter().copied().chain(LLAMA_1B.iter().map(|(_, n, k)| (*n, *k)));
        shapes
            .chain(llama_8b)
            .chain(small)
            .flat_map(|(n, k)| {
                [
                    problem(n, k, Epilogue::Store),
                    problem(n.next_multiple_of(2), k, Epilogue::Glu(Activation::Silu)),
                ]
            })
            .collect()
    }

    fn tiles(p: &Problem) -> Vec<Tile> {
        let body = |c: Config| match c.body {
            Body::Mma(tile) => tile,
            Body::Fma(_) => panic!("no tensor cores for {p:?}"),
        };
        choose(p).into_iter().map(body).collect()
    }

    #[test]
    fn ranges_cover_every_row_count_once() {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            for max_m in [1, 4, 5, 8, 9, 128, 129, 384, 385, 8192, u32::MAX] {
                let p = Problem { max_m, dtype, ..problem(4096, 4096, Epilogue::Store) };
                let mut next = 1;
                for c in choose(&p) {
                    assert!(c.min == next && c.min <= c.max, "{max_m}: {c:?}");
                    next = c.max.wrapping_add(1);
                }
                assert_eq!(next, max_m.wrapping_add(1));
            }
        }
    }

    #[test]
    fn tiles_keep_what_the_kernel_asserts_and_registers_bear() {
        for p in all() {
            for t in tiles(&p) {
                assert_eq!(t.check(&p), Ok(()), "{p:?}");
                assert!(t.threads() <= 512, "{p:?} {t:?}");
                // Accumulators, and those of earlier slices, leave registers for the rest.
                let sums = t.warp_features * t.warp_tokens / 32 * if t.parallel < t.slices { 2 } else { 1 };
                assert!(sums <= 128 && (t.min_blocks == 1 || sums <= 64), "{p:?} {t:?}");
            }
        }
    }

    #[test]
    fn decode_keeps_enough_bytes_under_way() {
        // Little's law: 4.3 TB/s for about 0.8 us is 26 KiB per multiprocessor; twice that is wanted.
        for (n, k) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)] {
            let t = tiles(&problem(n, k, Epilogue::Store))[0];
            let stage = t.parallel * t.features * t.depth * 2;
            let blocks = n.div_ceil(t.features);
            let resident = (blocks as f64 / 132.0).min((227 * 1024 / (t.shared_bytes() + 1024)) as f64);
            let under_way = resident * ((t.stages - 1) * stage) as f64;
            assert!(under_way >= 40.0 * 1024.0, "{n}x{k}: {under_way} of {t:?}");
        }
    }

    #[test]
    fn wrong_tiles_are_refused() {
        let p = problem(64, 2048, Epilogue::Glu(Activation::Silu));
        let tile = tiles(&p)[0];
        let edits: &[fn(&mut Tile)] = &[
            |t| t.features = 16,
            |t| t.features = 48,
            |t| t.warp_features = 2 * t.features,
            |t| t.tokens = 4,
            |t| t.warp_tokens = 16,
            |t| t.slices = 2,
            |t| t.parallel = 2,
            |t| t.depth = 16,
            |t| t.depth = 1024,
            |t| t.stages = 1,
            |t| t.stages = 100,
            |t| t.group = 0,
            |t| t.min_blocks = 0,
            |t| (t.tokens, t.features) = (1024, 1024),
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut wrong = tile;
            edit(&mut wrong);
            assert!(wrong.check(&p).is_err(), "edit {i}");
        }
    }

    #[test]
    fn deep_and_narrow_weights_sum_slices_at_once() {
        let t = tiles(&problem(4096, 14336, Epilogue::Store));
        assert_eq!((t[0].slices, t[0].parallel), (2, 2));
        assert_eq!(t.last().unwrap().parallel, 1);
    }
}
