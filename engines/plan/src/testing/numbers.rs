//! Every number and type in a plan's tables, one by one: edits that always decode, so that only their meaning is
//! wrong.

use lathe_numerics::DType;

use crate::schema::{Arg, CacheKind, DeviceLaunch, Expr, Extent, Operand, Param, Place, Weight, When};
use crate::writer::Tables;

/// A field that can be set.
pub(super) enum Number<'a> {
    U32(&'a mut u32),
    U64(&'a mut u64),
    F32(&'a mut f32),
    Type(&'a mut DType),
}

impl Number<'_> {
    /// Sets the field to something near what it is, at a border, or anything, as `choice` and `random` say.
    pub(super) fn set(self, choice: usize, random: u64) {
        let change = |now: u64| match choice % 12 {
            0 => now.wrapping_add(1),
            1 => now.wrapping_sub(1),
            2 => now.wrapping_mul(2),
            3 => now ^ 64,
            4 => 0,
            5 => 1 << 31,
            6 => 1 << 40,
            7 => u64::MAX,
            8 => u64::MAX - now,
            9 => random % 64,
            10 => random % 64 * 64,
            _ => random,
        };
        match self {
            Number::U32(n) => *n = change(u64::from(*n)) as u32,
            Number::U64(n) => *n = change(*n),
            Number::F32(n) => *n = f32::from_bits(change(u64::from(n.to_bits())) as u32),
            Number::Type(n) => *n = DType::from_code((random % 5) as u8).unwrap_or(*n),
        }
    }
}

/// All fields, in a fixed order.
pub(super) fn all<'a>(tables: &'a mut Tables, weights: &'a mut [Weight]) -> Vec<Number<'a>> {
    use Number::{F32, Type, U32, U64};
    let mut out = Vec::new();
    let card = &mut tables.card;
    let l = &mut card.limits;
    out.extend(
        [&mut l.max_batch, &mut l.max_num_tokens, &mut l.max_sample_rows, &mut l.max_seq_len].map(U32),
    );
    out.push(U64(&mut l.kv_tokens));
    out.extend([&mut card.vocab_size, &mut card.max_position, &mut card.contract].map(U32));
    out.extend(card.bos_id.iter_mut().chain(&mut card.eos_ids).map(U32));
    let g = &mut card.generation;
    out.extend([&mut g.temperature, &mut g.top_p, &mut g.min_p].into_iter().flatten().map(F32));
    for w in weights {
        out.extend(w.shape.iter_mut().chain([&mut w.offset, &mut w.bytes]).map(U64));
        out.push(Type(&mut w.dtype));
    }
    for p in &mut tables.programs {
        out.extend([&mut p.rank, &mut p.n_ranks].map(U32));
        out.extend([&mut p.arena_bytes, &mut p.scratch_bytes].map(U64));
        for s in &mut p.symbols {
            out.extend([&mut s.min, &mut s.max].map(U64));
        }
        for b in &mut p.buffers {
            expression(&mut b.rows, &mut out);
            out.extend([&mut b.cols, &mut b.offset].map(U64));
            out.push(Type(&mut b.dtype));
        }
        for group in &mut p.cache_groups {
            out.push(U64(&mut group.bytes_per_block));
            match &mut group.kind {
                CacheKind::Paged { block, window } => {
                    out.push(U32(block));
                    out.extend(window.iter_mut().map(U32));
                }
                CacheKind::Latent { block, width } => out.extend([block, width].map(U32)),
                CacheKind::Recurrent { bytes } => out.push(U64(bytes)),
                CacheKind::Cross { block } => out.push(U32(block)),
            }
            for layer in &mut group.layers {
                out.extend([&mut layer.kv_heads, &mut layer.head_dim].map(U32));
                out.push(U64(&mut layer.offset));
                out.push(Type(&mut layer.dtype));
            }
        }
        operand(&mut p.logits, &mut out);
        for launch in &mut p.launches {
            for o in launch.inputs.iter_mut().chain(&mut launch.outputs) {
                operand(o, &mut out);
            }
            for (_, param) in &mut launch.params {
                match param {
                    Param::Int(n) => out.push(U64(n)),
                    Param::Float(n) => out.push(F32(n)),
                    Param::Name(_) => {}
                }
            }
            for d in &mut launch.device {
                device_launch(d, &mut out);
            }
        }
        for d in &mut p.sampling {
            device_launch(d, &mut out);
        }
        for module in &mut p.modules {
            for blob in module.cubin.iter_mut().chain(&mut module.ptx) {
                out.extend([&mut blob.offset, &mut blob.bytes].map(U64));
            }
            for e in &mut module.entries {
                out.extend(
                    [&mut e.registers, &mut e.spill_bytes, &mut e.stack_bytes, &mut e.shared_bytes].map(U32),
                );
            }
        }
    }
    if let Some(test) = &mut tables.self_test {
        out.extend(test.token_ids.iter_mut().chain(&mut test.positions).chain(&mut test.ids).map(U32));
        out.extend(test.logits.iter_mut().chain([&mut test.tolerance]).map(F32));
    }
    out
}

fn device_launch<'a>(d: &'a mut DeviceLaunch, out: &mut Vec<Number<'a>>) {
    use Number::{F32, U32, U64};
    out.extend([&mut d.module, &mut d.block, &mut d.shared_bytes].map(U32));
    match &mut d.when {
        When::Range { min, max, .. } => out.extend([min, max].map(U32)),
        When::Always | When::Mixed => {}
    }
    for extent in &mut d.grid {
        match extent {
            Extent::Sum { constant, terms } => {
                out.push(U32(constant));
                out.extend(terms.iter_mut().flat_map(|t| [&mut t.per, &mut t.times]).map(U32));
            }
            Extent::Fill { per_sm, most } => out.extend([per_sm, most].map(U32)),
        }
    }
    for arg in &mut d.args {
        match arg {
            Arg::Input(n) | Arg::Output(n) | Arg::U32(n) => out.push(U32(n)),
            Arg::U64(n) => out.push(U64(n)),
            Arg::F32(n) => out.push(F32(n)),
            Arg::Table(_) | Arg::Symbol(_) => {}
        }
    }
}

fn expression<'a>(e: &'a mut Expr, out: &mut Vec<Number<'a>>) {
    out.push(Number::U64(&mut e.constant));
    for (symbol, coefficient) in &mut e.terms {
        out.push(Number::U32(symbol));
        out.push(Number::U64(coefficient));
    }
}

fn operand<'a>(o: &'a mut Operand, out: &mut Vec<Number<'a>>) {
    match &mut o.place {
        Place::Buffer(i) | Place::Weight(i) => out.push(Number::U32(i)),
        Place::Cache { group, layer } => out.extend([group, layer].map(Number::U32)),
        Place::Input(_) => {}
    }
    expression(&mut o.rows, out);
    out.extend([&mut o.cols, &mut o.row_stride, &mut o.col_offset].map(Number::U64));
    out.push(Number::Type(&mut o.dtype));
}
