//! Sixteen f32 in two registers of AVX2, with FMA and F16C: of 16 registers, a part takes 12 for sums, two for weights, one
//! for x.

use std::arch::x86_64::*;

use lathe_numerics::DType;

use crate::Element;
use crate::sixteen::{Product, Sixteen};

/// The first eight and the last.
pub(crate) type Registers = [__m256; 2];

impl Sixteen for Registers {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: passed on.
        [unsafe { _mm256_setzero_ps() }; 2]
    }

    #[inline(always)]
    unsafe fn load<T: Element>(at: *const T) -> Self {
        // SAFETY: passed on.
        unsafe { [eight(at), eight(at.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_half(at: *const u32, upper: bool) -> Self {
        // SAFETY: passed on.
        unsafe { [half(at, upper), half(at.add(8), upper)] }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: passed on.
        unsafe {
            _mm256_storeu_ps(to, self[0]);
            _mm256_storeu_ps(to.add(8), self[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_add_ps(self[0], other[0]), _mm256_add_ps(self[1], other[1])] }
    }

    #[inline(always)]
    unsafe fn add_product(self, x: f32, w: Self) -> Self {
        // SAFETY: passed on.
        unsafe {
            let x = _mm256_set1_ps(x);
            [_mm256_fmadd_ps(x, w[0], self[0]), _mm256_fmadd_ps(x, w[1], self[1])]
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn part<const R: usize, const P: usize>(product: &impl Product, row: usize, panel: usize) {
        // SAFETY: passed on.
        unsafe { product.part::<Self, R, P>(row, panel) }
    }
}

/// # Safety
/// As `load`, of eight.
#[inline(always)]
unsafe fn eight<T: Element>(at: *const T) -> __m256 {
    // SAFETY: passed on.
    unsafe {
        match T::DTYPE {
            DType::BF16 => {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            }
            DType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _ => _mm256_loadu_ps(at.cast()),
        }
    }
}

/// # Safety
/// As `load_half`, of eight.
#[inline(always)]
unsafe fn half(at: *const u32, upper: bool) -> __m256 {
    // SAFETY: passed on.
    unsafe {
        let words = _mm256_loadu_si256(at.cast());
        _mm256_castsi256_ps(if upper {
            _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32))
        } else {
            _mm256_slli_epi32::<16>(words)
        })
    }
}
