//! One block: its warps run in lockstep, lanes that part ways meet again at the lowest place any of them is at.

use rand::Rng;
use rand::rngs::SmallRng;

use super::registers::{Reg, Registers};
use super::{Launch, describe};
use crate::decode::op::{Op, PredLogic};
use crate::decode::{Fixed, Special};
use crate::fault::Fault;
use crate::monitor::{At, BlockMonitor, Finding, LANES, SHARED_START, Use};

/// How far a block came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All threads have exited.
    Done,
    /// It waits for the launch before it (`griddepcontrol.wait`).
    WaitsForLaunch,
}

/// Why lanes do not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    None,
    /// At a barrier of the block.
    Barrier(u32),
    /// Before an instruction that wants these lanes.
    Lanes(u32),
    /// For the launch before this one.
    Launch,
}

/// Lanes of a warp that are at the same place.
#[derive(Clone, Copy, Debug)]
struct Group {
    pc: u32,
    mask: u32,
    wait: Wait,
}

/// A warp.
#[derive(Debug, Default)]
struct Warp {
    regs: Registers,
    groups: Vec<Group>,
    alive: u32,
    executed: u64,
    /// Instructions, whatever the lanes.
    steps: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Barrier {
    arrived: u32,
    /// As the arrivals said; 0 stands for all threads of the block.
    expected: u32,
}

/// Memory that blocks use one after the other.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    warps: Vec<Warp>,
    shared: Vec<u8>,
    local: Vec<u8>,
}

/// What an instruction means for its lanes.
pub(super) enum Flow {
    Next,
    Jump(u32),
    /// Lane by lane.
    Scatter(Box<[u32; LANES]>),
    Exit,
    Barrier {
        id: u32,
        threads: u32,
        waits: bool,
    },
    /// Not executed: other lanes must come first.
    Lanes(u32),
    WaitForLaunch,
}

/// What an instruction must not do.
pub(super) struct Stop {
    pub(super) finding: Finding,
}

impl From<Finding> for Stop {
    fn from(finding: Finding) -> Self {
        Stop { finding }
    }
}

impl Stop {
    pub(super) fn new(lane: u32, what: impl Into<String>) -> Self {
        Stop { finding: Finding { lane, what: what.into(), address: None } }
    }
}

/// What instructions of a warp work with.
pub(super) struct Cx<'b, 'l, B> {
    pub(super) launch: &'b Launch<'l>,
    pub(super) regs: &'b mut Registers,
    pub(super) shared: &'b mut [u8],
    /// Memory of the warp's threads, one after the other.
    pub(super) local: &'b mut [u8],
    pub(super) monitor: &'b mut B,
    /// An allocation that was met last: start and length.
    pub(super) near: &'b mut (u64, u64),
    pub(super) checked: bool,
}

pub(super) struct Block<'l, B> {
    launch: &'l Launch<'l>,
    index: [u32; 3],
    monitor: B,
    checked: bool,
    scratch: Scratch,
    n_warps: usize,
    barriers: [Barrier; 16],
    near: (u64, u64),
    chance: Option<SmallRng>,
    /// `griddepcontrol.wait` waits.
    early: bool,
}

impl Group {
    /// Lanes that are further on wait for these to join them. Who waits for the launch before does so too: code behind
    /// the wait counts on its lanes being together.
    fn holds_others(&self) -> bool {
        matches!(self.wait, Wait::None | Wait::Launch)
    }
}

impl Warp {
    /// The group to run, if one can: the one furthest back.
    fn first(&self) -> Option<usize> {
        let candidates = self.groups.iter().enumerate().filter(|(_, g)| g.holds_others());
        let (i, group) = candidates.min_by_key(|(_, g)| (g.pc, g.wait == Wait::None))?;
        (group.wait == Wait::None).then_some(i)
    }
}

