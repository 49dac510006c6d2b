//! The checked mode: shadow memory that knows who touched what, and finds what no run of a correct kernel does.
//!
//! Findings: races between warps of a block and between blocks of a grid; bytes of an asynchronous copy that are used
//! before its thread has waited, by others before a barrier after the wait, or overwritten meanwhile; two lanes that
//! store different values to one address at once; use of data nobody wrote as predicate or address, and its copy to the
//! host; barriers that not all threads reach; memory touched before `griddepcontrol.wait` that the launch before uses.
//! Bounds, lifetime and alignment are the interpreter's own checks.
//!
//! Order is what counts, not the schedule at hand: two accesses that nothing orders are a finding whichever came first.
//! Lanes of one warp count as ordered from instruction to instruction. An asynchronous copy completes at its wait, the
//! latest moment that is legal.

mod barrier;
mod block;
mod copies;
mod local;
mod order;
mod record;
mod report;
mod shadow;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::decode::Kernel;
use crate::monitor::{Finding, LaunchFacts, LaunchMonitor, Monitor, Space};
use block::CheckedBlock;
use order::{LaunchOrder, Segments};
use shadow::{Shadow, words};

/// What is checked beyond the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// A copy to the host of bytes that nobody wrote is a finding.
    pub undefined_to_host: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions { undefined_to_host: true }
    }
}

/// Device memory that was taken at once.
#[derive(Debug)]
struct Region {
    range: Range<u64>,
    shadow: Shadow<AtomicU64>,
}

#[derive(Debug, Default)]
struct History {
    /// The launch before, and the first segment that could be its.
    last: Option<(Arc<LaunchOrder>, u32)>,
    /// First segment of a launch that runs before its predecessor, and its serial.
    early: Option<(u32, u64)>,
}

/// Checks all that a device does.
#[derive(Debug, Default)]
pub struct Checker {
    options: CheckOptions,
    regions: RwLock<BTreeMap<u64, Arc<Region>>>,
    segments: Segments,
    history: Mutex<History>,
}

impl Checker {
    /// A checker of a device without memory.
    pub fn new(options: CheckOptions) -> Self {
        Checker { options, ..Checker::default() }
    }

    /// First undefined byte of a range, if all of it lies in one allocation.
    pub fn first_undefined(&self, range: Range<u64>) -> Option<u64> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let region = enclosing(&regions, &range)?;
        let from = range.start - region.range.start;
        words(from, range.end - range.start).find_map(|(i, mask)| {
            let undefined = mask & !region.shadow.init(i);
            (undefined != 0)
                .then(|| region.range.start + 4 * i as u64 + u64::from(undefined.trailing_zeros()))
        })
    }
}

fn enclosing<'a>(regions: &'a BTreeMap<u64, Arc<Region>>, range: &Range<u64>) -> Option<&'a Arc<Region>> {
    let (_, region) = regions.range(..=range.start).next_back()?;
    (range.end <= region.range.end).then_some(region)
}

impl Monitor for Checker {
    const CHECKED: bool = true;
    type Launch<'m> = CheckedLaunch<'m>;

    fn allocated(&self, range: Range<u64>) {
        let shadow = Shadow::new(range.end - range.start);
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.insert(range.start, Arc::new(Region { range, shadow }));
    }

    fn freed(&self, range: Range<u64>) {
        self.regions.write().unwrap_or_else(PoisonError::into_inner).remove(&range.start);
    }

    fn host_writes(&self, range: Range<u64>) {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = enclosing(&regions, &range) {
            for (i, mask) in words(range.start - region.range.start, range.end - range.start) {
                region.shadow.reset(i, mask, true);
            }
        }
    }

    fn host_reads(&self, range: Range<u64>) -> Result<(), Finding> {
        match self.first_undefined(range.clone()) {
            Some(at) if self.options.undefined_to_host => Err(Finding {
                lane: 0,
                what: format!(
                    "the host copies {} bytes, of which byte {} was never written, or from what was never written",
                    range.end - range.start,
                    at - range.start
                ),
                address: Some((Space::Global, at)),
            }),
            _ => Ok(()),
        }
    }

    fn launch<'m>(&'m self, facts: &LaunchFacts<'m>) -> CheckedLaunch<'m> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = !facts.dependent && history.early.is_none();
        if alone && self.segments.run_out() {
            let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
            regions.values().for_each(|region| region.shadow.forget_parties());
            self.segments.restart();
            history.last = None;
        }
        let base = self.segments.next();
        // A launch that runs before this one has smaller numbers, which are no reason to take it for settled.
        let floor = match history.early {
            Some((early, serial)) if serial > facts.serial => early,
            _ => base,
        };
        let unsettled = match &history.last {
            _ if facts.early => (facts.serial.saturating_sub(1), base),
            Some((last, first)) if facts.dependent => {
                if last.hurried() {
                    (last.unsettled, last.unsettled_floor.min(floor))
                } else {
                    (last.serial, (*first).min(floor))
                }
            }
            _ => (facts.serial, floor),
        };
        if !facts.early {
            self.segments.settle(unsettled.1);
        }
        let order =
            Arc::new(LaunchOrder::new(facts.serial, &facts.kernel.name, facts.grid, unsettled, floor));
        if facts.early {
            history.early = Some((base, facts.serial));
        } else {
            history.early = history.early.filter(|(_, serial)| *serial > facts.serial);
        }
        let newest = history.last.as_ref().is_none_or(|(last, _)| last.serial < facts.serial);
        if newest {
            history.last = Some((order.clone(), base));
        }
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        CheckedLaunch {
            checker: self,
            kernel: facts.kernel,
            order,
            regions: regions.values().cloned().collect(),
            block: facts.block,
            shared_bytes: facts.shared_bytes,
        }
    }
}

/// Checks a grid.
#[derive(Debug)]
pub struct CheckedLaunch<'m> {
    checker: &'m Checker,
    kernel: &'m Kernel,
    order: Arc<LaunchOrder>,
    regions: Vec<Arc<Region>>,
    block: u32,
    shared_bytes: u32,
}

impl LaunchMonitor for CheckedLaunch<'_> {
    type Block<'l>
        = CheckedBlock<'l>
    where
        Self: 'l;

    fn block<'l>(&'l self, index: [u32; 3]) -> CheckedBlock<'l> {
        CheckedBlock::new(self, index)
    }

    fn end(self) -> Result<(), Finding> {
        Ok(())
    }
}
