//! Findings in words. The interpreter adds who and where; here stands what, and the other party.

use super::order::BlockOrder;
use super::record::Party;
use super::shadow::{Conflict, Relation};
use crate::decode::Kernel;
use crate::monitor::{Finding, Space};

/// What an access does, for sentences that begin with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Load or `ldmatrix`.
    Reads,
    /// Store or `stmatrix`.
    Writes,
    /// Read-modify-write.
    Updates,
    /// Destination of an asynchronous copy.
    CopiesTo,
    /// Source of an asynchronous copy.
    CopiesFrom,
}

impl Verb {
    const fn word(self) -> &'static str {
        match self {
            Verb::Reads => "reads",
            Verb::Writes => "writes",
            Verb::Updates => "updates atomically",
            Verb::CopiesTo => "copies asynchronously to",
            Verb::CopiesFrom => "copies asynchronously from",
        }
    }
}

/// `[1, 0, 0]` of a block counted x first.
fn place(block: u32, grid: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = grid.map(|n| n.max(1));
    [block % x, block / x % y, block / x / y]
}

fn party(other: Party, order: &BlockOrder<'_>, kernel: &Kernel) -> String {
    let Some(owner) = order.owner(other.segment) else { return "a thread of an earlier launch".to_string() };
    let thread = owner.warp * 32 + other.lane as usize;
    if owner.launch.serial != order.launch.serial {
        let block = place(owner.block, owner.launch.grid);
        let when = if owner.launch.serial < order.launch.serial { "earlier" } else { "later" };
        return format!("thread {thread} of block {block:?} of the {when} launch of {}", owner.launch.kernel);
    }
    let at = kernel.place(other.pc);
    if owner.block == order.block {
        format!("thread {thread} of the same block at {at}")
    } else {
        format!("thread {thread} of block {:?} at {at}", place(owner.block, order.launch.grid))
    }
}

/// The finding that a conflict is.
#[cold]
pub fn conflict(
    verb: Verb,
    lane: u32,
    address: (Space, u64),
    conflict: Conflict,
    order: &BlockOrder<'_>,
    kernel: &Kernel,
) -> Finding {
    let verb = verb.word();
    let what = match conflict {
        Conflict::Pending { other } => format!(
            "{verb} bytes of an asynchronous copy by {}, which has not been waited for",
            party(other, order, kernel)
        ),
        Conflict::Race { other, wrote, several, relation } => {
            let did = if wrote { "wrote" } else { "read" };
            let who = if several {
                let whose = if relation == Relation::Grid { "blocks" } else { "warps" };
                format!("several {whose} {did}, the last known is {}", party(other, order, kernel))
            } else {
                format!("{} {did}", party(other, order, kernel))
            };
            let missing = match (relation, address.0) {
                (Relation::Grid, _) if other_launch(other, order) => {
                    "the end of that launch, by griddepcontrol.wait"
                }
                (Relation::Grid, _) => "fences and an atomic operation between the blocks",
                _ => "a barrier",
            };
            format!("race: {verb} what {who}; {missing} would order them")
        }
    };
    Finding { lane, what, address: Some(address) }
}

fn other_launch(other: Party, order: &BlockOrder<'_>) -> bool {
    order.owner(other.segment).is_some_and(|o| o.launch.serial != order.launch.serial)
}