impl<'l, B: BlockMonitor> Block<'l, B> {
    pub(super) fn new(
        launch: &'l Launch<'l>,
        index: [u32; 3],
        number: u64,
        monitor: B,
        template: &Registers,
        mut scratch: Scratch,
        checked: bool,
        early: bool,
    ) -> Self {
        let n_warps = launch.threads.div_ceil(LANES as u32) as usize;
        let shared = launch.shared_end() as usize;
        scratch.shared.clear();
        // What nobody wrote reads as a pattern: as a float NaN, as an index far outside.
        scratch.shared.resize(shared.next_multiple_of(16), 0xff);
        scratch.local.clear();
        scratch.local.resize(launch.kernel.local_bytes as usize * LANES * n_warps, 0xff);
        scratch.warps.resize_with(n_warps, Warp::default);
        for (w, warp) in scratch.warps.iter_mut().enumerate() {
            warp.regs.copy_from(template);
            let threads = launch.threads - (w * LANES) as u32;
            warp.alive = if threads >= 32 { u32::MAX } else { (1 << threads) - 1 };
            warp.groups.clear();
            warp.groups.push(Group { pc: 0, mask: warp.alive, wait: Wait::None });
            warp.executed = 0;
            warp.steps = 0;
            for (r, value) in &launch.kernel.fixed {
                if let Fixed::Special(special) = value {
                    own_special(*special, launch, index, number, w as u32, warp.regs.r32_mut(*r));
                }
            }
        }
        Block {
            launch,
            index,
            monitor,
            checked,
            scratch,
            n_warps,
            barriers: Default::default(),
            near: (1, 0),
            chance: launch.chance(number),
            early,
        }
    }

    pub(super) fn into_scratch(self) -> Scratch {
        self.scratch
    }

    pub(super) fn thread_instructions(&self) -> u64 {
        self.scratch.warps.iter().map(|w| w.executed).sum()
    }

    /// The launch before has ended.
    pub(super) fn launch_ended(&mut self) {
        self.early = false;
        for warp in &mut self.scratch.warps {
            for group in warp.groups.iter_mut().filter(|g| g.wait == Wait::Launch) {
                group.wait = Wait::None;
            }
        }
    }

    /// Runs until all threads have exited or wait for the launch before.
    pub(super) fn run(&mut self) -> Result<Progress, Fault> {
        let mut turn = 0;
        loop {
            let ready = |warp: &Warp| warp.first().is_some();
            let w = if let Some(rng) = &mut self.chance {
                let runnable = self.scratch.warps.iter().filter(|w| ready(w)).count();
                if runnable == 0 {
                    None
                } else {
                    let nth = rng.random_range(0..runnable);
                    self.scratch.warps.iter().enumerate().filter(|(_, w)| ready(w)).map(|(i, _)| i).nth(nth)
                }
            } else {
                (0..self.n_warps).map(|i| (turn + i) % self.n_warps).find(|i| ready(&self.scratch.warps[*i]))
            };
            let Some(w) = w else { return self.standstill() };
            turn = w;
            let quantum = match &mut self.chance {
                Some(rng) => rng.random_range(1..=32),
                None => u64::MAX,
            };
            self.run_warp(w, quantum)?;
        }
    }

    fn standstill(&mut self) -> Result<Progress, Fault> {
        if self.scratch.warps.iter().all(|w| w.groups.is_empty()) {
            return match self.monitor.end() {
                Ok(()) => Ok(Progress::Done),
                Err(finding) => Err(self.fault(0, None, Stop { finding })),
            };
        }
        if self.scratch.warps.iter().any(|w| w.groups.iter().any(|g| g.wait == Wait::Launch)) {
            return Ok(Progress::WaitsForLaunch);
        }
        let mut waiting = Vec::new();
        let mut words = Vec::new();
        for (w, warp) in self.scratch.warps.iter().enumerate() {
            for group in &warp.groups {
                let (what, id, pc) = match group.wait {
                    Wait::Barrier(id) => (format!("barrier {id}"), id, group.pc.saturating_sub(1)),
                    Wait::Lanes(members) => {
                        let missing = members & warp.alive & !group.mask;
                        (format!("lanes {missing:#x} of its warp"), u32::MAX, group.pc)
                    }
                    Wait::None | Wait::Launch => continue,
                };
                waiting.push((At { pc, warp: w as u32, mask: group.mask, alive: warp.alive }, id));
                words.push((w as u32, *group, pc, what));
            }
        }
        if let Err(finding) = self.monitor.stuck(&waiting) {
            let (warp, pc) = waiting.first().map_or((0, 0), |(at, _)| (at.warp, at.pc));
            return Err(self.fault(warp, Some(pc), Stop { finding }));
        }
        let Some((warp, group, pc, _)) = words.first() else { return Ok(Progress::Done) };
        let mut text = String::from("deadlock: no warp can go on; ");
        for (i, (warp, group, pc, what)) in words.iter().take(4).enumerate() {
            let place = self.launch.kernel.place(*pc);
            let lanes =
                if group.mask == u32::MAX { String::new() } else { format!(" lanes {:#x}", group.mask) };
            text +=
                &format!("{}warp {warp}{lanes} waits for {what} at {place}", if i > 0 { "; " } else { "" });
        }
        if words.len() > 4 {
            text += &format!("; and {} more", words.len() - 4);
        }
        let stop = Stop::new(group.mask.trailing_zeros(), text);
        Err(self.fault(*warp, Some(*pc), stop))
    }

