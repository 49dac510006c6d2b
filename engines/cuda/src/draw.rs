//! Rows to draw in the sampler kernels' terms, and their answers in the engine's.

use lathe_api::{NO_TOKEN, RowOutput, SampleRow, StepOutput, TokenLogprob, Wanted};
use lathe_device::{Answer, DrawParams, WANT_LOGITS, WANT_SAMPLE, WANT_SCORE};

/// Lengths of a slot's lists on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotLists {
    /// Entries of its bias list.
    pub n_bias: u32,
    /// Entries of its stop list.
    pub n_stops: u32,
}

/// What the kernels are told of a row.
pub fn params(row: &SampleRow, lists: SlotLists, masked: bool) -> DrawParams {
    let (want, score_id) = match row.wanted {
        Wanted::Sample => (WANT_SAMPLE, 0),
        Wanted::Score(id) => (WANT_SCORE, id.cast_signed()),
        Wanted::Logits => (WANT_LOGITS, 0),
    };
    let p = &row.params;
    DrawParams {
        slot: row.slot.0.cast_signed(),
        position: row.position,
        want,
        score_id,
        temperature: p.temperature,
        top_k: p.top_k,
        top_p: p.top_p,
        min_p: p.min_p,
        repetition_penalty: p.repetition_penalty,
        presence_penalty: p.presence_penalty,
        frequency_penalty: p.frequency_penalty,
        n_bias: lists.n_bias,
        n_stops: if row.suppress_stops { lists.n_stops } else { 0 },
        n_top: row.top_logprobs.map_or(-1, i32::from),
        masked: u32::from(masked),
        choice: p.choice,
        seed: p.seed,
    }
}

/// Adds a row's answer to `out`.
///
/// # Errors
/// What no sound kernel says: an id that does not exist, more alternatives than were asked for.
pub fn answer(row: &SampleRow, answer: &Answer, vocab_size: u32, out: &mut StepOutput) -> Result<(), String> {
    let id = match row.wanted {
        Wanted::Score(id) => id,
        Wanted::Logits => NO_TOKEN,
        Wanted::Sample if answer.id == -1 => NO_TOKEN,
        Wanted::Sample => u32::try_from(answer.id)
            .ok()
            .filter(|id| *id < vocab_size)
            .ok_or_else(|| format!("id {} was drawn, the vocabulary has {vocab_size}", answer.id))?,
    };
    let mut token = TokenLogprob { id, logprob: f32::NAN, rank: 0 };
    let top_start = out.top.len() as u32;
    if let Some(asked) = row.top_logprobs
        && row.wanted != Wanted::Logits
    {
        (token.logprob, token.rank) = (answer.logprob, answer.rank);
        if answer.n_top > u32::from(asked) {
            return Err(format!("{} alternatives came back, {asked} were asked for", answer.n_top));
        }
        let found = answer.top_ids.iter().zip(&answer.top_logprobs).take(answer.n_top as usize);
        for (rank, (id, logprob)) in (1..).zip(found) {
            let id = u32::try_from(*id)
                .ok()
                .filter(|id| *id < vocab_size)
                .ok_or_else(|| format!("id {id} is an alternative, the vocabulary has {vocab_size}"))?;
            out.top.push(TokenLogprob { id, logprob: *logprob, rank });
        }
    }
    out.rows.push(RowOutput { token, top_start, top_len: out.top.len() as u32 - top_start });
    Ok(())
}

#[cfg(test)]
mod tests {
    use lathe_api::{SamplingParams, Slot};

    use super::*;

    fn row(wanted: Wanted, top_logprobs: Option<u8>) -> SampleRow {
        SampleRow {
            row: 0,
            slot: Slot(3),
            position: 17,
            wanted,
            params: SamplingParams { seed: 1 << 40, choice: 2, ..SamplingParams::default() },
            top_logprobs,
            suppress_stops: false,
        }
    }

    const ANSWER: Answer = Answer {
        id: 4,
        logprob: -0.5,
        rank: 2,
        n_top: 2,
        top_ids: [9, 4, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        top_logprobs: [-0.25; 20],
    };

    #[test]
    fn rows_become_parameters() {
        let lists = SlotLists { n_bias: 5, n_stops: 6 };
        let p = params(&row(Wanted::Sample, None), lists, true);
        assert_eq!((p.slot, p.position, p.want, p.n_top), (3, 17, WANT_SAMPLE, -1));
        assert_eq!((p.n_bias, p.n_stops, p.masked, p.seed, p.choice), (5, 0, 1, 1 << 40, 2));
        let p = params(&SampleRow { suppress_stops: true, ..row(Wanted::Score(8), Some(0)) }, lists, false);
        assert_eq!((p.want, p.score_id, p.n_top, p.n_stops, p.masked), (WANT_SCORE, 8, 0, 6, 0));
        assert_eq!(params(&row(Wanted::Logits, None), lists, false).want, WANT_LOGITS);
    }

    #[test]
    fn answers_become_outputs() {
        let mut out = StepOutput::default();
        for (wanted, top) in [
            (Wanted::Sample, Some(3)),
            (Wanted::Sample, None),
            (Wanted::Score(7), Some(2)),
            (Wanted::Logits, Some(2)),
        ] {
            answer(&row(wanted, top), &ANSWER, 10, &mut out).unwrap();
        }
        let ids: Vec<u32> = out.rows.iter().map(|r| r.token.id).collect();
        assert_eq!(ids, [4, 4, 7, NO_TOKEN]);
        let tops: Vec<(u32, u32)> = out.rows.iter().map(|r| (r.top_start, r.top_len)).collect();
        assert_eq!(tops, [(0, 2), (2, 0), (2, 2), (4, 0)]);
        assert_eq!((out.rows[0].token.logprob, out.rows[0].token.rank), (-0.5, 2));
        assert!(out.rows[1].token.logprob.is_nan() && out.rows[3].token.logprob.is_nan());
        assert_eq!(out.top[1], TokenLogprob { id: 4, logprob: -0.25, rank: 2 });
    }

    #[test]
    fn what_no_sound_kernel_says_is_refused() {
        let mut out = StepOutput::default();
        let mut said =
            |a: Answer| answer(&row(Wanted::Sample, Some(3)), &a, 10, &mut out).map_err(|e| e.to_string());
        assert!(said(Answer { id: 10, ..ANSWER }).unwrap_err().contains("id 10 was drawn"));
        assert!(said(Answer { id: -2, ..ANSWER }).unwrap_err().contains("id -2"));
        assert!(said(Answer { n_top: 4, ..ANSWER }).unwrap_err().contains("4 alternatives"));
        assert!(said(Answer { n_top: 3, ..ANSWER }).unwrap_err().contains("id 99 is an alternative"));
        assert!(said(Answer { id: -1, n_top: 0, ..ANSWER }).is_ok());
        assert_eq!(out.rows.last().map(|r| r.token.id), Some(NO_TOKEN));
    }
}
