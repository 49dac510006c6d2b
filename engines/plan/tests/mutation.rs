//! No bytes make the reader panic, hang, or take more memory than the file has; what it accepts is valid.
//!
//! Hashes are made right after each edit, so that the edits reach what the hashes guard.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use lathe_plan::testing::{mutations, reseal, small_cuda_plan, small_plan};
use lathe_plan::{Plan, inspect, verify};

/// Counts this thread's live bytes and their peak.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // While a thread ends its counters may be gone; what it frees then does not matter.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What an edited file came to.
#[derive(Default, Debug)]
struct Tally {
    accepted: usize,
    damaged: usize,
    invalid: usize,
    other: usize,
}

impl Tally {
    fn open(&mut self, file: &[u8]) {
        // The copy that `from_bytes` takes and drops is the test's own, not the reader's.
        let copy = file.to_vec();
        let before = LIVE.get();
        PEAK.set(before);
        let start = Instant::now();
        let result = Plan::from_bytes(copy);
        let (peak, took) = (PEAK.get() - before, start.elapsed());
        // Errors name the file and what is wrong.
        let names = 256;
        assert!(peak <= file.len() as isize + names, "{peak} bytes for a file of {}: {result:?}", file.len());
        assert!(took < Duration::from_secs(10), "{took:?}: {result:?}");
        match result {
            Ok(plan) => {
                self.accepted += 1;
                check(&plan);
            }
            Err(e) => {
                assert!(!e.to_string().is_empty());
                match e {
                    lathe_plan::PlanError::Damaged { .. } => self.damaged += 1,
                    lathe_plan::PlanError::Invalid { .. } => self.invalid += 1,
                    _ => self.other += 1,
                }
            }
        }
    }
}

/// All that a user of an accepted plan may touch.
fn check(plan: &Plan) {
    let parts = verify::Parts {
        card: plan.card(),
        programs: plan.programs(),
        weights: plan.weights(),
        data_bytes: plan.data_bytes(),
        code: plan.code_section(),
        text: plan.text(),
        self_test: plan.self_test(),
    };
    verify::verify(&parts).unwrap();
    for (i, w) in plan.weights().iter().enumerate() {
        assert_eq!(plan.weight_bytes(i).len() as u64, w.bytes);
    }
    for module in plan.programs().iter().flat_map(|p| &p.modules) {
        let cubin = plan.module_cubin(module).map(|bytes| bytes.len() as u64);
        assert_eq!(cubin, module.cubin.map(|blob| blob.bytes));
        let ptx = plan.module_ptx(module).map(|text| text.len() as u64);
        assert_eq!(ptx, module.ptx.map(|blob| blob.bytes));
    }
    assert!(inspect::text(plan).starts_with("plan format 1."));
    let request = lathe_plan::MemoryRequest { threads: 2, kv_tokens: None };
    for p in plan.programs() {
        lathe_plan::MemoryReport::new(plan.card(), p, plan.data_bytes(), request).allocated();
        lathe_plan::MemoryReport::on_device(plan.card(), p, plan.weights(), None).allocated();
    }
}

fn header_end(file: &[u8]) -> usize {
    u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize
}

fn every_byte_flipped(file: &[u8]) {
    let header_end = header_end(file);
    let data = 4096..4096 + Plan::from_bytes(file.to_vec()).unwrap().data_bytes() as usize;
    let mut tally = Tally::default();
    let mut edited = file.to_vec();
    for at in 0..file.len() {
        let values = [file[at] ^ 1, file[at] ^ 0x80, 0, 0xff, 251, 253];
        // One byte of a weight, or of the padding after the header, is as good as another.
        let dull = data.contains(&at) || (header_end..4096).contains(&at);
        let n = if !dull { values.len() } else { usize::from(at % 8 == 0) };
        for value in values.into_iter().take(n) {
            if value == file[at] {
                continue;
            }
            edited.copy_from_slice(file);
            edited[at] = value;
            reseal(&mut edited);
            tally.open(&edited);
        }
    }
    println!("{tally:?}");
    // Weights' bytes may hold anything, and some numbers of the card; nearly all else must be refused.
    assert!(tally.accepted > 2_500 && tally.damaged > 500 && tally.invalid > 500, "{tally:?}");
}

#[test]
fn every_byte_of_the_cpu_plan_flipped() {
    every_byte_flipped(&small_plan().unwrap());
}

#[test]
fn every_byte_of_the_cuda_plan_flipped() {
    every_byte_flipped(&small_cuda_plan().unwrap());
}

#[test]
fn every_byte_flipped_without_new_hashes() {
    // With modules and code: every kind of section.
    let file = small_cuda_plan().unwrap();
    let header_end = header_end(&file);
    let data = 4096..4096 + Plan::from_bytes(file.clone()).unwrap().data_bytes() as usize;
    for at in 0..file.len() {
        let mut edited = file.clone();
        edited[at] ^= 0x10;
        let opened = Plan::from_bytes(edited);
        let found = match &opened {
            Err(_) => true,
            Ok(plan) => plan.verify_weights(|_| ()).is_err(),
        };
        // Only padding between sections and after the header is outside of every hash.
        let padding = (header_end..4096).contains(&at) || (at >= data.end && file[at] == 0 && opened.is_ok());
        assert!(found || padding, "byte {at}");
    }
}

#[test]
fn every_truncation() {
    let file = small_cuda_plan().unwrap();
    let mut tally = Tally::default();
    for length in 0..file.len() {
        tally.open(&file[..length]);
    }
    assert_eq!(tally.accepted, 0);
}

fn random(file: &[u8], seed: u64, edits: usize) {
    let mut mutations = mutations(file, seed).unwrap();
    let mut tally = Tally::default();
    for _ in 0..edits {
        tally.open(mutations.next_file());
    }
    println!("{tally:?}");
    let least = edits / 10;
    assert!(tally.accepted > least && tally.invalid > least && tally.damaged > least, "{tally:?}");
}

#[test]
fn random_edits_of_the_cpu_plan() {
    random(&small_plan().unwrap(), 1, 60_000);
}

#[test]
fn random_edits_of_the_cuda_plan() {
    random(&small_cuda_plan().unwrap(), 2, 60_000);
}
