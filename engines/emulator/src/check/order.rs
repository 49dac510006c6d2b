//! What happens before what: segments, vector clocks of warps, fences, and the order of launches.
//!
//! A warp's clock ticks at every synchronisation that it takes part in; a segment is what one warp does during one tick.
//! Warps of a block are ordered by barriers: at release each takes over what all have known at arrival. Blocks of a launch
//! are ordered only by fence, strong access, strong access of the same address, fence. Launches are ordered by the stream,
//! dependent ones from their wait on.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::record::{Party, SEGMENT_END};
use super::shadow::{Relation, Viewpoint};

const BATCH: u32 = 16;

/// Warp and clock of each segment of a batch.
type Batch = Arc<[AtomicU32; BATCH as usize]>;

/// Clocks of a block's warps, as somebody knows them.
type Clocks = Vec<u32>;

fn pack(warp: usize, clock: u32) -> u32 {
    clock << 5 | warp as u32
}

fn unpack(bits: u32) -> (usize, u32) {
    ((bits & 31) as usize, bits >> 5)
}

/// Whose a segment is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its launch.
    pub launch: Arc<LaunchOrder>,
    /// Its block, counted x first.
    pub block: u32,
    /// Its warp.
    pub warp: usize,
    clock: u32,
}

#[derive(Debug)]
struct Given {
    launch: Arc<LaunchOrder>,
    block: u32,
    batch: Batch,
}

#[derive(Debug, Default)]
struct Table {
    /// Number of the first batch kept.
    first: u32,
    given: VecDeque<Given>,
}

/// Hands segment numbers out and knows their owners for as long as they may matter.
#[derive(Debug, Default)]
pub struct Segments {
    table: RwLock<Table>,
}

impl Segments {
    /// The next number, larger than all before.
    pub fn next(&self) -> u32 {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        (table.first + table.given.len() as u32 + 1) * BATCH
    }

    /// Forgets owners of segments below `floor`: nobody will ask for them.
    pub fn settle(&self, floor: u32) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let over = (floor / BATCH).saturating_sub(table.first + 1) as usize;
        let over = over.min(table.given.len());
        table.given.drain(..over);
        table.first += over as u32;
    }

    /// True if numbers are about to run out.
    pub fn run_out(&self) -> bool {
        self.next() > SEGMENT_END / 4 * 3
    }

    /// Numbers start again. No record may hold one.
    pub fn restart(&self) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Table::default();
    }

    fn give(&self, launch: &Arc<LaunchOrder>, block: u32) -> (u32, Batch) {
        let batch = Batch::default();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.given.push_back(Given { launch: launch.clone(), block, batch: batch.clone() });
        // One launch cannot use up a quarter of all numbers in the time that anybody waits for it; should it, the last
        // number is shared and races among its users are lost.
        let number = (table.first + table.given.len() as u32).min(SEGMENT_END / BATCH - 1);
        (number * BATCH, batch)
    }

    /// Whose a segment is, `None` if its launch is long over.
    pub fn owner(&self, segment: u32) -> Option<Owner> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let i = (segment / BATCH).checked_sub(table.first + 1)?;
        let given = table.given.get(i as usize)?;
        let (warp, clock) = unpack(given.batch[(segment % BATCH) as usize].load(Ordering::Relaxed));
        Some(Owner { launch: given.launch.clone(), block: given.block, warp, clock })
    }
}

/// What is known of other blocks: per block the clocks up to which its accesses happened before.
#[derive(Clone, Debug, Default)]
struct Known(HashMap<u32, Clocks>);

impl Known {
    fn join(&mut self, other: &Known) {
        for (block, clocks) in &other.0 {
            join(self.0.entry(*block).or_default(), clocks);
        }
    }

    fn holds(&self, block: u32, warp: usize, clock: u32) -> bool {
        self.0.get(&block).and_then(|c| c.get(warp)).is_some_and(|known| *known >= clock)
    }
}

