//! Registers of a warp, lanes side by side.

use crate::monitor::LANES;

/// A register: before allocation an id, afterwards a row of the warp's file (two rows for 64 bits) or a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(pub u32);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Row([u32; LANES]);

/// The rows of a warp's registers.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// A 32-bit register.
    #[inline(always)]
    pub fn r32(&self, r: Reg) -> &[u32; LANES] {
        &self.0[r.0 as usize].0
    }

    /// A 64-bit register.
    #[inline(always)]
    pub fn r64(&self, r: Reg) -> &[u64; LANES] {
        let rows = &self.0[r.0 as usize..r.0 as usize + 2];
        // SAFETY: two adjacent rows are 64 u32 without padding (the size of a row is a multiple of its alignment).
        unsafe { &*rows.as_ptr().cast::<[u64; LANES]>() }
    }
}

/// Where lane functions leave results before the lanes that act take them.
#[derive(Clone, Debug, Default)]
pub struct Out {
    narrow: [u32; LANES],
    wide: [u64; LANES],
}

/// The registers of one warp and their taint.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    pub(super) rows: Rows,
    pub(super) out: Out,
    preds: Vec<u32>,
    taint: Vec<u32>,
    pred_taint: Vec<u32>,
}

impl Registers {
    /// `rows` rows and `preds` predicates, all zero; taint only where `checked`.
    pub fn new(rows: usize, preds: usize, checked: bool) -> Self {
        Registers {
            rows: Rows(vec![Row([0; LANES]); rows]),
            out: Out::default(),
            preds: vec![0; preds],
            taint: vec![0; if checked { rows } else { 0 }],
            pred_taint: vec![0; if checked { preds } else { 0 }],
        }
    }

    /// Copies everything; the sizes are equal.
    pub fn copy_from(&mut self, other: &Registers) {
        self.rows.0.clone_from(&other.rows.0);
        self.preds.clone_from(&other.preds);
        self.taint.clone_from(&other.taint);
        self.pred_taint.clone_from(&other.pred_taint);
    }

    /// A 32-bit register.
    #[inline(always)]
    pub fn r32(&self, r: Reg) -> &[u32; LANES] {
        self.rows.r32(r)
    }

    /// A 32-bit register.
    #[inline(always)]
    pub fn r32_mut(&mut self, r: Reg) -> &mut [u32; LANES] {
        &mut self.rows.0[r.0 as usize].0
    }

    /// A 64-bit register.
    #[inline(always)]
    pub fn r64(&self, r: Reg) -> &[u64; LANES] {
        self.rows.r64(r)
    }

    /// A 64-bit register.
    #[inline(always)]
    pub fn r64_mut(&mut self, r: Reg) -> &mut [u64; LANES] {
        let rows = &mut self.rows.0[r.0 as usize..r.0 as usize + 2];
        // SAFETY: as in `r64`; the borrow is unique.
        unsafe { &mut *rows.as_mut_ptr().cast::<[u64; LANES]>() }
    }

    /// The lanes of `mask` take what a lane function left.
    #[inline(always)]
    pub(super) fn take(&mut self, d: Reg, wide: bool, mask: u32) {
        if wide {
            let values = self.out.wide;
            u64::put(self.r64_mut(d), mask, &values);
        } else {
            let values = self.out.narrow;
            u32::put(self.r32_mut(d), mask, &values);
        }
    }

    /// A predicate, one bit per lane.
    #[inline(always)]
    pub fn pred(&self, r: Reg) -> u32 {
        self.preds[r.0 as usize]
    }

    /// Sets the lanes of `mask`.
    #[inline(always)]
    pub fn set_pred(&mut self, r: Reg, mask: u32, lanes: u32) {
        let p = &mut self.preds[r.0 as usize];
        *p = (*p & !mask) | (lanes & mask);
    }

    /// Lanes in which a register is tainted.
    #[inline(always)]
    pub fn taint(&self, r: Reg) -> u32 {
        self.taint[r.0 as usize]
    }

    /// Sets the taint of the lanes of `mask`.
    #[inline(always)]
    pub fn set_taint(&mut self, r: Reg, mask: u32, lanes: u32) {
        let t = &mut self.taint[r.0 as usize];
        *t = (*t & !mask) | (lanes & mask);
    }

    /// Lanes in which a predicate is tainted.
    #[inline(always)]
    pub fn pred_taint(&self, r: Reg) -> u32 {
        self.pred_taint[r.0 as usize]
    }

    /// Sets the taint of the lanes of `mask`.
    #[inline(always)]
    pub fn set_pred_taint(&mut self, r: Reg, mask: u32, lanes: u32) {
        let t = &mut self.pred_taint[r.0 as usize];
        *t = (*t & !mask) | (lanes & mask);
    }
}

/// Bits of a lane: 32 or 64.
pub trait Bits: Copy + Default {
    /// 64 bits.
    const WIDE: bool;
    /// The register's lanes.
    fn read(rows: &Rows, r: Reg) -> &[Self; LANES];
    /// The results of this width.
    fn out(out: &mut Out) -> &mut [Self; LANES];
    /// Writes the lanes of `mask`.
    fn put(to: &mut [Self; LANES], mask: u32, values: &[Self; LANES]);
}

macro_rules! bits {
    ($t:ty, $wide:literal, $get:ident, $out:ident) => {
        impl Bits for $t {
            const WIDE: bool = $wide;
            #[inline(always)]
            fn read(rows: &Rows, r: Reg) -> &[Self; LANES] {
                rows.$get(r)
            }
            #[inline(always)]
            fn out(out: &mut Out) -> &mut [Self; LANES] {
                &mut out.$out
            }
            #[inline(always)]
            fn put(to: &mut [Self; LANES], mask: u32, values: &[Self; LANES]) {
                if mask == u32::MAX {
                    *to = *values;
                } else {
                    for l in 0..LANES {
                        to[l] = if mask >> l & 1 == 1 { values[l] } else { to[l] };
                    }
                }
            }
        }
    };
}
bits!(u32, false, r32, narrow);
bits!(u64, true, r64, wide);

/// A type that lanes can be read as.
pub trait Lane: Copy {
    /// The register's bits.
    type Raw: Bits;
    /// From bits.
    fn of(raw: Self::Raw) -> Self;
    /// To bits.
    fn raw(self) -> Self::Raw;
}

macro_rules! lane {
    ($($t:ty : $raw:ty, $x:ident => $of:expr, $y:ident => $to:expr;)*) => {$(
        impl Lane for $t {
            type Raw = $raw;
            #[inline(always)]
            fn of($x: $raw) -> Self { $of }
            #[inline(always)]
            fn raw(self) -> $raw { let $y = self; $to }
        }
    )*};
}
lane! {
    u32: u32, x => x, y => y;
    i32: u32, x => x as i32, y => y as u32;
    f32: u32, x => f32::from_bits(x), y => y.to_bits();
    u16: u32, x => x as u16, y => u32::from(y);
    i16: u32, x => x as i16, y => u32::from(y as u16);
    u8: u32, x => x as u8, y => u32::from(y);
    i8: u32, x => x as i8, y => u32::from(y as u8);
    u64: u64, x => x, y => y;
    i64: u64, x => x as i64, y => y as u64;
    f64: u64, x => f64::from_bits(x), y => y.to_bits();
}
