//! The memory plan: every activation buffer gets a place in one arena, from lifetimes at the symbols' upper bounds.
//!
//! Needs: a selected program whose launches stand in their final order. Gives: `Buffer::offset`, `Program::arena_bytes`.
//! Offsets are found greedily, largest buffer first (Pisarchyk and Lee 2020, arXiv 2001.03288): within a few percent of
//! the lower bound on decoder graphs, and a pure function of the program.

use lathe_kernels::{attention, gemm, rope_append};
use lathe_plan::schema::{Launch, Operand, Place, Program};

use crate::error::{CompileError, Result};

/// Alignment of buffers in the arena: one cache line, one AVX-512 register.
pub const ALIGNMENT: u64 = 64;

/// What the memory plan did, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaReport {
    /// Bytes of the arena.
    pub bytes: u64,
    /// Bytes if no two buffers shared a place.
    pub unshared_bytes: u64,
    /// Residual sums that are written over their residual.
    pub in_place: usize,
}

/// Launch indices, inclusive at both ends, during which a buffer's bytes are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Size.
    pub bytes: u64,
    /// Launch that writes it.
    pub first: usize,
    /// Last launch that reads it.
    pub last: usize,
}

/// Fills offsets and `arena_bytes`.
///
/// # Errors
/// A buffer that is read before it is written, or sizes beyond `u64`: bugs of selection.
pub fn plan_arena(program: &mut Program) -> Result<ArenaReport> {
    let in_place = share_residuals(program);
    let lifetimes = lifetimes(program)?;
    let (offsets, bytes) = place(&lifetimes);
    for (buffer, offset) in program.buffers.iter_mut().zip(offsets) {
        buffer.offset = offset;
    }
    program.arena_bytes = bytes;
    let unshared_bytes = lifetimes.iter().map(|l| l.bytes.next_multiple_of(ALIGNMENT)).sum();
    Ok(ArenaReport { bytes, unshared_bytes, in_place })
}

/// Bytes of scratch that each worker thread needs, on whatever instruction set the plan is run.
pub fn scratch_bytes(program: &Program) -> u64 {
    let elements =
        program.launches.iter().map(|launch| match (launch.kernel.as_str(), launch.inputs.first()) {
            ("gemm", Some(x)) => {
                let rows = x.rows.max(&program.symbols).unwrap_or(u64::MAX);
                gemm::scratch_bound(usize::try_from(rows).unwrap_or(usize::MAX), x.cols as usize)
            }
            ("expert_gemm", Some(x)) => {
                // An expert is chosen by each row once at most.
                let rows = x.rows.max(&program.symbols).unwrap_or(u64::MAX);
                let depth = launch.inputs.get(3).map_or(0, |weight| weight.cols);
                gemm::scratch_bound(usize::try_from(rows).unwrap_or(usize::MAX), depth as usize)
            }
            ("attention", _) => {
                let size = |name| launch.int(name).unwrap_or(0) as usize;
                attention::max_scratch_len(size("heads"), size("kv_heads"), size("head_dim"))
            }
            ("rope_append" | "rope", _) => {
                rope_append::max_scratch_len(launch.int("head_dim").unwrap_or(0) as usize)
            }
            _ => 0,
        });
    (elements.max().unwrap_or(0) * size_of::<f32>()) as u64
}

/// `add_rms_norm` may write its sum over its residual. Where the residual dies there, both become one buffer.
fn share_residuals(program: &mut Program) -> usize {
    let mut shared = 0;
    for at in 0..program.launches.len() {
        let launch = &program.launches[at];
        if launch.kernel != "add_rms_norm" {
            continue;
        }
        let (Some(delta), Some(residual)) =
            (buffer_of(launch.inputs.first()), buffer_of(launch.inputs.get(1)))
        else {
            continue;
        };
        let Some(sum) = buffer_of(launch.outputs.first()) else { continue };
        let read_later = program.launches[at + 1..].iter().any(|l| reads(l, residual));
        if read_later
            || delta == residual
            || sum == residual
            || buffer_of(Some(&program.logits)) == Some(residual)
        {
            continue;
        }
        let (a, b) = (&program.buffers[sum as usize], &program.buffers[residual as usize]);
        if (a.dtype, &a.rows, a.cols) != (b.dtype, &b.rows, b.cols) {
            continue;
        }
        replace_buffer(program, sum, residual);
        shared += 1;
    }
    shared
}

/// Redirects every operand from buffer `old` to buffer `new` and drops `old` from the table.
fn replace_buffer(program: &mut Program, old: u32, new: u32) {
    let redirect = |operand: &mut Operand| {
        if let Place::Buffer(index) = &mut operand.place {
            if *index == old {
                *index = new;
            }
            *index -= u32::from(*index > old);
        }
    };
    for launch in &mut program.launches {
        launch.inputs.iter_mut().chain(&mut launch.outputs).for_each(redirect);
    }
    redirect(&mut program.logits);
    program.buffers.remove(old as usize);
}

