//! Who writes what before whom: no launch reads bytes that were not written in the same step.

use std::collections::BTreeMap;

use super::program::upper;
use super::{VerifyError, device};
use crate::schema::{Launch, Operand, Place, Program, Target};

/// Names a launch in errors.
pub(super) fn place(p: &Program, index: usize, l: &Launch) -> String {
    format!("program {}: launch {index} {} {}", p.name, l.kernel, l.node)
}

/// An operand's bytes in the arena at the symbols' bounds; smaller symbols touch a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    buffer: u32,
    start: u128,
    end: u128,
    /// Bytes between rows.
    stride: u128,
    /// Bytes touched of each row.
    width: u128,
}

impl Region {
    /// `None` where the operand is not a buffer. The operand was checked.
    pub(super) fn of(p: &Program, o: &Operand) -> Option<Region> {
        let Place::Buffer(index) = o.place else { return None };
        let buffer = p.buffers.get(index as usize)?;
        let size = o.dtype.size() as u128;
        let rows = upper(&o.rows, &p.symbols);
        let (stride, width) = (u128::from(o.row_stride) * size, u128::from(o.cols) * size);
        let start = u128::from(buffer.offset) + u128::from(o.col_offset) * size;
        let end = if rows == 0 { start } else { start + (rows - 1) * stride + width };
        Some(Region { buffer: index, start, end, stride, width })
    }

    fn overlaps(&self, other: &Region) -> bool {
        if self.start >= other.end || other.start >= self.end {
            return false;
        }
        if self.stride != other.stride {
            return true;
        }
        // Rows of one matrix: columns that are apart in one row are apart in all.
        let (first, second) = if self.start <= other.start { (self, other) } else { (other, self) };
        let distance = (second.start - first.start) % self.stride;
        distance < first.width || distance + second.width > self.stride
    }
}

/// Follows the launches of one program.
pub(super) struct Tracker<'a> {
    program: &'a Program,
    /// Buffers whose bytes are as their last writer left them.
    intact: Vec<bool>,
    /// Arena ranges of intact buffers by start: end and buffer. They never overlap.
    ranges: BTreeMap<u128, (u128, u32)>,
}

impl<'a> Tracker<'a> {
    pub(super) fn new(program: &'a Program) -> Self {
        Tracker { program, intact: vec![false; program.buffers.len()], ranges: BTreeMap::new() }
    }

    pub(super) fn launch(&mut self, index: usize, l: &Launch) -> Result<(), VerifyError> {
        let p = self.program;
        let regions = |operands: &[Operand]| -> Vec<Option<Region>> {
            operands.iter().map(|o| Region::of(p, o)).collect()
        };
        let (inputs, outputs) = (regions(&l.inputs), regions(&l.outputs));
        for (i, region) in inputs.iter().enumerate() {
            if let Some(region) = region {
                self.read(region, || format!("{} input {i}", place(p, index, l)))?;
            }
        }
        for (o, out) in outputs.iter().enumerate() {
            let Some(out) = out else { continue };
            let at = || format!("{} output {o}", place(p, index, l));
            if outputs[..o].iter().flatten().any(|other| out.overlaps(other)) {
                return Err(VerifyError::OutputsOverlap { at: at() });
            }
            for (i, input) in inputs.iter().enumerate() {
                let Some(input) = input else { continue };
                if out.overlaps(input) && !in_place(l, i, o, input, out) {
                    return Err(VerifyError::OutputOverInput { at: at() });
                }
            }
        }
        for out in outputs.iter().flatten() {
            self.write(out.buffer);
        }
        // Workspace holds nothing for anyone else.
        if p.target != Target::Cpu {
            let own = device::results(&l.kernel).unwrap_or(outputs.len());
            for out in outputs.iter().skip(own).flatten() {
                self.intact[out.buffer as usize] = false;
            }
        }
        Ok(())
    }

    pub(super) fn read(&self, region: &Region, at: impl Fn() -> String) -> Result<(), VerifyError> {
        match self.intact.get(region.buffer as usize) {
            Some(true) => Ok(()),
            _ => Err(VerifyError::ReadUnwritten { at: at() }),
        }
    }

    /// Marks the buffer as written and all others that share bytes with it as lost.
    fn write(&mut self, buffer: u32) {
        let b = &self.program.buffers[buffer as usize];
        let start = u128::from(b.offset);
        let bytes = upper(&b.rows, &self.program.symbols) * u128::from(b.cols) * b.dtype.size() as u128;
        let end = start + bytes;
        // Ranges do not overlap, so those that meet this one end with the last that starts before its end.
        while let Some((&other_start, &(other_end, other))) = self.ranges.range(..end).next_back() {
            if other_end <= start {
                break;
            }
            self.ranges.remove(&other_start);
            self.intact[other as usize] = false;
        }
        if bytes > 0 {
            self.ranges.insert(start, (end, buffer));
        }
        self.intact[buffer as usize] = true;
    }
}

/// The one case of reading and writing the same bytes: `add_rms_norm` puts the sum where the residual was.
fn in_place(l: &Launch, input: usize, output: usize, read: &Region, written: &Region) -> bool {
    l.kernel == "add_rms_norm"
        && (input, output) == (1, 0)
        && l.inputs[input].dtype == l.outputs[output].dtype
        && l.inputs[input].rows == l.outputs[output].rows
        && (read.start, read.end, read.stride, read.width)
            == (written.start, written.end, written.stride, written.width)
}
