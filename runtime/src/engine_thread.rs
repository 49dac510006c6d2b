//! The one thread that owns engine, scheduler and sequences. Everyone else sends messages.
//!
//! Needs: an engine that `load`ed. Keeps: every submission gets `Accepted` or `Refused`, then each of its sequences
//! ends exactly once, or the engine fails as a whole and says so to all. Gives up: on the first error of the engine
//! that is not one sequence's; the process is expected to end then.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use lathe_api::{
    Engine, EngineError, EngineInfo, RowOutput, SampleRow, SeqStep, SlotState, StepOutput, StepPlan, Ticket,
    TokenSource, Wanted,
};
use lathe_scheduler::{
    GroupLimits, Limits, LimitsError, NewSequence, Progress, Refusal, Scheduler, SeqId, Step,
};
use tokio::sync::{mpsc as events, watch};

use crate::backend::{Backend, Event, Finish, Health, Refused, SequenceRequest, TokenScore};
use crate::metrics::Metrics;
use crate::sequence::Sequence;

enum Message {
    Submit {
        request: u64,
        sequences: Vec<SequenceRequest>,
        events: events::UnboundedSender<Event>,
    },
    /// One sequence of the request, or all that still live.
    Abort {
        request: u64,
        choice: Option<usize>,
    },
    Stop,
}

struct Shared {
    name: String,
    messages: mpsc::Sender<Message>,
    health: watch::Sender<Health>,
    next_request: AtomicU64,
    n_active: AtomicUsize,
}

/// The engine thread as others see it; clones talk to the same thread.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

/// How the thread schedules, beside what the engine fixes.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Sequences that may wait.
    pub max_queue: usize,
    /// Largest prefill chunk of one sequence in one step, in tokens; `None`: what the step's budget leaves.
    pub chunk_limit: Option<u32>,
    /// Let the engine take pages and read weights in the background first; a short life is better off without.
    pub warm: bool,
}

/// The engine thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine's sizes cannot promise progress.
    #[error("engine limits: {0}")]
    Limits(#[from] LimitsError),
    /// The system gives no thread.
    #[error("engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the thread. It ends on [`EngineHandle::stop`] or when the engine fails.
///
/// # Errors
/// Sizes under which the scheduler cannot promise progress, or no thread.
pub fn start(
    mut engine: Box<dyn Engine>,
    policy: Policy,
    metrics: Arc<Metrics>,
) -> Result<(EngineHandle, std::thread::JoinHandle<()>), StartError> {
    let info = engine.info().clone();
    let scheduler = Scheduler::new(Limits {
        max_batch: info.max_batch,
        max_num_tokens: info.max_num_tokens,
        max_sample_rows: info.max_sample_rows,
        max_seq_len: info.max_seq_len,
        groups: info.groups.iter().map(|g| GroupLimits { n_blocks: g.n_blocks, window: g.window }).collect(),
        block_tokens: info.block_tokens,
        chunk_limit: policy.chunk_limit,
        max_queue: policy.max_queue,
    })?;
    let (messages, inbox) = mpsc::channel();
    let shared = Arc::new(Shared {
        name: info.path.clone(),
        messages,
        health: watch::Sender::new(Health::Serving),
        next_request: AtomicU64::new(0),
        n_active: AtomicUsize::new(0),
    });
    metrics.set_cache(info.groups.first().map_or(0, |g| g.n_blocks), info.block_tokens);
    let health = shared.health.clone();
    let mut work = EngineThread::new(&info, scheduler, metrics);
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if policy.warm {
                engine.warm().map_err(|e| e.to_string())?;
            }
            work.run(engine.as_mut(), &inbox)
        }));
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(panic) => panic_text(panic.as_ref()),
        };
        tracing::error!(reason, "the engine has failed");
        health.send_replace(Health::Failed(reason.clone()));
        work.fail_all(&reason);
    })?;
    Ok((EngineHandle { shared }, thread))
}

/// The text of a panic, as far as it has one.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned())
}