fn join(clocks: &mut Clocks, other: &[u32]) {
    clocks.resize(clocks.len().max(other.len()), 0);
    for (clock, other) in clocks.iter_mut().zip(other) {
        *clock = (*clock).max(*other);
    }
}

fn join_known(into: &mut Option<Arc<Known>>, other: &Option<Arc<Known>>) {
    match (into.as_mut(), other) {
        (_, None) => {}
        (None, Some(_)) => *into = other.clone(),
        (Some(mine), Some(theirs)) => {
            if !Arc::ptr_eq(mine, theirs) {
                Arc::make_mut(mine).join(theirs);
            }
        }
    }
}

/// Order of one launch towards others, and what its blocks tell each other.
#[derive(Debug)]
pub struct LaunchOrder {
    /// Counts the launches of the device.
    pub serial: u64,
    /// Name of the kernel.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Launches from this one on may still run before the wait; `serial` if none does.
    pub unsettled: u64,
    /// Segments below are of launches before `unsettled`.
    pub unsettled_floor: u32,
    /// Segments below are of launches that have ended at the wait.
    pub floor: u32,
    hurried: AtomicBool,
    talking: AtomicBool,
    said: Mutex<HashMap<u64, Arc<Known>>>,
}

impl LaunchOrder {
    /// A launch. `unsettled` and its floor: see the fields; `floor` holds from the wait on, or always.
    pub fn new(
        serial: u64,
        kernel: &str,
        grid: [u32; 3],
        (unsettled, unsettled_floor): (u64, u32),
        floor: u32,
    ) -> Self {
        LaunchOrder {
            serial,
            kernel: kernel.to_string(),
            grid,
            unsettled,
            unsettled_floor,
            floor,
            hurried: AtomicBool::new(false),
            talking: AtomicBool::new(false),
            said: Mutex::default(),
        }
    }

    /// A block lets the next launch start, or has ended, without having waited for the launches before.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// True if the next launch may run while launches before this one do.
    pub fn hurried(&self) -> bool {
        self.hurried.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct WarpOrder {
    /// What the warp knows of the block's warps; its own clock at its own place.
    clocks: Clocks,
    /// Segment of the present tick, 0 until there was an access.
    segment: u32,
    /// Has waited for the launches before.
    waited: bool,
    /// What of other blocks happened before.
    acquired: Option<Arc<Known>>,
    /// What strong reads have seen; happened before from the next fence on.
    heard: Option<Arc<Known>>,
    /// What the last fence covers; strong writes pass it on.
    fenced: Option<Arc<Known>>,
}

/// What was known at arrival by those who have arrived at a barrier.
#[derive(Debug, Default)]
struct Meeting {
    clocks: Clocks,
    waited: bool,
    acquired: Option<Arc<Known>>,
    heard: Option<Arc<Known>>,
    fenced: Option<Arc<Known>>,
    arrived: u32,
    waiting: u32,
}

/// Order within a block.
#[derive(Debug)]
pub struct BlockOrder<'a> {
    segments: &'a Segments,
    /// Its launch.
    pub launch: Arc<LaunchOrder>,
    /// Its place in the grid, counted x first.
    pub block: u32,
    warps: Vec<WarpOrder>,
    batches: Vec<(u32, Batch)>,
    used: u32,
    /// Segments of this block up to here happened before everything to come.
    settled: u32,
    loose: bool,
    touched: HashMap<u64, u32>,
    meetings: HashMap<u32, Meeting>,
}

impl<'a> BlockOrder<'a> {
    /// Order among `warps` warps that have done nothing yet.
    pub fn new(segments: &'a Segments, launch: Arc<LaunchOrder>, block: u32, warps: usize) -> Self {
        let waited = launch.unsettled == launch.serial;
        let warp = |w: usize| {
            let mut clocks = vec![0; warps];
            clocks[w] = 1;
            WarpOrder { clocks, segment: 0, waited, acquired: None, heard: None, fenced: None }
        };
        BlockOrder {
            segments,
            launch,
            block,
            warps: (0..warps).map(warp).collect(),
            batches: Vec::new(),
            used: BATCH,
            settled: 0,
            loose: false,
            touched: HashMap::new(),
            meetings: HashMap::new(),
        }
    }

