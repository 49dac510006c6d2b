//! Random requests against a fake engine that keeps a KV memory of its own and counts everything itself.
//! Every step is held against the rules; nothing here reads the scheduler's private state.

use lathe_scheduler::{
    BlockId, GroupLimits, Limits, Misuse, NewSequence, Progress, Refusal, Scheduled, Scheduler, SeqId, Slot,
    Step,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Debug, Clone)]
struct Request {
    arrival: u32,
    prompt_len: u32,
    max_new: u32,
    /// The engine samples a stop token as the n-th new one.
    stop_at: Option<u32>,
    /// The client goes away so many steps after arrival.
    abort_after: Option<u32>,
    score_prompt: bool,
    /// Same prompt as the request so many places before; takes its length.
    shares: Option<usize>,
}

#[derive(Debug, Clone)]
struct Case {
    limits: Limits,
    requests: Vec<Request>,
    /// A step is collected only after the next one is scheduled.
    overlap: bool,
}

/// What a KV entry says: the token's origin (prompt of a family, or one sequence's answer) and its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kv {
    Prompt { family: u64, position: u32 },
    Answer { id: SeqId, position: u32 },
}

struct Live {
    family: u64,
    prompt_len: u32,
    max_new: u32,
    stop_at: Option<u32>,
    abort_step: Option<u32>,
    score_prompt: bool,
    shares: bool,
    slot: Option<Slot>,
    computed: u32,
    generated: u32,
    scored: u32,
    at_length: bool,
    in_flight: bool,
}