    fn fault(&self, warp: u32, pc: Option<u32>, stop: Stop) -> Fault {
        let Finding { lane, what, address } = stop.finding;
        let address = address.map(|(space, at)| describe(self.launch, space, at)).unwrap_or_default();
        self.launch.fault(self.index, pc, warp * LANES as u32 + lane, what, address)
    }

    /// Runs a warp until it has to wait, has exited or has used up `quantum` instructions.
    fn run_warp(&mut self, w: usize, quantum: u64) -> Result<(), Fault> {
        let most = self.launch.most_instructions;
        let mut left = quantum.min(most);
        while left > 0 {
            self.join_lanes(w);
            let warp = &mut self.scratch.warps[w];
            let Some(i) = warp.first() else { return Ok(()) };
            let group = warp.groups.swap_remove(i);
            let mut pc = group.pc;
            let before = left;
            let result = self.run_group(w, group, &mut left, &mut pc);
            self.scratch.warps[w].steps += before - left;
            if let Err(stop) = result {
                return Err(self.fault(w as u32, Some(pc), stop));
            }
            if self.scratch.warps[w].steps >= most {
                let what = format!("does not end: a warp has executed {most} instructions");
                return Err(self.fault(w as u32, Some(pc), Stop::new(0, what)));
            }
        }
        Ok(())
    }