    /// The warp's segment.
    #[inline(always)]
    pub fn segment(&mut self, warp: u32) -> u32 {
        let segment = self.warps[warp as usize].segment;
        if segment != 0 { segment } else { self.begin_segment(warp as usize) }
    }

    fn begin_segment(&mut self, warp: usize) -> u32 {
        if self.used == BATCH {
            self.batches.push(self.segments.give(&self.launch, self.block));
            self.used = 0;
        }
        let Some((start, batch)) = self.batches.last() else { return 1 };
        batch[self.used as usize].store(pack(warp, self.warps[warp].clocks[warp]), Ordering::Relaxed);
        self.warps[warp].segment = start + self.used;
        self.used += 1;
        self.warps[warp].segment
    }

    fn tick(&mut self, warp: usize) {
        self.warps[warp].clocks[warp] += 1;
        self.warps[warp].segment = 0;
    }

    fn own(&self, segment: u32) -> Option<(usize, u32)> {
        let start = segment / BATCH * BATCH;
        let i = self.batches.binary_search_by_key(&start, |b| b.0).ok()?;
        Some(unpack(self.batches[i].1[(segment - start) as usize].load(Ordering::Relaxed)))
    }

    fn of_this_launch(&self, segment: u32) -> bool {
        self.own(segment).is_some()
            || self.segments.owner(segment).is_some_and(|owner| owner.launch.serial == self.launch.serial)
    }

    fn relation(&self, warp: usize, segment: u32) -> Relation {
        let me = &self.warps[warp];
        if let Some((other, clock)) = self.own(segment) {
            return if other == warp {
                Relation::Mine
            } else if segment <= self.settled || me.clocks[other] >= clock {
                Relation::Before
            } else {
                Relation::Block
            };
        }
        let Some(owner) = self.segments.owner(segment) else { return Relation::Before };
        let before = match owner.launch.serial.cmp(&self.launch.serial) {
            std::cmp::Ordering::Less => me.waited || owner.launch.serial < self.launch.unsettled,
            std::cmp::Ordering::Equal => {
                me.acquired.as_ref().is_some_and(|k| k.holds(owner.block, owner.warp, owner.clock))
            }
            std::cmp::Ordering::Greater => false,
        };
        if before { Relation::Before } else { Relation::Grid }
    }

    /// Shared memory as lane `lane` of a warp sees it at `pc`.
    #[inline(always)]
    pub fn shared(&mut self, warp: u32, lane: u32, pc: u32, strong: bool) -> View<'_> {
        let segment = self.segment(warp);
        let party = Party { segment, lane, pc, strong };
        View { order: self, warp: warp as usize, party, floor: self.settled + 1 }
    }

