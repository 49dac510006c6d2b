//! Cases of sampling: a cut draw, two greedy rows of one slot, a score, alternatives.

use anyhow::{Result, bail};
use lathe_device::{Answer, Arg, DrawParams, MAX_LOGIT_BIAS, MAX_STOP_IDS, StepTable, WANT_SCORE};
use lathe_kernels::IsaPath;
use lathe_kernels::sampling::{Context, Scratch, TopLogprob, cuda, draw, logprobs};

use super::{Case, Edit, Wrong, feed, same, step};
use crate::draws::{GREEDY, cpu};
use crate::values::uniform;
use crate::{Operands, Rig, bytes};

/// A row in every way, over a vocabulary that takes two rounds.
pub const SAMPLE: Case = Case { name: "sampling", run: sample };

const VOCAB: usize = 4300;
const SLOTS: usize = 3;

fn sample(rig: &mut Rig, edit: &Edit) -> Result<()> {
    let bias = [(7, 1.5), (4299, -0.5)];
    let params = [
        DrawParams { temperature: 0.9, top_k: 1500, top_p: 0.9, n_bias: 2, ..GREEDY },
        DrawParams { slot: 1, ..GREEDY },
        DrawParams { slot: 1, n_top: 3, ..GREEDY },
        DrawParams { slot: 2, want: WANT_SCORE, score_id: 4242, n_top: 2, ..GREEDY },
    ];
    let n = params.len();
    // Three random rows; the two of one slot are equal.
    let rows: Vec<Vec<f32>> = [1, 2, 2, 3]
        .map(|seed| uniform(seed, VOCAB, lathe_numerics::DType::F32).iter().map(|x| x * 3.0).collect())
        .into();
    let logits = bytes::of_f32(&rows.concat());
    let mut biases = vec![0u32; SLOTS * MAX_LOGIT_BIAS * 2];
    for (i, (id, value)) in bias.iter().enumerate() {
        (biases[2 * i], biases[2 * i + 1]) = (*id, f32::to_bits(*value));
    }

    let problem = cuda::Problem { vocab: VOCAB, max_batch: SLOTS, max_rows: n };
    let mut launches = edit.apply(cuda::launches(&problem)?)?;
    let counts = rig.buffer("counts", &vec![0; SLOTS * VOCAB * 4])?;
    let answers = rig.empty("answers", n * size_of::<Answer>())?;
    let drawn = rig.empty("drawn", n * 4)?;
    let tables = vec![
        (StepTable::DrawParams, rig.buffer("params", &bytes::of_draw_params(&params))?),
        (StepTable::Masks, rig.buffer("masks", &vec![0; n * VOCAB.div_ceil(32) * 4])?),
        (StepTable::Counts, counts),
        (StepTable::Bias, rig.buffer("bias", &bytes::of_u32(&biases))?),
        (StepTable::Stops, rig.buffer("stops", &vec![0; SLOTS * MAX_STOP_IDS * 4])?),
        (StepTable::Scores, rig.empty("scores", n * VOCAB * 4)?),
        (StepTable::Answers, answers),
        (StepTable::Drawn, drawn),
    ];
    let inputs = vec![rig.empty("logits", logits.len())?];
    let mut operands = Operands { inputs, outputs: vec![], tables };
    feed(rig, &mut launches, &mut operands, Arg::Input(0), &logits)?;
    rig.run(&launches, step(n, SLOTS, n), &operands)?;

    let path = IsaPath::detect();
    let mut want_counts = vec![0u32; SLOTS * VOCAB];
    let (mut ids, mut want_drawn) = (vec![], vec![]);
    for (row, p) in rows.iter().zip(&params) {
        if p.want == WANT_SCORE {
            ids.push(p.score_id);
            want_drawn.push(-1);
            continue;
        }
        let cx = Context {
            position: p.position,
            bias: &bias[..p.n_bias as usize],
            suppressed: &[],
            prompt: &[],
            output: &[],
            allowed: None,
        };
        let Some(id) = draw(path, row, &cpu(p), &cx, &mut Scratch::new(VOCAB)) else { bail!("no draw") };
        want_counts[p.slot as usize * VOCAB + id as usize] += 1;
        ids.push(id as i32);
        want_drawn.push(id as i32);
    }
    same("drawn", &want_drawn, &rig.read_i32(drawn, n)?)?;
    let got = bytes::to_answers(&rig.read(answers, n * size_of::<Answer>())?);
    same("answers", &ids, &got.iter().map(|a| a.id).collect::<Vec<_>>())?;
    same("counts", &want_counts, &bytes::to_u32(&rig.read(counts, SLOTS * VOCAB * 4)?))?;
    for (i, p) in params.iter().enumerate().filter(|(_, p)| p.n_top >= 0) {
        let mut top = [TopLogprob::default(); 20];
        let want = logprobs(path, &rows[i], ids[i] as u32, &mut top[..p.n_top as usize]);
        let near = |got: f32, want: f32| (got - want).abs() < 1e-4;
        let answer = &got[i];
        let alternatives = top[..want.n_top].iter().enumerate();
        let good = near(answer.logprob, want.logprob)
            && (answer.rank, answer.n_top as usize) == (want.rank, want.n_top)
            && alternatives
                .into_iter()
                .all(|(j, t)| answer.top_ids[j] == t.id as i32 && near(answer.top_logprobs[j], t.logprob));
        if !good {
            bail!(Wrong(format!("row {i}: {answer:?}, want {want:?}")));
        }
    }
    Ok(())
}