impl EngineHandle {
    /// Takes no new work from now on; what runs goes on.
    pub fn drain(&self) {
        self.shared.health.send_if_modified(|health| {
            let serving = *health == Health::Serving;
            if serving {
                *health = Health::Draining;
            }
            serving
        });
    }

    /// Requests that are not through.
    pub fn n_active(&self) -> usize {
        self.shared.n_active.load(Ordering::Relaxed)
    }

    /// Ends the thread after the step in flight; live sequences fail.
    pub fn stop(&self) {
        // A send fails only when the thread has ended already.
        drop(self.shared.messages.send(Message::Stop));
    }

    /// Waits until the engine has failed; gives the reason.
    pub async fn failed(&self) -> String {
        let mut health = self.shared.health.subscribe();
        loop {
            if let Health::Failed(reason) = &*health.borrow_and_update() {
                return reason.clone();
            }
            if health.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

impl Backend for EngineHandle {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn health(&self) -> Health {
        self.shared.health.borrow().clone()
    }

    fn submit(&self, sequences: Vec<SequenceRequest>) -> Running {
        let request = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let n_live = sequences.len();
        let (sender, receiver) = events::unbounded_channel();
        self.shared.n_active.fetch_add(1, Ordering::Relaxed);
        let refused = match self.health() {
            Health::Serving => None,
            Health::Draining => Some(Refused::Draining),
            Health::Failed(reason) => Some(Refused::Failed(reason)),
        };
        match refused {
            // The receiver stands just above; a failed engine drops the message and the channel with it.
            Some(refused) => drop(sender.send(Event::Refused(refused))),
            None => {
                let message = Message::Submit { request, sequences, events: sender };
                drop(self.shared.messages.send(message));
            }
        }
        Running { request, open: vec![true; n_live], n_live, events: receiver, shared: self.shared.clone() }
    }
}

/// The events of one submission. Dropping it aborts what still runs.
///
/// The channel has no bound of its own: a sequence sends at most one event per token that it may have.
pub struct Running {
    request: u64,
    /// By choice: has not ended.
    open: Vec<bool>,
    n_live: usize,
    events: events::UnboundedReceiver<Event>,
    shared: Arc<Shared>,
}

impl Running {
    /// The next event; after the last sequence has ended, or a refusal, none.
    pub async fn next(&mut self) -> Option<Event> {
        while self.n_live > 0 {
            let event = match self.events.recv().await {
                Some(event) => event,
                None => Event::Failed(match &*self.shared.health.borrow() {
                    Health::Failed(reason) => reason.clone(),
                    _ => "it was stopped".to_owned(),
                }),
            };
            let (choice, ends) = match &event {
                Event::Accepted => return Some(event),
                Event::Refused(_) | Event::Failed(_) => {
                    self.n_live = 0;
                    return Some(event);
                }
                Event::Scored { choice, .. } => (*choice, false),
                Event::Token { choice, finish, .. } => (*choice, finish.is_some()),
                Event::Finished { choice, .. } | Event::Rejected { choice, .. } => (*choice, true),
            };
            // What was under way when a choice was aborted is not for the caller any more.
            if self.open[choice] {
                if ends {
                    self.close(choice);
                }
                return Some(event);
            }
        }
        None
    }

    /// Ends one sequence early; nothing more comes of it.
    pub fn abort(&mut self, choice: usize) {
        if self.open[choice] {
            self.close(choice);
            drop(self.shared.messages.send(Message::Abort { request: self.request, choice: Some(choice) }));
        }
    }

    fn close(&mut self, choice: usize) {
        self.open[choice] = false;
        self.n_live -= 1;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.n_active.fetch_sub(1, Ordering::Relaxed);
        if self.n_live > 0 {
            drop(self.shared.messages.send(Message::Abort { request: self.request, choice: None }));
        }
    }
}

/// What a row of the step is for.
#[derive(Clone, Copy)]
struct RowUse {
    /// Index into `Step::sequences`.
    at: usize,
    /// Position of the token that the row scores or draws.
    position: u32,
}

/// A step from its schedule to its answers. Buffers are reused.
struct Flight {
    step: Step,
    uses: Vec<RowUse>,
    /// By index into `Step::sequences`: left out of the plan.
    skipped: Vec<bool>,
    /// By index into `Step::sequences`: no token may follow.
    at_length: Vec<bool>,
    n_rows: usize,
    ticket: Ticket,
}

impl Flight {
    fn new(info: &EngineInfo) -> Self {
        let batch = info.max_batch as usize;
        Flight {
            step: Step::with_capacity(info.max_batch),
            uses: Vec::with_capacity(info.max_sample_rows as usize),
            skipped: Vec::with_capacity(batch),
            at_length: Vec::with_capacity(batch),
            n_rows: 0,
            ticket: Ticket(0),
        }
    }

    /// The row that draws the next token of a sequence.
    fn drawing_row(&self, id: SeqId) -> Option<u32> {
        let at = self.step.sequences.iter().position(|part| part.id == id && part.samples)?;
        self.uses.iter().rposition(|u| u.at == at).map(|row| row as u32)
    }
}

struct EngineThread {
    max_seq_len: u32,
    scheduler: Scheduler,
    metrics: Arc<Metrics>,
    live: HashMap<SeqId, Sequence>,
    next_id: u64,
    plan: StepPlan,
    output: StepOutput,
    /// The step that is being made.
    next: Flight,
    /// Submitted, not collected, oldest first; at most `steps_ahead + 1`.
    flying: VecDeque<Flight>,
    idle: Vec<Flight>,
    steps_ahead: usize,
    n_empty_steps: u32,
}

/// Steps without work, while work waits, before this is called a bug: one may follow a preemption.
const MAX_EMPTY_STEPS: u32 = 3;

impl EngineThread {
    fn new(info: &EngineInfo, scheduler: Scheduler, metrics: Arc<Metrics>) -> Self {
        let (batch, rows) = (info.max_batch as usize, info.max_sample_rows as usize);
        let blocks = batch * info.max_seq_len.div_ceil(info.block_tokens) as usize;
        EngineThread {
            max_seq_len: info.max_seq_len,
            scheduler,
            metrics,
            live: HashMap::with_capacity(batch * 2),
            next_id: 0,
            plan: StepPlan::with_capacity(
                info.max_num_tokens as usize,
                batch,
                rows,
                blocks,
                info.groups.len(),
            ),
            output: StepOutput::with_capacity(rows),
            next: Flight::new(info),
            flying: VecDeque::with_capacity(info.steps_ahead as usize + 1),
            idle: (0..=info.steps_ahead).map(|_| Flight::new(info)).collect(),
            steps_ahead: info.steps_ahead as usize,
            n_empty_steps: 0,
        }
    }

    fn run(&mut self, engine: &mut dyn Engine, inbox: &mpsc::Receiver<Message>) -> Result<(), String> {
        loop {
            if self.scheduler.is_idle() && self.flying.is_empty() {
                self.publish();
                let Ok(message) = inbox.recv() else { return Ok(()) };
                if !self.receive(message) {
                    return Ok(());
                }
            }
            while let Ok(message) = inbox.try_recv() {
                if !self.receive(message) {
                    return Ok(());
                }
            }
            if !self.scheduler.is_idle() || !self.flying.is_empty() {
                self.run_step(engine)?;
                self.publish();
            }
        }
    }

    /// False: stop.
    fn receive(&mut self, message: Message) -> bool {
        match message {
            Message::Submit { request, sequences, events } => self.submit(request, sequences, &events),
            Message::Abort { request, choice } => self.abort(request, choice),
            Message::Stop => {
                self.fail_all("it was stopped");
                return false;
            }
        }
        true
    }

    fn submit(
        &mut self,
        request: u64,
        sequences: Vec<SequenceRequest>,
        events: &events::UnboundedSender<Event>,
    ) {
        let (asked, max_queue) = (sequences.len(), self.scheduler.limits().max_queue);
        if asked > max_queue {
            drop(events.send(Event::Refused(Refused::TooMany { asked, max_queue })));
            return;
        }
        let now = Instant::now();
        let first = self.next_id;
        let mut refusal = None;
        for (choice, spec) in sequences.into_iter().enumerate() {
            let id = SeqId(self.next_id);
            let added = self.scheduler.add(NewSequence {
                id,
                prompt_len: spec.prompt.len() as u32,
                max_new_tokens: spec.max_new_tokens,
                score_prompt: spec.score_prompt,
                share_prefix_of: spec.share_with.map(|other| SeqId(first + other as u64)),
            });
            if let Err(reason) = added {
                refusal = Some(reason);
                break;
            }
            self.next_id += 1;
            let sequence = Sequence::new(request, choice, spec, self.max_seq_len, events.clone(), now);
            self.live.insert(id, sequence);
        }
        let event = match refusal {
            None => Event::Accepted,
            Some(refusal) => {
                for id in (first..self.next_id).map(SeqId) {
                    self.remove(id);
                }
                self.metrics.admission_rejections.add(1);
                Event::Refused(match refusal {
                    Refusal::QueueFull { .. } => Refused::QueueFull(refusal.to_string()),
                    other => Refused::Never(other.to_string()),
                })
            }
        };
        // A receiver that is gone has sent, or will send, its abort.
        drop(events.send(event));
    }

    fn abort(&mut self, request: u64, choice: Option<usize>) {
        let of_request = |s: &Sequence| s.request == request && choice.is_none_or(|c| c == s.choice);
        // Collected first: an abort is off the step path, and removal changes the map.
        let ids: Vec<SeqId> = self.live.iter().filter(|(_, s)| of_request(s)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(sequence) = self.remove(id) {
                // A matched stop string ends a choice this way, an abandoned request all of them.
                let reason = if choice.is_some() { "stop" } else { "abort" };
                self.metrics.sequence_ended(&sequence, reason, Instant::now());
            }
        }
    }

    /// Takes a live sequence out; its blocks and slot are free at once.
    fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let sequence = self.live.remove(&id)?;
        if sequence.scheduling
            && let Err(misuse) = self.scheduler.abort(id)
        {
            tracing::error!(%misuse, "a live sequence was unknown to the scheduler");
        }
        Some(sequence)
    }

    fn fail_all(&mut self, reason: &str) {
        for sequence in self.live.values() {
            drop(sequence.events.send(Event::Failed(reason.to_owned())));
        }
        self.live.clear();
    }

    fn publish(&self) {
        self.metrics.set_load(&self.scheduler.stats());
    }

    /// Submits the next step, if there is one, then takes the answers of the oldest where no more steps may be ahead.
    fn run_step(&mut self, engine: &mut dyn Engine) -> Result<(), String> {
        let submitted = self.submit_step(engine)?;
        self.collect(engine, if submitted { self.steps_ahead } else { 0 })
    }

    /// Takes answers, the oldest first, until at most `most` steps are under way.
    fn collect(&mut self, engine: &mut dyn Engine, most: usize) -> Result<(), String> {
        while self.flying.len() > most {
            let Some(flight) = self.flying.pop_front() else { break };
            let ticket = flight.ticket;
            engine.collect(ticket, &mut self.output).map_err(|e| format!("collect: {e}"))?;
            if self.output.rows.len() != flight.n_rows {
                return Err(format!(
                    "collect: {} rows came back for {}",
                    self.output.rows.len(),
                    flight.n_rows
                ));
            }
            self.deliver(&flight)?;
            self.idle.push(flight);
        }
        Ok(())
    }

    /// False: there was nothing to run.
    fn submit_step(&mut self, engine: &mut dyn Engine) -> Result<bool, String> {
        if self.scheduler.is_idle() {
            return Ok(false);
        }
        self.scheduler.schedule(&mut self.next.step);
        for id in &self.next.step.preempted {
            if let Some(sequence) = self.live.get_mut(id) {
                sequence.n_preemptions += 1;
            }
        }
        // One that comes back after preemption brings its history along, the token under way included.
        let draws = |id| self.flying.iter().any(|flight| flight.drawing_row(id).is_some());
        if self.next.step.sequences.iter().any(|part| part.newly_admitted && draws(part.id)) {
            self.collect(engine, 0)?;
        }
        self.fill_plan(engine)?;
        if self.plan.seqs.is_empty() {
            // Answers that are still to come may free what the others wait for.
            self.n_empty_steps += u32::from(self.flying.is_empty());
            if self.n_empty_steps > MAX_EMPTY_STEPS && !self.scheduler.is_idle() {
                return Err("scheduler: sequences wait but none can run".to_owned());
            }
            return Ok(false);
        }
        self.n_empty_steps = 0;
        let fault = |stage: &str, e: EngineError| format!("{stage}: {e}");
        let ticket = engine.submit(&self.plan).map_err(|e| fault("submit", e))?;
        engine.sample(ticket, None).map_err(|e| fault("sample", e))?;
        self.metrics.iteration_tokens.record(self.plan.tokens.len() as f64);
        (self.next.ticket, self.next.n_rows) = (ticket, self.plan.rows.len());
        self.commit()?;
        let spare = self.idle.pop().ok_or("a step too many is under way")?;
        self.flying.push_back(std::mem::replace(&mut self.next, spare));
        Ok(true)
    }

    /// Tells the scheduler that the step is as good as done, before its tokens are known: the next one may build on it.
    fn commit(&mut self) -> Result<(), String> {
        let misused = |misuse| format!("scheduler: {misuse}");
        for (part, skipped) in self.next.step.sequences.iter().zip(&self.next.skipped) {
            let mut at_length = false;
            if !skipped {
                let progress = self.scheduler.commit(part.id, u32::from(part.samples)).map_err(misused)?;
                at_length = progress == Progress::Length;
            }
            if at_length {
                self.scheduler.finish(part.id).map_err(misused)?;
                if let Some(sequence) = self.live.get_mut(&part.id) {
                    sequence.scheduling = false;
                }
            }
            self.next.at_length.push(at_length);
        }
        Ok(())
    }

    fn fill_plan(&mut self, engine: &mut dyn Engine) -> Result<(), String> {
        let now = Instant::now();
        let (plan, next) = (&mut self.plan, &mut self.next);
        plan.clear();
        next.uses.clear();
        next.skipped.clear();
        next.at_length.clear();
        for (at, part) in next.step.sequences.iter().enumerate() {
            next.skipped.push(false);
            // Answers that came after the schedule may have ended it.
            let Some(seq) = self.live.get_mut(&part.id) else {
                next.skipped[at] = true;
                continue;
            };
            let slot = lathe_api::Slot(part.slot.0);
            if part.newly_admitted {
                let state = SlotState {
                    prompt: &seq.spec.prompt,
                    output: seq.output(),
                    logit_bias: &seq.spec.logit_bias,
                    stop_ids: &seq.spec.stop_ids,
                };
                match engine.bind(slot, state) {
                    Ok(()) => {}
                    Err(EngineError::Request(reason)) => {
                        let choice = seq.choice;
                        drop(seq.events.send(Event::Rejected { choice, reason }));
                        next.skipped[at] = true;
                        continue;
                    }
                    Err(e) => return Err(format!("bind: {e}")),
                }
            }
            seq.scheduled.get_or_insert(now);
            if seq.first_token.is_none() {
                seq.n_prefilled += part.len;
            }
            let (q_start, end) = (plan.tokens.len() as u32, part.start + part.len);
            let known = seq.tokens.len().min(end as usize);
            let ids = seq.tokens.get(part.start as usize..known).unwrap_or_default();
            plan.tokens.extend(ids.iter().map(|&id| TokenSource::Literal(id)));
            // The token that the step before draws is not here yet, and need not be.
            let n_drawing = u32::from(known < end as usize);
            if n_drawing == 1 {
                let row = self.flying.back().and_then(|flight| flight.drawing_row(part.id));
                let row = row.ok_or_else(|| format!("{}: position {known} has no token", part.id))?;
                plan.tokens.push(TokenSource::Row(row));
            }
            plan.positions.extend(part.start..end);
            let blocks_start = plan.blocks.first().map_or(0, Vec::len) as u32;
            let n_blocks = end.div_ceil(self.scheduler.limits().block_tokens);
            for (group, blocks) in plan.blocks.iter_mut().enumerate() {
                let table = self.scheduler.block_table(group, part.slot);
                blocks.extend(table.iter().take(n_blocks as usize).map(|block| block.0));
            }
            plan.seqs.push(SeqStep {
                slot,
                q_start,
                q_len: part.len,
                kv_len: end,
                blocks_start,
                blocks_len: n_blocks,
                adapter: None,
            });
            for position in part.sample_rows.clone() {
                let wanted = if part.samples && position + 1 == end {
                    Wanted::Sample
                } else if let Some(&next) = seq.tokens.get(position as usize + 1) {
                    Wanted::Score(next)
                } else {
                    // The last prompt position of a sequence that draws nothing has no next token to score.
                    continue;
                };
                plan.rows.push(SampleRow {
                    row: q_start + (position - part.start),
                    slot,
                    position: position + 1,
                    wanted,
                    params: seq.spec.params,
                    top_logprobs: seq.spec.top_logprobs,
                    suppress_stops: seq.suppress_stops(n_drawing),
                });
                next.uses.push(RowUse { at, position: position + 1 });
            }
        }
        for at in 0..self.next.skipped.len() {
            if self.next.skipped[at] {
                let id = self.next.step.sequences[at].id;
                self.remove(id);
            }
        }
        Ok(())
    }

    fn deliver(&mut self, flight: &Flight) -> Result<(), String> {
        let now = Instant::now();
        let mut rows = 0..0;
        for (at, part) in flight.step.sequences.iter().enumerate() {
            if flight.skipped[at] {
                continue;
            }
            rows.start = rows.end;
            while flight.uses.get(rows.end).is_some_and(|u| u.at == at) {
                rows.end += 1;
            }
            // It was aborted meanwhile, or the step before has ended it.
            let Some(seq) = self.live.get_mut(&part.id) else { continue };
            let at_length = flight.at_length[at];
            let n_scored = rows.len() - usize::from(part.samples);
            let mut gone = false;
            if n_scored > 0 {
                let scored = rows.start..rows.start + n_scored;
                let scores =
                    self.output.rows[scored.clone()].iter().map(|row| score(&self.output, row)).collect();
                let first = flight.uses[scored.start].position;
                gone |= seq.events.send(Event::Scored { choice: seq.choice, first, scores }).is_err();
            }
            let mut finish = None;
            if part.samples {
                let row = &self.output.rows[rows.end - 1];
                let id = row.token.id;
                finish = seq.append(id, at_length);
                self.metrics.token_drawn(seq, now);
                let score = seq.spec.top_logprobs.is_some().then(|| score(&self.output, row));
                gone |= seq.events.send(Event::Token { choice: seq.choice, id, score, finish }).is_err();
            } else if at_length {
                finish = Some(Finish::Length);
                let event = Event::Finished { choice: seq.choice, finish: Finish::Length };
                gone |= seq.events.send(event).is_err();
            }
            if finish.is_some() || gone {
                let id = part.id;
                if let Some(sequence) = self.remove(id) {
                    let reason = match finish {
                        Some(Finish::StopId(_)) => "stop",
                        Some(Finish::Length) => "length",
                        None => "abort",
                    };
                    self.metrics.sequence_ended(&sequence, reason, now);
                }
            }
        }
        Ok(())
    }
}

fn score(output: &StepOutput, row: &RowOutput) -> TokenScore {
    let start = row.top_start as usize;
    let top = output.top.get(start..start + row.top_len as usize).unwrap_or_default();
    TokenScore { token: row.token, top: top.into() }
}
