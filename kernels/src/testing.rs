//! Test data: seeded values of every dtype, buffers by dtype, and ways to run a problem.

use half::{bf16, f16};
use lathe_numerics::DType;
use lathe_numerics::philox::philox4x32;

use crate::{Dst, Element, Kernel, Src};

/// Uniform values in -1..1, rounded to `dtype`.
pub fn values(seed: u32, n: usize, dtype: DType) -> Vec<f32> {
    (0..n.div_ceil(4))
        .flat_map(|i| philox4x32([i as u32, 0, 0, 0], [seed, 7]))
        .map(|w| dtype.round((w >> 8) as f32 / 8_388_608.0 - 1.0))
        .take(n)
        .collect()
}

/// An owned buffer of one dtype.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Buffer {
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::BF16 => Buffer::BF16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
            DType::F16 => Buffer::F16(values.iter().map(|v| f16::from_f32(*v)).collect()),
            _ => Buffer::F32(values.to_vec()),
        }
    }

    pub fn zeros(dtype: DType, n: usize) -> Self {
        Self::new(dtype, &vec![0.0; n])
    }

    pub fn src(&self) -> Src<'_> {
        match self {
            Buffer::F32(v) => v.as_slice().into(),
            Buffer::F16(v) => v.as_slice().into(),
            Buffer::BF16(v) => v.as_slice().into(),
        }
    }

    pub fn dst(&mut self) -> Dst<'_> {
        match self {
            Buffer::F32(v) => v.as_mut_slice().into(),
            Buffer::F16(v) => v.as_mut_slice().into(),
            Buffer::BF16(v) => v.as_mut_slice().into(),
        }
    }

    pub fn f32(&self) -> Vec<f32> {
        match self {
            Buffer::F32(v) => v.clone(),
            Buffer::F16(v) => v.iter().map(|x| Element::to_f32(*x)).collect(),
            Buffer::BF16(v) => v.iter().map(|x| Element::to_f32(*x)).collect(),
        }
    }

    /// Bit patterns, to compare NaN too.
    pub fn bits(&self) -> Vec<u32> {
        self.f32().iter().map(|v| v.to_bits()).collect()
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Buffer::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Buffer::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Buffer::BF16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// All float dtypes.
pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// How to cut a problem's units.
#[derive(Clone, Copy, Debug)]
pub enum Split {
    /// One call.
    Whole,
    /// One call per `n` units, last first, scratch full of NaN each time.
    Pieces(usize),
    /// That many threads, contiguous ranges.
    Threads(usize),
}

/// Runs all units of a problem.
pub fn run(kernel: &dyn Kernel, split: Split) {
    let units = kernel.units();
    let scratch = || vec![f32::NAN; kernel.scratch_len()];
    match split {
        // SAFETY: tests hold all buffers and run each unit once.
        Split::Whole => unsafe { kernel.run(0..units, &mut scratch()) },
        Split::Pieces(n) => {
            let mut end = units;
            while end > 0 {
                let start = end.saturating_sub(n);
                // SAFETY: as above.
                unsafe { kernel.run(start..end, &mut scratch()) };
                end = start;
            }
        }
        Split::Threads(n) => std::thread::scope(|s| {
            for t in 0..n {
                // SAFETY: as above; ranges are disjoint.
                s.spawn(move || unsafe {
                    kernel.run(units * t / n..units * (t + 1) / n, &mut vec![f32::NAN; kernel.scratch_len()])
                });
            }
        }),
    }
}

/// Every way to cut that tests try.
pub const SPLITS: [Split; 4] = [Split::Whole, Split::Pieces(1), Split::Pieces(7), Split::Threads(3)];