/// First position that the row at `position` sees.
fn first_seen(group: &GroupLimits, position: u32) -> u32 {
    group.window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Most blocks of a group that one sequence may hold.
fn at_once(limits: &Limits, group: &GroupLimits) -> u32 {
    let step = limits.max_num_tokens.max(limits.block_tokens);
    group.window.map_or(u32::MAX, |window| (window + step).div_ceil(limits.block_tokens) + 1)
}

/// Tokens that one sequence may have in all pools.
fn pool_tokens(limits: &Limits) -> u32 {
    let tokens = |group: &GroupLimits| {
        let is_enough = group.n_blocks >= at_once(limits, group);
        if is_enough { u32::MAX } else { group.n_blocks * limits.block_tokens }
    };
    limits.groups.iter().map(tokens).min().unwrap()
}

struct Simulation {
    limits: Limits,
    scheduler: Scheduler,
    live: BTreeMap<SeqId, Live>,
    ended: HashSet<SeqId>,
    /// By group, block and position in the block.
    memory: HashMap<(usize, BlockId, u32), Kv>,
    n_preempted: u64,
}

impl Simulation {
    fn fits(&self, request: &Request) -> bool {
        let needed = u64::from(request.prompt_len + request.max_new.min(1));
        needed <= u64::from(self.limits.max_seq_len) && needed <= u64::from(pool_tokens(&self.limits))
    }

    fn add(&mut self, id: SeqId, family: u64, request: &Request, parent: Option<SeqId>, now: u32) -> bool {
        let queued = self.scheduler.stats().n_queued;
        let result = self.scheduler.add(NewSequence {
            id,
            prompt_len: request.prompt_len,
            max_new_tokens: request.max_new,
            score_prompt: request.score_prompt,
            share_prefix_of: parent,
        });
        match result {
            Ok(()) => assert!(self.fits(request) && queued < self.limits.max_queue),
            Err(Refusal::QueueFull { .. }) => assert!(queued >= self.limits.max_queue),
            Err(Refusal::TooLong { .. } | Refusal::PoolTooSmall { .. }) => assert!(!self.fits(request)),
            Err(other) => panic!("refused: {other}"),
        }
        if result.is_err() {
            return false;
        }
        let live = Live {
            family,
            prompt_len: request.prompt_len,
            max_new: request.max_new,
            stop_at: request.stop_at,
            abort_step: request.abort_after.map(|after| now + after),
            score_prompt: request.score_prompt,
            shares: parent.is_some() && !request.score_prompt,
            slot: None,
            computed: 0,
            generated: 0,
            scored: 0,
            at_length: false,
            in_flight: false,
        };
        self.live.insert(id, live);
        true
    }

    fn end(&mut self, id: SeqId, abort: bool) {
        assert!(self.ended.insert(id), "{id} ended twice");
        let slot = self.live.remove(&id).unwrap().slot;
        let scheduler = &mut self.scheduler;
        if abort { scheduler.abort(id) } else { scheduler.finish(id) }.unwrap();
        for group in 0..self.limits.groups.len() {
            let is_empty = |slot| scheduler.block_table(group, slot).is_empty();
            assert!(slot.is_none_or(is_empty), "blocks stay after the end");
        }
        assert_eq!(scheduler.finish(id), Err(Misuse::Ended(id)));
        assert_eq!(scheduler.abort(id), Err(Misuse::Ended(id)));
        assert_eq!(scheduler.commit(id, 1), Err(Misuse::Ended(id)));
        scheduler.verify().unwrap();
    }

    fn token(&self, id: SeqId, position: u32) -> Kv {
        let live = &self.live[&id];
        if position < live.prompt_len {
            Kv::Prompt { family: live.family, position }
        } else {
            Kv::Answer { id, position }
        }
    }

    /// Checks a step against the rules and runs it on the memory.
    fn run(&mut self, step: &Step, overlap: bool) {
        self.scheduler.verify().unwrap();
        for id in &step.preempted {
            let youngest = self.live.iter().rev().find(|(_, live)| live.slot.is_some()).unwrap().0;
            assert_eq!(id, youngest, "preemption is youngest first");
            let live = self.live.get_mut(id).unwrap();
            assert!(!live.in_flight, "{id} preempted in flight");
            live.slot = None;
            live.computed = 0;
            self.n_preempted += 1;
        }
        let limits = &self.limits;
        let n_tokens: u32 = step.sequences.iter().map(|item| item.len).sum();
        let n_rows: u32 = step.sequences.iter().map(|item| item.sample_rows.len() as u32).sum();
        assert_eq!((n_tokens, n_rows), (step.n_tokens, step.n_rows));
        assert!(n_tokens <= limits.max_num_tokens, "token budget");
        assert!(n_rows <= limits.max_sample_rows, "row budget");
        assert!(step.sequences.len() <= limits.max_batch as usize, "batch");
        if let Some((oldest, live)) = self.live.iter().find(|(_, live)| !live.at_length)
            && !(overlap && (live.in_flight || self.live.values().any(|live| live.in_flight)))
        {
            assert!(step.sequences.iter().any(|item| item.id == *oldest), "{oldest} is oldest and starves");
        }
        for item in &step.sequences {
            self.check_item(item);
            for group in 0..self.limits.groups.len() {
                let blocks = self.scheduler.block_table(group, item.slot).to_vec();
                for position in item.start..item.start + item.len {
                    let at = (position / self.limits.block_tokens) as usize;
                    let place = (group, blocks[at], position % self.limits.block_tokens);
                    assert_ne!(place.1, BlockId::NONE, "{} has no block to write", item.id);
                    self.memory.insert(place, self.token(item.id, position));
                }
            }
        }
        // Read after all have written: what a neighbour overwrites shows.
        for item in &step.sequences {
            for (at, group) in self.limits.groups.iter().enumerate() {
                let blocks = self.scheduler.block_table(at, item.slot);
                for position in first_seen(group, item.start)..item.start + item.len {
                    let block = blocks[(position / self.limits.block_tokens) as usize];
                    let read = self.memory.get(&(at, block, position % self.limits.block_tokens));
                    assert_eq!(read, Some(&self.token(item.id, position)), "{} reads a foreign KV", item.id);
                }
            }
        }
        for live in self.live.values() {
            let Some(slot) = live.slot else { continue };
            for (at, group) in self.limits.groups.iter().enumerate() {
                let held = self.scheduler.block_table(at, slot).iter().filter(|b| **b != BlockId::NONE);
                assert!(
                    held.count() as u32 <= at_once(&self.limits, group),
                    "more blocks than a window needs"
                );
            }
        }
        let slots: Vec<_> = self.live.values().filter_map(|live| live.slot).collect();
        assert_eq!(slots.iter().collect::<HashSet<_>>().len(), slots.len(), "slot shared");
        assert!(slots.len() <= self.limits.max_batch as usize);
        self.check_shared_blocks();
    }

    fn check_item(&mut self, item: &Scheduled) {
        if item.newly_admitted {
            let oldest_waiting = self.live.iter().find(|(_, live)| live.slot.is_none()).unwrap().0;
            assert_eq!(item.id, *oldest_waiting, "overtaken in the queue");
        }
        let limits = self.limits.clone();
        let live = self.live.get_mut(&item.id).expect("scheduled after its end");
        if item.newly_admitted {
            assert!(live.slot.is_none());
            live.slot = Some(item.slot);
            if live.shares {
                let shared = (live.prompt_len - 1) / limits.block_tokens * limits.block_tokens;
                assert!(item.start == 0 || item.start == shared);
                live.computed = item.start;
            }
        }
        assert!(!live.in_flight, "{} scheduled twice", item.id);
        live.in_flight = true;
        assert!(!live.at_length);
        assert_eq!(live.slot, Some(item.slot), "slot moved without admission");
        assert_eq!(item.start, live.computed, "{} not contiguous", item.id);
        let known = live.prompt_len + live.generated;
        let end = item.start + item.len;
        assert!(item.len > 0 && end <= known, "computes a token that is not there");
        assert!(known - item.start == 1 || item.len <= limits.chunk_limit.unwrap_or(u32::MAX), "chunk limit");
        assert_eq!(item.samples, end == known && live.max_new > 0);
        assert!(item.sample_rows.end <= end && item.sample_rows.start >= item.start);
        assert!(!item.samples || item.sample_rows.contains(&(end - 1)), "sampled row missing");
        if live.score_prompt && live.scored < live.prompt_len {
            let to = end.min(live.prompt_len);
            if to > live.scored {
                assert_eq!(item.sample_rows, live.scored.max(item.start)..to, "prompt row lost or repeated");
                assert_eq!(item.sample_rows.start, live.scored);
                live.scored = to;
            } else {
                assert!(item.sample_rows.is_empty());
            }
        } else {
            assert_eq!(item.sample_rows.len(), usize::from(item.samples), "rows nobody asked for");
        }
    }

    fn check_shared_blocks(&self) {
        let mut seen: HashMap<(usize, BlockId), (u64, usize)> = HashMap::new();
        for (group, live) in
            (0..self.limits.groups.len()).flat_map(|g| self.live.values().map(move |l| (g, l)))
        {
            let Some(slot) = live.slot else { continue };
            for (at, block) in self.scheduler.block_table(group, slot).iter().enumerate() {
                if *block != BlockId::NONE
                    && let Some(other) = seen.insert((group, *block), (live.family, at))
                {
                    assert_eq!(other, (live.family, at), "block in two unrelated tables");
                    let n_full = (live.prompt_len - 1) / self.limits.block_tokens;
                    assert!(at < n_full as usize, "a block that will be written is shared");
                }
            }
        }
    }

    /// An answer keeps what its next row sees and not a block more.
    fn check_window(&self, slot: Slot, computed: u32) {
        for (at, group) in self.limits.groups.iter().enumerate() {
            let first = first_seen(group, computed) / self.limits.block_tokens;
            let table = self.scheduler.block_table(at, slot);
            let gone = table.iter().take_while(|block| **block == BlockId::NONE).count();
            assert_eq!(gone, first as usize, "blocks stay behind the window, or are missing in it");
        }
    }

    fn collect(&mut self, step: &Step) {
        for item in &step.sequences {
            let Some(live) = self.live.get_mut(&item.id) else { continue };
            live.in_flight = false;
            live.computed += item.len;
            let sampled = u32::from(item.samples);
            if item.samples && live.stop_at == Some(live.generated + 1) {
                self.end(item.id, false);
                continue;
            }
            live.generated += sampled;
            let wrong = self.scheduler.commit(item.id, 1 - sampled);
            assert!(matches!(wrong, Err(Misuse::WrongAppend { .. })));
            let progress = self.scheduler.commit(item.id, sampled).unwrap();
            assert_eq!(self.scheduler.commit(item.id, sampled), Err(Misuse::NotScheduled(item.id)));
            let pool = pool_tokens(&self.limits);
            let cap = (live.prompt_len + live.max_new).min(self.limits.max_seq_len).min(pool);
            live.at_length = live.prompt_len + live.generated == cap && live.computed >= live.prompt_len;
            assert_eq!(progress == Progress::Length, live.at_length);
            if live.at_length {
                assert!(!live.score_prompt || live.scored == live.prompt_len, "prompt not scored");
                self.end(item.id, false);
            } else if live.generated > 1 {
                let computed = live.computed;
                self.check_window(item.slot, computed);
            }
        }
    }
}

/// Runs a case to its end; returns (steps, preemptions, tokens taken from shared blocks).
fn simulate(case: &Case) -> (u32, u64, u64) {
    let limits = case.limits.clone();
    let mut sim = Simulation {
        scheduler: Scheduler::new(limits.clone()).unwrap(),
        limits,
        live: BTreeMap::new(),
        ended: HashSet::new(),
        memory: HashMap::new(),
        n_preempted: 0,
    };
    let mut requests = case.requests.clone();
    requests.sort_by_key(|request| request.arrival);
    let mut families = Vec::new();
    for at in 0..requests.len() {
        let parent = requests[at].shares.and_then(|back| at.checked_sub(1 + back));
        requests[at].shares = parent;
        if let Some(parent) = parent {
            requests[at].prompt_len = requests[parent].prompt_len;
        }
        families.push(parent.map_or(at as u64, |parent| families[parent]));
    }
    let (mut n_accepted, mut bound) = (0, requests.last().map_or(0, |last| last.arrival) + 2);
    let (mut next, mut now) = (0, 0);
    let mut step = Step::default();
    let mut flying: Option<Step> = None;
    while next < requests.len() || !sim.live.is_empty() {
        while next < requests.len() && requests[next].arrival <= now {
            let (id, request) = (SeqId(next as u64), requests[next].clone());
            let parent = request.shares.map(|at| SeqId(at as u64));
            if sim.add(id, families[next], &request, parent, now) {
                n_accepted += 1;
                bound += request.prompt_len + request.max_new;
            }
            next += 1;
        }
        let gone: Vec<_> = sim
            .live
            .iter()
            .filter(|(_, l)| l.abort_step.is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            sim.end(id, true);
        }
        sim.scheduler.schedule(&mut step);
        sim.run(&step, case.overlap);
        if case.overlap {
            if let Some(last) = flying.replace(step.clone()) {
                sim.collect(&last);
            }
        } else {
            sim.collect(&step);
        }
        sim.scheduler.verify().unwrap();
        now += 1;
        assert!(now <= bound * if case.overlap { 3 } else { 1 }, "livelock");
    }
    let stats = sim.scheduler.stats();
    assert_eq!(sim.ended.len(), n_accepted, "every accepted request ends exactly once");
    assert_eq!((stats.n_blocks_used, stats.n_queued, stats.n_running), (0, 0, 0));
    assert_eq!(stats.n_preemptions, sim.n_preempted);
    assert!(sim.scheduler.is_idle());
    (now, stats.n_preemptions, stats.n_shared_tokens)
}

fn group() -> impl Strategy<Value = GroupLimits> {
    (1u32..24, prop::option::of(1u32..40)).prop_map(|(n_blocks, window)| GroupLimits { n_blocks, window })
}

fn limits(groups: impl Strategy<Value = Vec<GroupLimits>>) -> impl Strategy<Value = Limits> {
    let sizes = (1u32..8, 0u32..40, 0u32..6, 1u32..80, 1u32..9, prop::option::of(1u32..12), 1usize..30);
    (sizes, groups).prop_map(|(sizes, groups)| {
        let (max_batch, more_tokens, more_rows, max_seq_len, block_tokens, chunk_limit, max_queue) = sizes;
        Limits {
            max_batch,
            max_num_tokens: max_batch + more_tokens,
            max_sample_rows: max_batch + more_rows,
            max_seq_len,
            groups,
            block_tokens,
            chunk_limit,
            max_queue,
        }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let ends = (prop::option::weighted(0.3, 1u32..20), prop::option::weighted(0.2, 0u32..40));
    let shape = (0u32..60, 1u32..60, 0u32..40);
    (shape, ends, prop::bool::weighted(0.2), prop::option::weighted(0.3, 0usize..4)).prop_map(
        |((arrival, prompt_len, max_new), (stop_at, abort_after), score_prompt, shares)| Request {
            arrival,
            prompt_len,
            max_new,
            stop_at,
            abort_after,
            score_prompt,
            shares,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_cases_keep_the_rules(
        limits in limits(prop::collection::vec(group(), 1..4)),
        requests in prop::collection::vec(request(), 1..40),
        overlap: bool,
    ) {
        simulate(&Case { limits, requests, overlap });
    }

    /// A window group as large as the full one, or as all sequences together can fill it, is never what they wait for.
    #[test]
    fn groups_of_the_planned_size_change_no_schedule(
        limits in limits(prop::collection::vec((1u32..24).prop_map(|n_blocks| GroupLimits { n_blocks, window: None }), 1)),
        windows in prop::collection::vec(1u32..40, 1..4),
        requests in prop::collection::vec(request(), 1..40),
        overlap: bool,
    ) {
        let requests: Vec<Request> = requests.into_iter().map(|r| Request { shares: None, ..r }).collect();
        let mut more = limits.clone();
        for window in windows {
            let mut group = GroupLimits { n_blocks: 0, window: Some(window) };
            group.n_blocks = limits.groups[0].n_blocks.min(limits.max_batch * at_once(&limits, &group));
            more.groups.push(group);
        }
        let alone = simulate(&Case { limits, requests: requests.clone(), overlap });
        prop_assert_eq!(simulate(&Case { limits: more, requests, overlap }), alone);
    }
}

/// A tight pool, so that decodes preempt each other all the time.
#[test]
fn long_run_survives_a_preemption_storm() {
    let mut rng = SmallRng::seed_from_u64(7);
    let requests: Vec<Request> = (0..3000)
        .map(|at| Request {
            arrival: at * 2,
            prompt_len: rng.random_range(1..100),
            max_new: rng.random_range(1..80),
            stop_at: rng.random_bool(0.3).then(|| rng.random_range(1..40)),
            abort_after: rng.random_bool(0.1).then(|| rng.random_range(0..400)),
            score_prompt: rng.random_bool(0.1),
            shares: rng.random_bool(0.3).then(|| rng.random_range(0..3)),
        })
        .collect();
    // A full pool; one with a window beside it; one without room for all windows at once.
    let pools = [(60, None), (60, Some(50)), (40, Some(50))]
        .map(|(n_blocks, window)| GroupLimits { n_blocks, window });
    for (groups, n_requests, storm) in
        [(&pools[..1], 3000, 1000), (&pools[..2], 1500, 500), (&pools[2..], 1500, 100)]
    {
        let limits = Limits {
            max_batch: 16,
            max_num_tokens: 64,
            max_sample_rows: 32,
            max_seq_len: 200,
            groups: groups.to_vec(),
            block_tokens: 8,
            chunk_limit: Some(48),
            max_queue: 4000,
        };
        let case = Case { limits, requests: requests[..n_requests].to_vec(), overlap: false };
        let (steps, preemptions, shared) = simulate(&case);
        let counts = format!("{groups:?}: {steps} steps, {preemptions} preemptions, {shared} shared");
        assert!(preemptions > storm && shared > 1000, "{counts}");
    }
}