fn buffer_of(operand: Option<&Operand>) -> Option<u32> {
    match operand?.place {
        Place::Buffer(index) => Some(index),
        _ => None,
    }
}

fn reads(launch: &Launch, buffer: u32) -> bool {
    launch.inputs.iter().any(|o| buffer_of(Some(o)) == Some(buffer))
}

fn lifetimes(program: &Program) -> Result<Vec<Lifetime>> {
    let mut found: Vec<Option<Lifetime>> = vec![None; program.buffers.len()];
    for (at, launch) in program.launches.iter().enumerate() {
        for index in launch.inputs.iter().filter_map(|o| buffer_of(Some(o))) {
            match &mut found[index as usize] {
                Some(lifetime) => lifetime.last = at,
                None => {
                    let name = &program.buffers[index as usize].name;
                    return Err(CompileError::Bug(format!(
                        "{}: reads %{name} before it is written",
                        launch.node
                    )));
                }
            }
        }
        for index in launch.outputs.iter().filter_map(|o| buffer_of(Some(o))) {
            let buffer = &program.buffers[index as usize];
            let bytes = buffer.max_bytes(&program.symbols).ok_or_else(|| {
                CompileError::unsupported(
                    format!("size of %{}", buffer.name),
                    "it exceeds 64 bits at the limits",
                )
            })?;
            let lifetime = found[index as usize].get_or_insert(Lifetime { bytes, first: at, last: at });
            lifetime.last = at;
        }
    }
    // The logits are read after the last launch.
    if let Some(index) = buffer_of(Some(&program.logits))
        && let Some(lifetime) = &mut found[index as usize]
    {
        lifetime.last = program.launches.len();
    }
    let unwritten =
        |i: usize| CompileError::Bug(format!("buffer %{} is never written", program.buffers[i].name));
    found.into_iter().enumerate().map(|(i, l)| l.ok_or_else(|| unwritten(i))).collect()
}

/// Offsets for lifetimes, and the bytes they need: largest first, each at the lowest offset that is free for its whole
/// life; ties go to the earlier, then to the lower index.
pub fn place(lifetimes: &[Lifetime]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
    let mut offsets = vec![0; lifetimes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let mine = lifetimes[i];
        let size = mine.bytes.next_multiple_of(ALIGNMENT);
        let mut offset = 0;
        // `placed` is sorted by offset, so the first gap that fits is the lowest.
        for &other in &placed {
            let theirs = lifetimes[other];
            if theirs.last < mine.first || mine.last < theirs.first {
                continue;
            }
            if offset + size <= offsets[other] {
                break;
            }
            offset = offset.max(offsets[other] + theirs.bytes.next_multiple_of(ALIGNMENT));
        }
        offsets[i] = offset;
        let at = placed.partition_point(|&p| (offsets[p], p) < (offset, i));
        placed.insert(at, i);
        total = total.max(offset + size);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life(bytes: u64, first: usize, last: usize) -> Lifetime {
        Lifetime { bytes, first, last }
    }

    #[test]
    fn buffers_that_never_meet_share_bytes() {
        let (offsets, bytes) = place(&[life(128, 0, 1), life(64, 1, 2), life(128, 2, 3)]);
        assert_eq!((offsets, bytes), (vec![0, 128, 0], 192));
    }

    #[test]
    fn a_gap_is_used() {
        let (offsets, bytes) =
            place(&[life(256, 0, 4), life(128, 0, 1), life(192, 2, 4), life(64, 1, 1), life(1, 3, 3)]);
        assert_eq!((offsets, bytes), (vec![0, 256, 256, 384, 448], 512));
    }

    proptest! {
        #[test]
        fn living_buffers_never_overlap(
            raw in proptest::collection::vec((1u64..5000, 0usize..20, 0usize..6), 1..40)
        ) {
            let lives: Vec<_> = raw.iter().map(|&(bytes, first, len)| life(bytes, first, first + len)).collect();
            let (offsets, total) = place(&lives);
            for (i, a) in lives.iter().enumerate() {
                prop_assert_eq!(offsets[i] % ALIGNMENT, 0);
                prop_assert!(offsets[i] + a.bytes <= total);
                for (j, b) in lives.iter().enumerate().skip(i + 1) {
                    let meet = a.first <= b.last && b.first <= a.last;
                    let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                    prop_assert!(!(meet && overlap), "{} and {}", i, j);
                }
            }
        }
    }
}
