//! Barriers that not all threads reach.

use std::collections::HashMap;

use crate::decode::Kernel;
use crate::monitor::{At, Finding};

#[derive(Clone, Copy, Debug)]
struct Gathering {
    pc: u32,
    warp: u32,
    whole_block: bool,
    /// Warps that have come, whether they wait or not.
    arrived: u32,
    waiting: bool,
}

/// The barriers of a block.
#[derive(Debug, Default)]
pub struct Barriers {
    gathering: HashMap<u32, Gathering>,
    /// Warps of which threads have exited, and where.
    exited: Vec<(u32, u32)>,
}

fn finding(lane: u32, what: String) -> Finding {
    Finding { lane, what, address: None }
}

impl Barriers {
    /// Lanes arrive at a barrier for `threads` of the block's `block` threads.
    pub fn arrive(
        &mut self,
        at: At,
        id: u32,
        (threads, block): (u32, u32),
        waits: bool,
        aligned: bool,
        kernel: &Kernel,
    ) -> Result<(), Finding> {
        let first = at.mask.trailing_zeros();
        if aligned && at.mask != at.alive {
            let missing = at.alive & !at.mask;
            let what = format!(
                "divergent barrier {id}: lanes {:#010x} of warp {} arrive, lanes {missing:#010x} are elsewhere",
                at.mask, at.warp
            );
            return Err(finding(first, what));
        }
        let whole_block = threads == block;
        let come = 1 << at.warp | self.gathering.get(&id).map_or(0, |g| g.arrived);
        let gone = self.exited.iter().find(|(warp, _)| come >> warp & 1 == 0).copied();
        if whole_block && let Some((warp, pc)) = gone {
            let what = format!(
                "divergent barrier {id}: waits for all {threads} threads, but threads of warp {warp} have exited at {}",
                kernel.place(pc)
            );
            return Err(finding(first, what));
        }
        let now = Gathering { pc: at.pc, warp: at.warp, whole_block, arrived: come, waiting: waits };
        match self.gathering.get_mut(&id) {
            // Producers that only arrive come from elsewhere by design.
            Some(other) if whole_block && other.waiting && waits && aligned && other.pc != at.pc => {
                let what = format!(
                    "divergent barrier {id}: warp {} arrives here, warp {} waits at {}",
                    at.warp,
                    other.warp,
                    kernel.place(other.pc)
                );
                Err(finding(first, what))
            }
            Some(other) => {
                other.arrived = come;
                if waits && !other.waiting {
                    *other = now;
                }
                Ok(())
            }
            None => {
                self.gathering.insert(id, now);
                Ok(())
            }
        }
    }

    /// A barrier opens.
    pub fn release(&mut self, id: u32) {
        self.gathering.remove(&id);
    }

    /// Lanes exit.
    pub fn exit(&mut self, at: At, kernel: &Kernel) -> Result<(), Finding> {
        if self.exited.iter().all(|(warp, _)| *warp != at.warp) {
            self.exited.push((at.warp, at.pc));
        }
        let misses = |g: &Gathering| g.whole_block && g.waiting && g.arrived >> at.warp & 1 == 0;
        let waiting = self.gathering.iter().find(|(_, g)| misses(g));
        let Some((id, other)) = waiting else { return Ok(()) };
        let what = format!(
            "divergent barrier {id}: exits while warp {} waits for all threads of the block at {}",
            other.warp,
            kernel.place(other.pc)
        );
        Err(finding(at.mask.trailing_zeros(), what))
    }

    /// Nobody can go on.
    pub fn stuck(waiting: &[(At, u32)], kernel: &Kernel) -> Finding {
        let all: Vec<String> = waiting
            .iter()
            .map(|(at, id)| format!("warp {} waits at barrier {id}, {}", at.warp, kernel.place(at.pc)))
            .collect();
        let lane = waiting.first().map_or(0, |(at, _)| at.mask.trailing_zeros());
        finding(lane, format!("deadlock: no warp can go on; {}", all.join("; ")))
    }
}
