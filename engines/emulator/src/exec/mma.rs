//! Matrix products of a warp as whole tiles of the host.

use super::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use super::registers::{Reg, Registers};

/// How a device adds up the products of one `mma`. Real devices differ from each other in bits no manual fixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MmaModel {
    /// Exact products, summed from zero in f32 by ascending k, the sum added to the accumulator.
    #[default]
    F32,
}

/// Elements of the factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmaType {
    /// bf16.
    BF16,
    /// f16.
    F16,
}

/// `d[16, 8] = a[16, k] * b[k, 8] + c[16, 8]` in the fragments of `mma.m16n8k8` and `k16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mma {
    /// Of `a` and `b`.
    pub of: MmaType,
    /// Accumulators are f16 pairs in two registers instead of four f32.
    pub half: bool,
    /// Eight columns of `a` to a pair of registers.
    pub a: Vec<Reg>,
    /// Eight rows of `b` to a register.
    pub b: Vec<Reg>,
    /// Accumulator before.
    pub c: Vec<Reg>,
    /// Accumulator after.
    pub d: Vec<Reg>,
    /// Order of summation.
    pub model: MmaModel,
}

/// A register as the 8x8 tile that it is: row `lane / 4`, columns `2 * (lane % 4)` and the next.
#[inline(always)]
fn tile(of: MmaType, regs: &Registers, r: Reg) -> [[f32; 8]; 8] {
    let words = regs.r32(r);
    let mut t = [[0f32; 8]; 8];
    for i in 0..64 {
        let bits = (words[i / 2] >> (16 * (i % 2))) as u16;
        t[i / 8][i % 8] = match of {
            MmaType::BF16 => bf16_to_f32(bits),
            MmaType::F16 => f16_to_f32(bits),
        };
    }
    t
}

#[inline(always)]
pub(super) fn run_any(op: &Mma, regs: &mut Registers) {
    match op.of {
        MmaType::BF16 => run_of(op, MmaType::BF16, regs),
        MmaType::F16 => run_of(op, MmaType::F16, regs),
    }
}

#[inline(always)]
fn run_of(op: &Mma, of: MmaType, regs: &mut Registers) {
    let MmaModel::F32 = op.model;
    let mut sums = [[0f32; 8]; 16];
    for (step, b) in op.b.iter().enumerate() {
        let transposed = tile(of, regs, *b);
        let mut b = [[0f32; 8]; 8];
        for k in 0..8 {
            for n in 0..8 {
                b[k][n] = transposed[n][k];
            }
        }
        for half in 0..2 {
            let a = tile(of, regs, op.a[2 * step + half]);
            for row in 0..8 {
                let sum = &mut sums[8 * half + row];
                for k in 0..8 {
                    for n in 0..8 {
                        sum[n] = a[row][k].mul_add(b[k][n], sum[n]);
                    }
                }
            }
        }
    }
    // All of `c` is read before any of `d` is written: the registers may be the same in another order.
    let mut out = [[0u32; 32]; 4];
    for half in 0..2 {
        // Lane `4 * row + pair` holds columns `2 * pair` and the next of a row.
        if op.half {
            let c = regs.r32(op.c[half]);
            for l in 0..32 {
                let sum = |i: usize, bits: u32| {
                    u32::from(f32_to_f16(f16_to_f32(bits as u16) + sums[8 * half + l / 4][2 * (l % 4) + i]))
                };
                out[half][l] = sum(0, c[l]) | sum(1, c[l] >> 16) << 16;
            }
        } else {
            for i in 0..2 {
                let c = regs.r32(op.c[2 * half + i]);
                for l in 0..32 {
                    out[2 * half + i][l] =
                        (f32::from_bits(c[l]) + sums[8 * half + l / 4][2 * (l % 4) + i]).to_bits();
                }
            }
        }
    }
    for (d, out) in op.d.iter().zip(&out) {
        *regs.r32_mut(*d) = *out;
    }
}
