//! AVX-512 tiles. Accumulators stay in registers; x is broadcast from its packed form. No software prefetch: panels are
//! plain forward streams, and asking for lines ahead was slower at every distance (NOTES.md).

use std::arch::x86_64::*;

use super::tile::{Kind, LINE, TileArgs};

macro_rules! dispatch {
    ($f:ident, $rows:expr, $panels:expr, $args:expr; $(($r:literal, $p:literal)),*) => {
        match ($rows, $panels) {
            $(($r, $p) => $f::<$r, $p>($args),)*
            _ => unreachable!("tile of {} rows and {} panels", $rows, $panels),
        }
    };
}

macro_rules! shapes {
    ($f:ident, $rows:expr, $panels:expr, $args:expr) => {
        dispatch!($f, $rows, $panels, $args;
            (1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (3, 4),
            (4, 1), (4, 2), (4, 3), (4, 4), (5, 1), (5, 2), (5, 3), (5, 4), (6, 1), (6, 2), (6, 3), (6, 4),
            (7, 1), (7, 2), (8, 1), (8, 2), (9, 1), (9, 2), (10, 1), (10, 2), (11, 1), (11, 2), (12, 1), (12, 2))
    };
}

/// # Safety
/// As `tile::run`, on a machine with the features below.
pub(super) unsafe fn run(kind: Kind, rows: usize, panels: usize, args: &TileArgs) {
    // SAFETY: passed on.
    unsafe {
        match kind {
            Kind::Bf16Pairs => shapes!(bf16_pairs, rows, panels, args),
            Kind::Bf16Wide => shapes!(bf16_wide, rows, panels, args),
            Kind::F16 => shapes!(f16, rows, panels, args),
            Kind::F32 => shapes!(f32, rows, panels, args),
        }
    }
}

/// Sums to begin with. A macro, as is `store`: a function that is not inlined would take all sums through memory, and one
/// with target features cannot be told to be.
macro_rules! load {
    ($a:expr) => {{
        let mut c = [[_mm512_setzero_ps(); P]; R];
        if let Some(from) = $a.from {
            for r in 0..R {
                for p in 0..P {
                    c[r][p] = _mm512_loadu_ps(from.add((r * P + p) * 16));
                }
            }
        }
        c
    }};
}

macro_rules! store {
    ($a:expr, $c:expr) => {
        for r in 0..R {
            for p in 0..P {
                let to = $a.to.add(r * $a.to_stride + p * 16);
                let sum = if $a.add { _mm512_add_ps(_mm512_loadu_ps(to), $c[r][p]) } else { $c[r][p] };
                _mm512_storeu_ps(to, sum);
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c,fma")]
unsafe fn bf16_pairs<const R: usize, const P: usize>(a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut c = load!(a);
        for s in 0..a.steps {
            let x = a.x.add(s / LINE * R * LINE + s % LINE).cast::<i32>();
            let mut w = [_mm512_setzero_si512(); P];
            for p in 0..P {
                w[p] = _mm512_loadu_si512(a.w[p].add(s * 64).cast());
            }
            if let Some(ahead) = &a.ahead {
                for p in 0..P {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.at[p].wrapping_add(s * ahead.stride).cast());
                }
            }
            for r in 0..R {
                let v = _mm512_set1_epi32(*x.add(r * LINE));
                for p in 0..P {
                    c[r][p] = _mm512_dpbf16_ps(c[r][p], pairs(w[p]), pairs(v));
                }
            }
        }
        store!(a, c);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 plain bytes.
    unsafe { std::mem::transmute(v) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c,fma")]
unsafe fn bf16_wide<const R: usize, const P: usize>(a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut c = load!(a);
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for s in 0..a.steps {
            let x = a.x.add(2 * s / LINE * R * LINE + 2 * s % LINE);
            for odd in 0..2 {
                let mut w = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    let v = _mm512_loadu_si512(a.w[p].add(s * 64).cast());
                    w[p] = _mm512_castsi512_ps(if odd == 0 {
                        _mm512_slli_epi32::<16>(v)
                    } else {
                        _mm512_and_si512(v, upper)
                    });
                }
                for r in 0..R {
                    let v = _mm512_set1_ps(*x.add(r * LINE + odd));
                    for p in 0..P {
                        c[r][p] = _mm512_fmadd_ps(v, w[p], c[r][p]);
                    }
                }
            }
        }
        store!(a, c);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c,fma")]
unsafe fn f16<const R: usize, const P: usize>(a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut c = load!(a);
        for s in 0..a.steps {
            let x = a.x.add(s / LINE * R * LINE + s % LINE);
            let mut w = [_mm512_setzero_ps(); P];
            for p in 0..P {
                w[p] = _mm512_cvtph_ps(_mm256_loadu_si256(a.w[p].add(s * 32).cast()));
            }
            for r in 0..R {
                let v = _mm512_set1_ps(*x.add(r * LINE));
                for p in 0..P {
                    c[r][p] = _mm512_fmadd_ps(v, w[p], c[r][p]);
                }
            }
        }
        store!(a, c);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c,fma")]
unsafe fn f32<const R: usize, const P: usize>(a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut c = load!(a);
        for s in 0..a.steps {
            let x = a.x.add(s / LINE * R * LINE + s % LINE);
            let mut w = [_mm512_setzero_ps(); P];
            for p in 0..P {
                w[p] = _mm512_loadu_ps(a.w[p].add(s * 64).cast());
            }
            for r in 0..R {
                let v = _mm512_set1_ps(*x.add(r * LINE));
                for p in 0..P {
                    c[r][p] = _mm512_fmadd_ps(v, w[p], c[r][p]);
                }
            }
        }
        store!(a, c);
    }
}
