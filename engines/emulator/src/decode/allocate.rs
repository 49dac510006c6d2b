//! Registers to rows. NVRTC's PTX names every value once; values whose lives do not overlap share a row, so that a
//! warp's file stays in the cache.

use std::collections::{BTreeSet, HashMap};

use super::build::Built;
use super::op::{Op, Role};
use super::{Fixed, Instruction, Line};
use crate::exec::registers::Reg;
use crate::ptx::Class;

/// Operations on rows.
pub(super) struct Allocated {
    pub(super) instructions: Vec<Instruction>,
    pub(super) lines: Vec<Line>,
    pub(super) rows: u32,
    pub(super) preds: u32,
    pub(super) fixed: Vec<(Reg, Fixed)>,
    pub(super) undefined: Vec<Reg>,
    pub(super) undefined_preds: Vec<Reg>,
}

struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Self {
        Bits(vec![0; n.div_ceil(64)])
    }
    fn get(&self, i: u32) -> bool {
        self.0[i as usize / 64] >> (i % 64) & 1 == 1
    }
    fn set(&mut self, i: u32, on: bool) {
        let bit = 1 << (i % 64);
        let word = &mut self.0[i as usize / 64];
        *word = if on { *word | bit } else { *word & !bit };
    }
    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0
            .iter()
            .enumerate()
            .flat_map(|(w, bits)| (0..64).filter(move |b| bits >> b & 1 == 1).map(move |b| w as u32 * 64 + b))
    }
}

struct Block {
    start: usize,
    end: usize,
    next: Vec<usize>,
}