    /// Device memory as lane `lane` of a warp sees it at `pc`.
    #[inline(always)]
    pub fn global(&mut self, warp: u32, lane: u32, pc: u32, strong: bool) -> View<'_> {
        let segment = self.segment(warp);
        let party = Party { segment, lane, pc, strong };
        let waited = self.warps[warp as usize].waited;
        let floor = if waited { self.launch.floor } else { self.launch.unsettled_floor };
        View { order: self, warp: warp as usize, party, floor }
    }

    /// A warp arrives at a barrier. `waits` is false if it goes on at once.
    pub fn arrive(&mut self, warp: u32, id: u32, waits: bool) {
        let w = warp as usize;
        let me = &self.warps[w];
        let meeting = self.meetings.entry(id).or_default();
        join(&mut meeting.clocks, &me.clocks);
        meeting.waited |= me.waited;
        join_known(&mut meeting.acquired, &me.acquired);
        join_known(&mut meeting.heard, &me.heard);
        join_known(&mut meeting.fenced, &me.fenced);
        meeting.arrived |= 1 << w;
        if waits {
            meeting.waiting |= 1 << w;
        }
        self.tick(w);
    }

    /// A barrier opens. Answers the warps that have come to it.
    pub fn release(&mut self, id: u32) -> u32 {
        let Some(meeting) = self.meetings.remove(&id) else { return 0 };
        for (w, warp) in self.warps.iter_mut().enumerate() {
            if meeting.waiting >> w & 1 == 1 {
                join(&mut warp.clocks, &meeting.clocks);
                warp.waited |= meeting.waited;
                warp.acquired.clone_from(&meeting.acquired);
                warp.heard.clone_from(&meeting.heard);
                warp.fenced.clone_from(&meeting.fenced);
            }
        }
        let all = if self.warps.len() == 32 { !0 } else { (1 << self.warps.len()) - 1 };
        if meeting.waiting == all {
            // Nobody has begun a segment since arrival: all that exist are settled.
            if let Some((start, _)) = self.batches.last() {
                self.settled = start + self.used - 1;
            }
            self.loose = self.warps.iter().any(|w| w.acquired.is_some());
        } else {
            self.loose = true;
        }
        meeting.arrived
    }

    /// A fence. One that reaches other blocks takes over what strong reads have heard, and covers what happened so far.
    pub fn fence(&mut self, warp: u32, device_wide: bool) {
        if !device_wide {
            return;
        }
        let w = warp as usize;
        let me = &mut self.warps[w];
        if let Some(heard) = me.heard.take() {
            join_known(&mut me.acquired, &Some(heard));
        }
        let mut known = me.acquired.as_ref().map(|a| Known::clone(a)).unwrap_or_default();
        join(known.0.entry(self.block).or_default(), &me.clocks);
        me.fenced = Some(Arc::new(known));
        self.launch.talking.store(true, Ordering::Relaxed);
        self.loose = true;
        self.tick(w);
    }

    /// A strong access to device memory: hears what was said at the address, and says what is fenced.
    pub fn talk(&mut self, warp: u32, address: u64, reads: bool, writes: bool) {
        if reads && writes {
            self.touched.insert(address, self.segments.next());
        }
        if !self.launch.talking.load(Ordering::Relaxed) {
            return;
        }
        let me = &mut self.warps[warp as usize];
        let mut said = self.launch.said.lock().unwrap_or_else(PoisonError::into_inner);
        if reads {
            join_known(&mut me.heard, &said.get(&address).cloned());
        }
        if writes && let Some(fenced) = &me.fenced {
            let mut now = said.remove(&address);
            join_known(&mut now, &Some(fenced.clone()));
            if let Some(now) = now {
                said.insert(address, now);
            }
        }
    }

    /// True if the block has updated the address atomically after `other`: what it does there from then on comes after
    /// the other's atomic operation, as in resetting a counter.
    pub fn touched_after(&self, address: u64, other: Party) -> bool {
        self.touched.get(&address).is_some_and(|end| other.segment < *end)
    }

    /// The warp has waited for the launches before.
    pub fn wait_for_previous(&mut self, warp: u32) {
        self.warps[warp as usize].waited = true;
    }

    /// True if the warp has waited for the launches before, or need not.
    pub fn has_waited(&self, warp: u32) -> bool {
        self.warps[warp as usize].waited
    }

    /// Whose a segment is.
    pub fn owner(&self, segment: u32) -> Option<Owner> {
        self.segments.owner(segment)
    }
}

/// A party's view of the order.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    order: &'a BlockOrder<'a>,
    warp: usize,
    /// Who looks.
    pub party: Party,
    floor: u32,
}

impl Viewpoint for View<'_> {
    #[inline(always)]
    fn party(&self) -> Party {
        self.party
    }
    #[inline(always)]
    fn floor(&self) -> u32 {
        self.floor
    }
    fn relation(&self, segment: u32) -> Relation {
        self.order.relation(self.warp, segment)
    }
    fn settled(&self, segment: u32) -> bool {
        segment <= self.order.settled && self.order.own(segment).is_some()
    }
    fn of_this_launch(&self, segment: u32) -> bool {
        self.order.of_this_launch(segment)
    }
    fn loosely_ordered(&self) -> bool {
        self.order.loose
    }
}
