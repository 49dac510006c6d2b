//! Host values as device memory holds them, and back. Little-endian, as devices are.

use anyhow::Result;
use half::{bf16, f16};
use lathe_device::{Answer, DrawParams, Sequence};
use lathe_kernels::cuda::mma16;
use lathe_numerics::DType;

/// `f32` as they are.
pub fn of_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `i32` as they are.
pub fn of_i32(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `u32` as they are.
pub fn of_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `u16` as they are: bits of 2-byte floats.
pub fn of_u16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `f32` rounded to a float dtype.
pub fn of(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => of_f32(values),
    }
}

/// Rows of `k` as a device has a weight: in fragment order where they are of 2-byte elements.
///
/// # Errors
/// As [`in_fragments`].
pub fn of_weight(dtype: DType, w: &[f32], k: usize) -> Result<Vec<u8>> {
    let stored = of(dtype, w);
    if dtype == DType::F32 {
        return Ok(stored);
    }
    in_fragments(&stored.chunks(2 * k).collect::<Vec<_>>(), k)
}

/// Rows of `k` 2-byte elements in fragment order.
///
/// # Errors
/// A row of another length.
pub fn in_fragments(rows: &[&[u8]], k: usize) -> Result<Vec<u8>> {
    let mut out = vec![0xaa; rows.len().div_ceil(mma16::TILE) * mma16::tile_row_bytes(k)];
    for (tile, out) in rows.chunks(mma16::TILE).zip(out.chunks_exact_mut(mma16::tile_row_bytes(k))) {
        mma16::pack_tile_row(tile, k, out)?;
    }
    Ok(out)
}

/// What `StepTable::Sequences` holds.
pub fn of_sequences(sequences: &[Sequence]) -> Vec<u8> {
    sequences.iter().flat_map(|s| of_i32(&[s.q_start, s.q_len, s.kv_len, s.blocks_start])).collect()
}

/// What `StepTable::DrawParams` holds.
pub fn of_draw_params(params: &[DrawParams]) -> Vec<u8> {
    let one = |p: &DrawParams| {
        let floats =
            [p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty];
        let [temperature, top_p, min_p, repetition, presence, frequency] = floats.map(f32::to_bits);
        let mut words = of_u32(&[
            p.slot as u32,
            p.position,
            p.want as u32,
            p.score_id as u32,
            temperature,
            p.top_k,
            top_p,
            min_p,
            repetition,
            presence,
            frequency,
            p.n_bias,
            p.n_stops,
            p.n_top as u32,
            p.masked,
            p.choice,
        ]);
        words.extend(p.seed.to_le_bytes());
        words
    };
    params.iter().flat_map(one).collect()
}

/// `f32` that device memory holds.
pub fn to_f32(bytes: &[u8]) -> Vec<f32> {
    to_u32(bytes).into_iter().map(f32::from_bits).collect()
}

/// `i32` that device memory holds.
pub fn to_i32(bytes: &[u8]) -> Vec<i32> {
    to_u32(bytes).into_iter().map(|v| v as i32).collect()
}

/// `u32` that device memory holds.
pub fn to_u32(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// `u16` that device memory holds.
pub fn to_u16(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// Values of a float dtype that device memory holds.
pub fn to(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::BF16 => to_u16(bytes).into_iter().map(|v| bf16::from_bits(v).to_f32()).collect(),
        DType::F16 => to_u16(bytes).into_iter().map(|v| f16::from_bits(v).to_f32()).collect(),
        _ => to_f32(bytes),
    }
}

/// What `StepTable::Answers` holds.
pub fn to_answers(bytes: &[u8]) -> Vec<Answer> {
    let one = |words: &[u32]| {
        let (mut top_ids, mut top_logprobs) = ([0; 20], [0.0; 20]);
        for i in 0..20 {
            top_ids[i] = words[4 + i] as i32;
            top_logprobs[i] = f32::from_bits(words[24 + i]);
        }
        Answer {
            id: words[0] as i32,
            logprob: f32::from_bits(words[1]),
            rank: words[2],
            n_top: words[3],
            top_ids,
            top_logprobs,
        }
    };
    to_u32(bytes).chunks_exact(size_of::<Answer>() / 4).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let values = [0.0, -1.5, 3.0e38, f32::INFINITY];
        assert_eq!(to_f32(&of_f32(&values)), values);
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let bytes = of(dtype, &values);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            assert_eq!(to(dtype, &bytes), values.map(|v| dtype.round(v)));
        }
        assert_eq!(to_i32(&of_i32(&[-1, i32::MAX])), [-1, i32::MAX]);
        assert_eq!(to_u16(&of_u16(&[1, 0xfffe])), [1, 0xfffe]);
    }

    #[test]
    fn structs_have_the_size_of_the_device() {
        let params = DrawParams {
            slot: 1,
            position: 2,
            want: 0,
            score_id: -1,
            temperature: 0.5,
            top_k: 7,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            n_bias: 3,
            n_stops: 4,
            n_top: -1,
            masked: 1,
            choice: 5,
            seed: 6 << 32,
        };
        let bytes = of_draw_params(&[params, params]);
        assert_eq!(bytes.len(), 2 * size_of::<DrawParams>());
        assert_eq!(to_u32(&bytes)[16..19], [0, 6, 1]);
        assert_eq!(of_sequences(&[Sequence::default(); 3]).len(), 3 * size_of::<Sequence>());
        let words: Vec<u32> = (0..2 * 44).collect();
        let answers = to_answers(&of_u32(&words));
        assert_eq!((answers.len(), answers[1].id, answers[1].top_ids[19], answers[1].n_top), (2, 44, 67, 47));
    }
}