fn blocks(code: &[Instruction]) -> Vec<Block> {
    let mut starts = BTreeSet::from([0]);
    for (i, instruction) in code.iter().enumerate() {
        match &instruction.op {
            Op::Branch { target } => {
                starts.extend([*target as usize, i + 1]);
            }
            Op::BranchTable { targets, .. } => {
                starts.extend(targets.iter().map(|t| *t as usize));
                starts.insert(i + 1);
            }
            Op::Exit | Op::Trap => {
                starts.insert(i + 1);
            }
            _ => {}
        }
    }
    let starts: Vec<usize> = starts.into_iter().filter(|s| *s < code.len()).collect();
    let index: HashMap<usize, usize> = starts.iter().enumerate().map(|(i, s)| (*s, i)).collect();
    let block_at = |pc: usize| index.get(&pc).copied();
    let ends = starts.iter().skip(1).copied().chain([code.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| {
            let last = &code[end - 1];
            let falls = last.guard.is_some()
                || !matches!(last.op, Op::Branch { .. } | Op::BranchTable { .. } | Op::Exit | Op::Trap);
            let mut next: Vec<usize> = if falls { block_at(end).into_iter().collect() } else { Vec::new() };
            match &last.op {
                Op::Branch { target } => next.extend(block_at(*target as usize)),
                Op::BranchTable { targets, .. } => {
                    next.extend(targets.iter().filter_map(|t| block_at(*t as usize)));
                }
                _ => {}
            }
            Block { start: *start, end, next }
        })
        .collect()
}

/// Gives rows to registers and makes a kernel of the result.
pub(super) fn allocate<K>(mut built: Built, kernel: impl FnOnce(Allocated) -> K) -> K {
    let n = built.classes.len();
    // Per operation: what it reads and writes.
    let roles: Vec<Vec<(u32, Role)>> = built
        .instructions
        .iter_mut()
        .map(|instruction| {
            let mut found = Vec::new();
            if let Some((p, _)) = instruction.guard {
                found.push((p.0, Role::Use));
            }
            instruction.op.visit(&mut |r, role| {
                if !built.fixed.contains_key(r) {
                    found.push((r.0, role));
                }
            });
            found
        })
        .collect();
    let code = &built.instructions;
    let blocks = blocks(code);
    // A definition under a guard keeps the other lanes' values alive.
    let kills = |pc: usize| code[pc].guard.is_none();
    let mut live_in: Vec<Bits> = blocks.iter().map(|_| Bits::new(n)).collect();
    let live_out = |live_in: &[Bits], b: &Block| {
        let mut live = Bits::new(n);
        for next in &b.next {
            live.0.iter_mut().zip(&live_in[*next].0).for_each(|(a, b)| *a |= b);
        }
        live
    };
    let mut changed = true;
    while changed {
        changed = false;
        for (i, block) in blocks.iter().enumerate().rev() {
            let mut live = live_out(&live_in, block);
            for pc in (block.start..block.end).rev() {
                step_back(&roles[pc], kills(pc), &mut live);
            }
            if live.0 != live_in[i].0 {
                live_in[i] = live;
                changed = true;
            }
        }
    }
    // Lives as ranges of positions: an operation reads at `2 * pc` and writes at `2 * pc + 1`.
    let mut lives: Vec<Option<(u32, u32)>> = vec![None; n];
    let mut extend = |r: u32, at: usize| {
        let at = at as u32;
        let life = lives[r as usize].get_or_insert((at, at));
        *life = (life.0.min(at), life.1.max(at));
    };
    for (block, live) in blocks.iter().zip(&live_in) {
        live.iter().for_each(|r| extend(r, 2 * block.start));
        live_out(&live_in, block).iter().for_each(|r| extend(r, 2 * block.end));
        for pc in block.start..block.end {
            for (r, role) in &roles[pc] {
                let late = *role == Role::Def && code[pc].op.in_place();
                extend(*r, 2 * pc + usize::from(late));
                if *role == Role::Def {
                    extend(*r, 2 * pc + 1);
                }
            }
        }
    }
    let undefined: Vec<u32> = live_in.first().map(|live| live.iter().collect()).unwrap_or_default();
    let mut order: Vec<(u32, u32, u32)> = lives
        .iter()
        .enumerate()
        .filter_map(|(r, life)| life.map(|(start, end)| (start, end, r as u32)))
        .collect();
    order.sort_unstable();
    let mut places: HashMap<Reg, Reg> = HashMap::new();
    let (mut rows, mut preds) = (0, 0);
    // Per class: free places, and busy ones by the end of their values' lives.
    let mut free: [BTreeSet<u32>; 3] = Default::default();
    let mut busy: [BTreeSet<(u32, u32)>; 3] = Default::default();
    for (start, end, r) in order {
        let (pool, size) = match built.classes[r as usize] {
            Class::Pred => (0, 1),
            Class::B16 | Class::B32 => (1, 1),
            Class::B64 => (2, 2),
        };
        while let Some((over, place)) = busy[pool].first().copied().filter(|(over, _)| *over < start) {
            busy[pool].remove(&(over, place));
            free[pool].insert(place);
        }
        let place = free[pool].pop_first().unwrap_or_else(|| {
            let next = if pool == 0 { &mut preds } else { &mut rows };
            let place = *next;
            *next += size;
            place
        });
        busy[pool].insert((end, place));
        places.insert(Reg(r), Reg(place));
    }
    let mut fixed: Vec<(Reg, Fixed)> = built.fixed.iter().map(|(r, value)| (*r, *value)).collect();
    fixed.sort_unstable_by_key(|(r, _)| r.0);
    for (r, value) in &mut fixed {
        places.insert(*r, Reg(rows));
        *r = Reg(rows);
        rows += if value.wide() { 2 } else { 1 };
    }
    let place = |r: &mut Reg| {
        if let Some(place) = places.get(r) {
            *r = *place;
        }
    };
    for instruction in &mut built.instructions {
        if let Some((p, _)) = &mut instruction.guard {
            place(p);
        }
        instruction.op.visit(&mut |r, _| place(r));
    }
    let (undefined_preds, undefined): (Vec<u32>, Vec<u32>) =
        undefined.into_iter().partition(|r| built.classes[*r as usize] == Class::Pred);
    let placed = |ids: Vec<u32>| ids.into_iter().filter_map(|r| places.get(&Reg(r)).copied()).collect();
    kernel(Allocated {
        instructions: built.instructions,
        lines: built.lines,
        rows,
        preds,
        fixed,
        undefined: placed(undefined),
        undefined_preds: placed(undefined_preds),
    })
}

fn step_back(roles: &[(u32, Role)], kills: bool, live: &mut Bits) {
    if kills {
        for (r, role) in roles {
            if *role == Role::Def {
                live.set(*r, false);
            }
        }
    }
    for (r, role) in roles {
        if *role == Role::Use {
            live.set(*r, true);
        }
    }
    debug_assert!(roles.iter().all(|(r, role)| *role == Role::Def || live.get(*r)));
}
