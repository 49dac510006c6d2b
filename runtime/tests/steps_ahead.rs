//! An engine that takes a step before the last one is collected gives what one that does not gives, bit for bit.

mod programs;

use std::collections::VecDeque;
use std::sync::Arc;

use lathe_api::{
    Engine, EngineError, EngineInfo, SamplingParams, Slot, SlotState, StepOutput, StepPlan, Ticket,
    TokenMasks,
};
use lathe_cpu::{CpuEngine, CpuOptions};
use lathe_plan::Plan;
use lathe_runtime::backend::{Backend, Event, SequenceRequest};
use lathe_runtime::engine_thread::{Policy, start};
use lathe_runtime::metrics::Metrics;
use programs::{Dir, MAX_SEQ_LEN};

/// The CPU engine with answers that wait for their turn, as a device's do.
struct Ahead {
    engine: CpuEngine,
    info: EngineInfo,
    answers: VecDeque<(Ticket, StepOutput)>,
    /// Largest number of steps that were under way at once.
    deepest: usize,
}

impl Ahead {
    fn new(engine: CpuEngine) -> Self {
        let info = EngineInfo { steps_ahead: 1, ..engine.info().clone() };
        Ahead { engine, info, answers: VecDeque::new(), deepest: 0 }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        assert_eq!(self.deepest, 2, "no step was ever ahead, or too many were");
    }
}

impl Engine for Ahead {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn bind(&mut self, slot: Slot, state: SlotState<'_>) -> Result<(), EngineError> {
        self.engine.bind(slot, state)
    }

    fn submit(&mut self, step: &StepPlan) -> Result<Ticket, EngineError> {
        self.engine.submit(step)
    }

    fn sample(&mut self, ticket: Ticket, masks: Option<TokenMasks<'_>>) -> Result<(), EngineError> {
        self.engine.sample(ticket, masks)?;
        let mut output = StepOutput::default();
        self.engine.collect(ticket, &mut output)?;
        self.answers.push_back((ticket, output));
        self.deepest = self.deepest.max(self.answers.len());
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<(), EngineError> {
        let (oldest, output) = self.answers.pop_front().unwrap();
        assert_eq!(oldest, ticket);
        *out = output;
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        self.engine.logits()
    }
}

/// All that a client sees of a request, in bits. Some were preempted.
fn answers(engine: Box<dyn Engine>, requests: &[SequenceRequest]) -> Vec<String> {
    let metrics = Arc::new(Metrics::new(MAX_SEQ_LEN as u32));
    let policy = Policy { max_queue: 256, chunk_limit: Some(48), warm: false };
    let (handle, thread) = start(engine, policy, metrics.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tasks: Vec<_> = requests
        .iter()
        .enumerate()
        .map(|(at, request)| {
            let mut running = handle.submit(vec![request.clone()]);
            runtime.spawn(async move {
                let mut seen = Vec::new();
                while let Some(event) = running.next().await {
                    // One of eight goes away in the middle of its answer.
                    if at % 8 == 5 && seen.len() == 4 {
                        break;
                    }
                    // How a prompt's scores are cut into events is not promised.
                    match event {
                        Event::Scored { first, scores, .. } => {
                            let at = |(i, s): (usize, &_)| format!("{} {s:?}", first as usize + i);
                            seen.extend(scores.iter().enumerate().map(at));
                        }
                        other => seen.push(format!("{other:?}")),
                    }
                }
                seen.join("\n")
            })
        })
        .collect();
    let answers = runtime.block_on(async {
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        answers
    });
    handle.stop();
    thread.join().unwrap();
    assert!(
        !metrics.render("m").contains("num_preemptions_total{model_name=\"m\",engine=\"0\"} 0\n"),
        "nothing was preempted"
    );
    answers
}

#[test]
fn answers_do_not_depend_on_steps_ahead() {
    let dir = Dir::new();
    let plan = Arc::new(Plan::open(&dir.compile("ahead.plan", &["--max-batch", "6"])).unwrap());
    let vocab = plan.card().vocab_size;
    // The least pool that is allowed: sequences must be preempted.
    let block = plan.programs()[0].cache_groups[0].bytes_per_block;
    let options = CpuOptions {
        threads: 1,
        kv_bytes: Some(block * (MAX_SEQ_LEN as u64).div_ceil(32)),
        ..CpuOptions::default()
    };
    let load = || CpuEngine::load(plan.clone(), &options).unwrap();

    let request = |i: u32| SequenceRequest {
        prompt: (0..1 + i * 37 % 300).map(|p| (p * 7919 + i * 31) % vocab).collect(),
        max_new_tokens: [1, 40, 120, 0, 75, 33][i as usize % 6],
        min_new_tokens: if i.is_multiple_of(3) { 12 } else { 0 },
        params: SamplingParams {
            temperature: if i.is_multiple_of(4) { 0.0 } else { 1.0 },
            repetition_penalty: if i.is_multiple_of(5) { 1.3 } else { 1.0 },
            frequency_penalty: if i.is_multiple_of(2) { 0.4 } else { 0.0 },
            seed: u64::from(i),
            ..SamplingParams::default()
        },
        logit_bias: [].into(),
        // Every eighth id ends the sequence: most stop where nobody could have foreseen it.
        stop_ids: if i % 2 == 1 { (0..128).map(|id| id * 8 % vocab).collect() } else { [].into() },
        top_logprobs: (i % 3 == 1).then_some(3),
        score_prompt: i % 7 == 2,
        share_with: None,
    };
    let requests: Vec<_> = (0..48).map(request).collect();
    let want = answers(Box::new(load()), &requests);
    let got = answers(Box::new(Ahead::new(load())), &requests);
    let stopped = want.iter().filter(|a| a.contains("StopId")).count();
    assert!(stopped > 5, "{stopped} sequences were stopped");
    for (i, (want, got)) in want.iter().zip(&got).enumerate() {
        assert_eq!(want, got, "request {i}");
    }
}