    /// Unites groups at the same place and lets those go on whose lanes have all come.
    fn join_lanes(&mut self, w: usize) {
        let warp = &mut self.scratch.warps[w];
        if warp.groups.len() < 2 && warp.groups.iter().all(|g| g.wait == Wait::None) {
            return;
        }
        let mut i = 0;
        while i < warp.groups.len() {
            let mut j = i + 1;
            while j < warp.groups.len() {
                let (a, b) = (warp.groups[i], warp.groups[j]);
                if a.pc == b.pc && a.wait == b.wait && !matches!(a.wait, Wait::Barrier(_)) {
                    warp.groups[i].mask |= b.mask;
                    warp.groups.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
        let is_sync = |pc: u32| matches!(self.launch.kernel.code[pc as usize].op, Op::WarpSync { .. });
        for i in 0..warp.groups.len() {
            let Group { pc, wait: Wait::Lanes(members), .. } = warp.groups[i] else { continue };
            let fellows =
                |g: &Group| g.wait == Wait::Lanes(members) && (g.pc == pc || (is_sync(pc) && is_sync(g.pc)));
            let come = warp.groups.iter().filter(|g| fellows(g)).fold(0, |m, g| m | g.mask);
            if members & warp.alive & !come != 0 {
                continue;
            }
            for j in 0..warp.groups.len() {
                if fellows(&warp.groups[j]) {
                    let group = &mut warp.groups[j];
                    group.wait = Wait::None;
                    if is_sync(group.pc) {
                        let at = At { pc: group.pc, warp: w as u32, mask: come, alive: warp.alive };
                        self.monitor.warp_sync(at);
                        group.pc += 1;
                    }
                }
            }
        }
    }

    /// Runs lanes that are together until they part, wait, exit or meet others. `last` is where a fault happened.
    fn run_group(&mut self, w: usize, group: Group, left: &mut u64, last: &mut u32) -> Result<(), Stop> {
        let launch = self.launch;
        let code = &launch.kernel.code;
        let Group { mut pc, mask, .. } = group;
        let warp = &mut self.scratch.warps[w];
        let meet = warp.groups.iter().filter(|g| g.holds_others()).map(|g| g.pc).min().unwrap_or(u32::MAX);
        let per_warp = launch.kernel.local_bytes as usize * LANES;
        let mut cx = Cx {
            launch,
            regs: &mut warp.regs,
            shared: &mut self.scratch.shared,
            local: &mut self.scratch.local[w * per_warp..(w + 1) * per_warp],
            monitor: &mut self.monitor,
            near: &mut self.near,
            checked: self.checked,
        };
        let lanes = u64::from(mask.count_ones());
        loop {
            if *left == 0 || pc >= meet {
                warp.groups.push(Group { pc, mask, wait: Wait::None });
                return Ok(());
            }
            *left -= 1;
            *last = pc;
            let instruction = &code[pc as usize];
            let mut act = mask;
            if let Some((p, negated)) = instruction.guard {
                let holds = cx.regs.pred(p);
                act &= if negated { !holds } else { holds };
                if cx.checked {
                    let taint = cx.regs.pred_taint(p) & mask;
                    if taint != 0 {
                        let at = At { pc, warp: w as u32, mask, alive: warp.alive };
                        cx.monitor.tainted(at, taint, Use::Predicate)?;
                    }
                }
                if act == 0 {
                    pc += 1;
                    continue;
                }
                warp.executed += u64::from(act.count_ones());
            } else {
                warp.executed += lanes;
            }
            let flow = match &instruction.op {
                Op::Alu { op, d, s } => {
                    launch.isa.apply(*op, cx.regs, *d, *s, act);
                    if cx.checked {
                        let taint = s.iter().fold(0, |t, s| t | cx.regs.taint(*s));
                        cx.regs.set_taint(*d, act, taint);
                    }
                    pc += 1;
                    continue;
                }
                op => cx.step(op, At { pc, warp: w as u32, mask: act, alive: warp.alive })?,
            };
            let rest = mask & !act;
            let mut push = |pc, mask, wait| {
                if mask != 0 {
                    warp.groups.push(Group { pc, mask, wait });
                }
            };
            match flow {
                Flow::Next => {
                    pc += 1;
                    continue;
                }
                Flow::Jump(target) if rest == 0 => {
                    pc = target;
                    continue;
                }
                Flow::Jump(target) => {
                    push(target, act, Wait::None);
                    push(pc + 1, rest, Wait::None);
                }
                Flow::Scatter(targets) => {
                    push(pc + 1, rest, Wait::None);
                    let mut todo = act;
                    while todo != 0 {
                        let target = targets[todo.trailing_zeros() as usize];
                        let same = (0..LANES).filter(|l| todo >> l & 1 == 1 && targets[*l] == target);
                        let same = same.fold(0, |m, l| m | 1 << l);
                        push(target, same, Wait::None);
                        todo &= !same;
                    }
                }
                Flow::Exit => {
                    push(pc + 1, rest, Wait::None);
                    warp.alive &= !act;
                    self.open_barriers();
                }
                Flow::Barrier { id, threads, waits } => {
                    if waits {
                        push(pc + 1, act, Wait::Barrier(id));
                        push(pc + 1, rest, Wait::None);
                    } else {
                        push(pc + 1, mask, Wait::None);
                    }
                    let barrier = &mut self.barriers[id as usize];
                    if barrier.arrived > 0 && barrier.expected != threads {
                        let what = format!(
                            "barrier {id} is for {threads} threads here and for {} elsewhere (0 stands for all)",
                            barrier.expected
                        );
                        return Err(Stop::new(act.trailing_zeros(), what));
                    }
                    barrier.expected = threads;
                    barrier.arrived += act.count_ones();
                    self.open_barriers();
                }
                Flow::Lanes(members) => {
                    warp.executed -= u64::from(act.count_ones());
                    push(pc, act, Wait::Lanes(members));
                    push(pc + 1, rest, Wait::None);
                }
                Flow::WaitForLaunch => {
                    let wait = if self.early { Wait::Launch } else { Wait::None };
                    push(pc + 1, act, wait);
                    push(pc + 1, rest, Wait::None);
                }
            }
            return Ok(());
        }
    }

    /// Opens the barriers whose threads have all arrived.
    fn open_barriers(&mut self) {
        let alive: u32 = self.scratch.warps.iter().map(|w| w.alive.count_ones()).sum();
        for id in 0..self.barriers.len() {
            let Barrier { arrived, expected } = self.barriers[id];
            let wanted = if expected == 0 { alive } else { expected };
            if arrived == 0 || arrived < wanted {
                continue;
            }
            self.barriers[id] = Barrier::default();
            self.monitor.release(id as u32);
            for warp in &mut self.scratch.warps {
                for group in warp.groups.iter_mut().filter(|g| g.wait == Wait::Barrier(id as u32)) {
                    group.wait = Wait::None;
                }
            }
        }
    }
}

fn own_special(
    special: Special,
    launch: &Launch<'_>,
    index: [u32; 3],
    number: u64,
    warp: u32,
    to: &mut [u32; LANES],
) {
    for (l, value) in to.iter_mut().enumerate() {
        let lane = l as u32;
        *value = match special {
            Special::Tid(0) => warp * LANES as u32 + lane,
            Special::Tid(_) => 0,
            Special::Ctaid(i) => index[usize::from(i)],
            Special::LaneId => lane,
            Special::WarpId => warp,
            Special::SmId => (number % u64::from(launch.sm_count.max(1))) as u32,
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLt => (1 << lane) - 1,
            Special::LaneMaskLe => u32::MAX >> (31 - lane),
            Special::LaneMaskGe => u32::MAX << lane,
            Special::LaneMaskGt => !(u32::MAX >> (31 - lane)),
            _ => return,
        };
    }
}

impl<B: BlockMonitor> Cx<'_, '_, B> {
    /// Executes one operation that is not of the lane table.
    fn step(&mut self, op: &Op, at: At) -> Result<Flow, Stop> {
        let mask = at.mask;
        let isa = self.launch.isa;
        match op {
            Op::Alu { op, d, s } => {
                isa.apply(*op, self.regs, *d, *s, mask);
                self.spread(*d, s, mask);
            }
            Op::Lop3 { d, s, table } => {
                isa.lop3(*table, self.regs, *d, *s, mask);
                self.spread(*d, s, mask);
            }
            Op::Bfi { wide, d, s } => {
                self.bfi(*wide, *d, s, mask);
                self.spread(*d, s, mask);
            }
            Op::Compare { cmp, of, p, q, a, b, with } => {
                let lanes = isa.compare(*cmp, *of, self.regs, *a, *b);
                let mut taint = if self.checked { self.regs.taint(*a) | self.regs.taint(*b) } else { 0 };
                let (mut yes, mut no) = (lanes, !lanes);
                if let Some((logic, other, negated)) = with {
                    let other_lanes = self.regs.pred(*other) ^ if *negated { u32::MAX } else { 0 };
                    yes = combine(*logic, lanes, other_lanes);
                    no = combine(*logic, !lanes, other_lanes);
                    if self.checked {
                        taint |= self.regs.pred_taint(*other);
                    }
                }
                self.regs.set_pred(*p, mask, yes);
                if let Some(q) = q {
                    self.regs.set_pred(*q, mask, no);
                }
                if self.checked {
                    self.regs.set_pred_taint(*p, mask, taint);
                    if let Some(q) = q {
                        self.regs.set_pred_taint(*q, mask, taint);
                    }
                }
            }
            Op::Logic { op, d, a, b } => {
                let of = |(r, negated): (Reg, bool)| self.regs.pred(r) ^ if negated { u32::MAX } else { 0 };
                let lanes = combine(*op, of(*a), of(*b));
                self.regs.set_pred(*d, mask, lanes);
                if self.checked {
                    let taint = self.regs.pred_taint(a.0) | self.regs.pred_taint(b.0);
                    self.regs.set_pred_taint(*d, mask, taint);
                }
            }
            Op::SetPred { d, value } => {
                self.regs.set_pred(*d, mask, if *value { u32::MAX } else { 0 });
                if self.checked {
                    self.regs.set_pred_taint(*d, mask, 0);
                }
            }
            Op::IsSpace { d, a, window } => {
                let lanes = self.in_window(*window, *a);
                self.regs.set_pred(*d, mask, lanes);
                if self.checked {
                    let taint = self.regs.taint(*a);
                    self.regs.set_pred_taint(*d, mask, taint);
                }
            }
            Op::Select { wide, d, a, b, p } => {
                let pred = self.regs.pred(p.0) ^ if p.1 { u32::MAX } else { 0 };
                let taint = if self.checked {
                    let picked = (self.regs.taint(*a) & pred) | (self.regs.taint(*b) & !pred);
                    picked | self.regs.pred_taint(p.0)
                } else {
                    0
                };
                isa.select(*wide, self.regs, *d, *a, *b, pred, mask);
                if self.checked {
                    self.regs.set_taint(*d, mask, taint);
                }
            }
            Op::Branch { target } => return Ok(Flow::Jump(*target)),
            Op::BranchTable { index, targets } => return self.branch_table(*index, targets, at),
            Op::Exit => {
                self.monitor.exit(at)?;
                return Ok(Flow::Exit);
            }
            Op::Trap => return Err(Stop::new(mask.trailing_zeros(), "trap")),
            Op::Load(memory) => self.load(memory, at)?,
            Op::Store(memory) => self.store(memory, at)?,
            Op::Atomic(atomic) => self.atomic(atomic, at)?,
            Op::CopyAsync(copy) => self.copy_async(copy, at)?,
            Op::CopyCommit => self.monitor.copy_commit(at),
            Op::CopyWait(pending) => self.monitor.copy_wait(at, *pending),
            Op::Matrix(matrix) => {
                if let Some(missing) = self.missing(u32::MAX, at) {
                    return Ok(missing);
                }
                self.matrix(matrix, at)?;
            }
            Op::Mma(mma) => {
                if let Some(missing) = self.missing(u32::MAX, at) {
                    return Ok(missing);
                }
                self.whole_warp(at, "mma")?;
                self.monitor.warp_sync(at);
                isa.mma(mma, self.regs);
                if self.checked {
                    self.mma_taint(mma);
                }
            }
            Op::Shuffle(shuffle) => {
                let members = self.members(shuffle.members, at)?;
                if let Some(missing) = self.missing(members, at) {
                    return Ok(missing);
                }
                self.monitor.warp_sync(at);
                self.shuffle(shuffle, at);
            }
            Op::Vote { mode, d, a, members } => {
                let members = self.members(*members, at)?;
                if let Some(missing) = self.missing(members, at) {
                    return Ok(missing);
                }
                self.monitor.warp_sync(at);
                self.vote(*mode, *d, *a, members, at);
            }
            Op::Match { all, wide, d, p, a, members } => {
                let members = self.members(*members, at)?;
                if let Some(missing) = self.missing(members, at) {
                    return Ok(missing);
                }
                self.monitor.warp_sync(at);
                self.matching(*all, *wide, *d, *p, *a, at);
            }
            Op::Redux { kind, d, a, members } => {
                let members = self.members(*members, at)?;
                if let Some(missing) = self.missing(members, at) {
                    return Ok(missing);
                }
                self.monitor.warp_sync(at);
                self.redux(*kind, *d, *a, at);
            }
            Op::Elect { d, p, members } => {
                let members = self.members(*members, at)?;
                if let Some(missing) = self.missing(members, at) {
                    return Ok(missing);
                }
                let leader = mask.trailing_zeros();
                self.regs.set_pred(*p, mask, 1 << leader);
                if let Some(d) = d {
                    self.write32(*d, mask, [leader; LANES]);
                }
                if self.checked {
                    self.regs.set_pred_taint(*p, mask, 0);
                }
            }
            Op::ActiveMask { d } => self.write32(*d, mask, [mask; LANES]),
            Op::Barrier { id, threads, waits, aligned } => {
                return self.barrier(*id, *threads, *waits, *aligned, at);
            }
            Op::WarpSync { members } => {
                let members = self.members(*members, at)?;
                if let Some(missing) = self.missing(members, at) {
                    return Ok(missing);
                }
                self.monitor.warp_sync(at);
            }
            Op::Fence { device_wide } => {
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                self.monitor.fence(at, *device_wide);
            }
            Op::DependencyWait => {
                self.monitor.dependency_wait(at);
                return Ok(Flow::WaitForLaunch);
            }
            Op::LaunchDependents => self.monitor.launch_dependents(at),
            Op::Clock { wide, d } => {
                // A clock that only goes forward: what it shows must not change results.
                if *wide {
                    *self.regs.r64_mut(*d) = [u64::from(at.pc); LANES];
                } else {
                    *self.regs.r32_mut(*d) = [at.pc; LANES];
                }
                if self.checked {
                    self.regs.set_taint(*d, mask, 0);
                }
            }
            Op::Nop => {}
        }
        Ok(Flow::Next)
    }

    /// The result depends on what its sources depend on.
    pub(super) fn spread(&mut self, d: Reg, s: &[Reg], mask: u32) {
        if self.checked {
            let taint = s.iter().fold(0, |t, s| t | self.regs.taint(*s));
            self.regs.set_taint(d, mask, taint);
        }
    }

    fn barrier(
        &mut self,
        id: Reg,
        threads: Option<Reg>,
        waits: bool,
        aligned: bool,
        at: At,
    ) -> Result<Flow, Stop> {
        let lane = at.mask.trailing_zeros();
        let number = self.regs.r32(id)[lane as usize];
        if number >= 16 {
            return Err(Stop::new(lane, format!("there is no barrier {number}")));
        }
        let wanted = match threads {
            Some(r) => self.regs.r32(r)[lane as usize],
            None => 0,
        };
        if threads.is_some() && (wanted == 0 || wanted % 32 != 0 || wanted > self.launch.threads) {
            return Err(Stop::new(lane, format!("barrier {number} for {wanted} threads")));
        }
        let expected = if wanted == 0 { self.launch.threads } else { wanted };
        self.monitor.arrive(at, number, expected, waits, aligned)?;
        Ok(Flow::Barrier { id: number, threads: wanted, waits })
    }

    fn branch_table(&mut self, index: Reg, targets: &[u32], at: At) -> Result<Flow, Stop> {
        if self.checked {
            let taint = self.regs.taint(index) & at.mask;
            if taint != 0 {
                self.monitor.tainted(at, taint, Use::Predicate)?;
            }
        }
        let indices = self.regs.r32(index);
        let mut to = Box::new([0; LANES]);
        for l in (0..LANES).filter(|l| at.mask >> l & 1 == 1) {
            let Some(target) = targets.get(indices[l] as usize) else {
                return Err(Stop::new(l as u32, format!("branch {} of {}", indices[l], targets.len())));
            };
            to[l] = *target;
        }
        Ok(Flow::Scatter(to))
    }

    /// The lanes that must take part.
    fn members(&mut self, r: Reg, at: At) -> Result<u32, Stop> {
        let lane = at.mask.trailing_zeros();
        let members = self.regs.r32(r)[lane as usize];
        if members & at.mask != at.mask {
            let outside = (at.mask & !members).trailing_zeros();
            return Err(Stop::new(outside, format!("lane is not in its own member mask {members:#x}")));
        }
        Ok(members)
    }

    fn missing(&self, members: u32, at: At) -> Option<Flow> {
        if members & at.alive & !at.mask == 0 { None } else { Some(Flow::Lanes(members)) }
    }

    pub(super) fn whole_warp(&self, at: At, what: &str) -> Result<(), Stop> {
        if at.mask == u32::MAX {
            return Ok(());
        }
        let lane = at.mask.trailing_zeros();
        Err(Stop::new(lane, format!("{what} with lanes {:#x} only, the others have exited", at.mask)))
    }

    pub(super) fn write32(&mut self, d: Reg, mask: u32, values: [u32; LANES]) {
        use super::registers::Bits;
        u32::put(self.regs.r32_mut(d), mask, &values);
        if self.checked {
            self.regs.set_taint(d, mask, 0);
        }
    }
}

fn combine(logic: PredLogic, a: u32, b: u32) -> u32 {
    match logic {
        PredLogic::And => a & b,
        PredLogic::Or => a | b,
        PredLogic::Xor => a ^ b,
        PredLogic::Mov => a,
    }
}

/// Bytes of shared memory below a block's own: never readable.
pub(super) const SYSTEM_SHARED: u64 = SHARED_START as u64;
