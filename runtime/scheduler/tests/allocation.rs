//! Steps allocate nothing, with growth, preemption and readmission among them. Alone in its binary: the
//! allocator counts the whole process.

use lathe_scheduler::{GroupLimits, Limits, NewSequence, Progress, Scheduler, SeqId, Step};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

struct Counting;
static N_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system allocator unchanged; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steps_do_not_allocate() {
    let limits = Limits {
        max_batch: 8,
        max_num_tokens: 32,
        max_sample_rows: 8,
        max_seq_len: 128,
        groups: vec![GroupLimits { n_blocks: 40, window: None }],
        block_tokens: 4,
        chunk_limit: None,
        max_queue: 32,
    };
    let mut scheduler = Scheduler::new(limits).unwrap();
    let mut step = Step::with_capacity(8);
    for id in 0..32 {
        let new = NewSequence {
            id: SeqId(id),
            prompt_len: 10 + id as u32,
            max_new_tokens: 60,
            score_prompt: id % 5 == 0,
            share_prefix_of: None,
        };
        scheduler.add(new).unwrap();
    }
    let before = N_ALLOCATIONS.load(Relaxed);
    while !scheduler.is_idle() {
        scheduler.schedule(&mut step);
        for item in &step.sequences {
            if scheduler.commit(item.id, u32::from(item.samples)).unwrap() == Progress::Length {
                scheduler.finish(item.id).unwrap();
            }
        }
    }
    assert_eq!(N_ALLOCATIONS.load(Relaxed) - before, 0);
    assert!(scheduler.stats().n_preemptions > 10);
}
