//! A plan as stable text and as JSON: the same plan gives the same characters.
//!
//! Strings of the plan print escaped, so that a foreign plan cannot steer a terminal.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde_json::{Value, json};

use crate::memory::Bytes;
use crate::operand::SYMBOL_NAMES;
use crate::reader::Plan;
use crate::schema::{
    Arg, Blob, CacheGroup, CacheKind, DeviceLaunch, Expr, Extent, Input, Launch, Module, Operand, Param,
    Place, Program, StepSymbol, StepTable, Target, Term, Weight, When, hex,
};

/// Bytes of weights that are stored again in another layout: of each name, all but the largest.
pub fn duplicated_bytes(weights: &[Weight]) -> u64 {
    let mut by_name: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for w in weights {
        let (sum, largest) = by_name.entry(&w.name).or_default();
        *sum += w.bytes;
        *largest = w.bytes.max(*largest);
    }
    by_name.values().map(|(sum, largest)| sum - largest).sum()
}

/// All of a plan but the weights' bytes, one fact per line.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_plan(&mut out, plan);
    out
}

/// The same as `text`, for programs.
pub fn json(plan: &Plan) -> Value {
    let header = plan.header();
    let sections: Vec<Value> = header
        .sections
        .iter()
        .map(|s| {
            let (offset, length) = (s.offset, s.length);
            json!({"tag": s.name(), "version": s.version, "flags": s.flags, "offset": offset, "length": length,
                   "hash": hex(&s.hash)})
        })
        .collect();
    json!({
        "format": format!("{}.{}", header.version.0, header.version.1),
        "file_bytes": plan.file_bytes(),
        "sections": sections,
        "card": plan.card(),
        "programs": plan.programs(),
        "weights": plan.weights(),
        "weight_bytes": plan.data_bytes(),
        "code_bytes": plan.code_section().len(),
        "duplicated_bytes": duplicated_bytes(plan.weights()),
        "text": plan.text(),
        "tokenizer_bytes": plan.tokenizer_json().map(<[u8]>::len),
        "self_test": plan.self_test(),
    })
}

fn write_plan(out: &mut String, plan: &Plan) -> fmt::Result {
    let (header, card) = (plan.header(), plan.card());
    writeln!(out, "plan format {}.{}, {} bytes", header.version.0, header.version.1, plan.file_bytes())?;
    for s in &header.sections {
        let need = if s.flags == 0 { "optional" } else { "required" };
        writeln!(out, "section {} v{} {need} at {} bytes {}", s.name(), s.version, s.offset, s.length)?;
    }
    writeln!(out, "\nmodel {}", safe(&card.name))?;
    writeln!(out, "  architecture {}", safe(&card.architecture))?;
    writeln!(out, "  parameters {}", card.n_parameters)?;
    writeln!(out, "  vocabulary {}, bos {}, eos {:?}", card.vocab_size, option(card.bos_id), card.eos_ids)?;
    let g = &card.generation;
    writeln!(
        out,
        "  defaults temperature {}, top_k {}, top_p {}, min_p {}, repetition_penalty {}",
        option(g.temperature),
        option(g.top_k),
        option(g.top_p),
        option(g.min_p),
        option(g.repetition_penalty)
    )?;
    let l = &card.limits;
    writeln!(out, "  positions {} in the checkpoint", card.max_position)?;
    writeln!(
        out,
        "  limits max-batch {}, max-num-tokens {}, max-sample-rows {}, max-seq-len {}, kv-tokens {}",
        l.max_batch, l.max_num_tokens, l.max_sample_rows, l.max_seq_len, l.kv_tokens
    )?;
    writeln!(out, "  producer {}, numeric contract {}", safe(&card.producer), card.contract)?;
    writeln!(out, "  flags {}", safe(&crate::header::shell_line(&card.flags)))?;
    for pass in &card.numeric_passes {
        writeln!(out, "  numeric {}", safe(pass))?;
    }
    writeln!(out, "  source {}", hex(&card.source_hash))?;
    for (name, template) in &plan.text().chat_templates {
        writeln!(out, "  chat template {}, {} bytes", safe(name), template.len())?;
    }
    for (name, token) in &plan.text().special_tokens {
        writeln!(out, "  {} \"{}\"", safe(name), safe(token))?;
    }
    writeln!(out, "  tokenizer {} bytes", option(plan.tokenizer_json().map(<[u8]>::len)))?;
    if let Some(t) = plan.self_test() {
        let (ids, logits) = (t.token_ids.len(), t.logits.len());
        writeln!(out, "  self-test {ids} ids, {logits} logits, tolerance {}", t.tolerance)?;
    }
    for p in plan.programs() {
        writeln!(out)?;
        write_program(out, p, plan.weights())?;
    }
    writeln!(out, "\nweights {}, {} bytes", plan.weights().len(), plan.data_bytes())?;
    for (i, w) in plan.weights().iter().enumerate() {
        let (name, layout) = (safe(&w.name), w.layout.name());
        let hash = hex(&w.hash);
        writeln!(
            out,
            "  %{i} {name}: {}{:?} {layout} at {} bytes {} {}",
            w.dtype,
            w.shape,
            w.offset,
            w.bytes,
            &hash[..16]
        )?;
    }
    let twice = duplicated_bytes(plan.weights());
    writeln!(out, "  stored again in another layout: {}", Bytes(twice))
}

fn write_program(out: &mut String, p: &Program, weights: &[Weight]) -> fmt::Result {
    writeln!(out, "program {} for {}, rank {} of {}", safe(&p.name), target(&p.target), p.rank, p.n_ranks)?;
    for s in &p.symbols {
        writeln!(out, "  symbol {} in {}..={}", safe(&s.name), s.min, s.max)?;
    }
    writeln!(out, "  arena {} bytes, scratch {} bytes per thread", p.arena_bytes, p.scratch_bytes)?;
    for (i, g) in p.cache_groups.iter().enumerate() {
        writeln!(out, "  cache {i} {}", cache(g))?;
        for (j, layer) in g.layers.iter().enumerate() {
            let (heads, dim) = (layer.kv_heads, layer.head_dim);
            writeln!(out, "    layer {j} {heads} x {dim} {} at {}", layer.dtype, layer.offset)?;
        }
    }
    for (i, b) in p.buffers.iter().enumerate() {
        let rows = expr(&b.rows);
        writeln!(out, "  buffer {i} {}: {}[{rows}, {}] at {}", safe(&b.name), b.dtype, b.cols, b.offset)?;
    }
    for (i, m) in p.modules.iter().enumerate() {
        writeln!(out, "  module {i} {}: {}", safe(&m.name), code(m))?;
        for line in kernels(m) {
            writeln!(out, "    kernel {line}")?;
        }
    }
    for (i, l) in p.launches.iter().enumerate() {
        writeln!(out, "  {i}: {}", launch(l, p, weights))?;
        for d in &l.device {
            writeln!(out, "    {}", device_launch(d, &short(d, p)))?;
        }
    }
    writeln!(out, "  logits {}", operand(&p.logits, p, weights))?;
    for d in &p.sampling {
        writeln!(out, "  sampling {}", device_launch(d, &short(d, p)))?;
    }
    Ok(())
}

/// The forms of a module's code: bytes and the start of their hash.
pub fn code(m: &Module) -> String {
    let form = |name: &str, blob: &Option<Blob>| {
        blob.map(|b| format!("{name} {} bytes {}", b.bytes, &hex(&b.hash)[..16]))
    };
    let forms = [form("cubin", &m.cubin), form("ptx", &m.ptx)];
    forms.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What the compiler said of each kernel of a module, a line each.
pub fn kernels(m: &Module) -> Vec<String> {
    let line = |e: &crate::schema::Entry| {
        format!(
            "{}: {} registers, {} bytes spilled, {} bytes of stack, {} bytes shared",
            safe(&e.name),
            e.registers,
            e.spill_bytes,
            e.stack_bytes,
            e.shared_bytes
        )
    };
    m.entries.iter().map(line).collect()
}

/// Index and first word of a launch's module: what it is specialised on stands with the module.
fn short(d: &DeviceLaunch, p: &Program) -> String {
    let name = p.modules.get(d.module as usize).map_or("", |m| m.name.as_str());
    format!("{} {}", d.module, name.split(' ').next().unwrap_or_default())
}

/// A device launch on one line: `module:kernel [grid] x block + dynamic shared memory (arguments) when`.
pub fn device_launch(d: &DeviceLaunch, module: &str) -> String {
    let module = safe(module);
    let grid: Vec<String> = d.grid.iter().map(extent).collect();
    let args: Vec<String> = d.args.iter().map(arg).collect();
    let shared = if d.shared_bytes == 0 { String::new() } else { format!(" + {} bytes", d.shared_bytes) };
    let when = match d.when {
        When::Always => String::new(),
        When::Range { symbol, min, max } => format!(" while {min} <= {} <= {max}", step_symbol(symbol)),
        When::Mixed => " while some sequence has several rows".to_string(),
    };
    let dependent = if d.dependent { ", dependent" } else { "" };
    let (grid, args) = (grid.join(", "), args.join(", "));
    format!("{module}:{} [{grid}] x {}{shared} ({args}){when}{dependent}", safe(&d.entry), d.block)
}

fn extent(e: &Extent) -> String {
    let (constant, terms) = match e {
        Extent::Sum { constant, terms } => (*constant, terms),
        Extent::Fill { per_sm, most } => return format!("{per_sm} per sm to {most}"),
    };
    let term = |t: &Term| {
        let blocks = match t.per {
            1 => step_symbol(t.symbol).to_string(),
            per => format!("ceil({} / {per})", step_symbol(t.symbol)),
        };
        if t.times == 1 { blocks } else { format!("{} {blocks}", t.times) }
    };
    let mut parts: Vec<String> = terms.iter().map(term).collect();
    if constant > 0 || parts.is_empty() {
        parts.push(constant.to_string());
    }
    parts.join(" + ")
}

fn step_symbol(symbol: StepSymbol) -> &'static str {
    SYMBOL_NAMES[symbol as usize]
}

fn arg(a: &Arg) -> String {
    match a {
        Arg::Input(i) => format!("input {i}"),
        Arg::Output(i) => format!("output {i}"),
        Arg::Table(table) => format!("${}", table_name(*table)),
        Arg::Symbol(symbol) => step_symbol(*symbol).to_string(),
        Arg::U32(v) => v.to_string(),
        Arg::U64(v) => format!("{v}u64"),
        Arg::F32(v) => format!("{v:?}"),
    }
}

/// A step table as it stands in text.
pub const fn table_name(table: StepTable) -> &'static str {
    match table {
        StepTable::Tokens => "tokens",
        StepTable::Positions => "positions",
        StepTable::RowSequence => "row_sequence",
        StepTable::Sequences => "sequences",
        StepTable::Blocks => "blocks",
        StepTable::SampleRows => "sample_rows",
        StepTable::Drawn => "drawn",
        StepTable::DrawParams => "draw_params",
        StepTable::Masks => "masks",
        StepTable::Counts => "counts",
        StepTable::Bias => "bias",
        StepTable::Stops => "stops",
        StepTable::Answers => "answers",
        StepTable::Scores => "scores",
    }
}

/// One launch on one line: `outputs = kernel(inputs) {params} # node`.
pub fn launch(l: &Launch, p: &Program, weights: &[Weight]) -> String {
    let list =
        |operands: &[Operand]| operands.iter().map(|o| operand(o, p, weights)).collect::<Vec<_>>().join(", ");
    let params: Vec<String> = l.params.iter().map(|(n, v)| format!("{}={}", safe(n), param(v))).collect();
    let params = if params.is_empty() { String::new() } else { format!(" {{{}}}", params.join(", ")) };
    format!("{} = {}({}){params} # {}", list(&l.outputs), safe(&l.kernel), list(&l.inputs), safe(&l.node))
}

fn operand(o: &Operand, p: &Program, weights: &[Weight]) -> String {
    let (name, whole) = match o.place {
        Place::Buffer(i) => {
            let b = p.buffers.get(i as usize);
            let name = b.map_or_else(|| format!("buffer {i}"), |b| safe(&b.name));
            (name, b.is_some_and(|b| Operand::buffer(i, b) == *o))
        }
        Place::Weight(i) => {
            let name = weights.get(i as usize).map_or_else(|| i.to_string(), |w| safe(&w.name));
            (format!("@{name}"), true)
        }
        Place::Input(input) => {
            let name = match input {
                Input::Tokens => "tokens",
                Input::Positions => "positions",
                Input::SampleRows => "sample_rows",
            };
            (format!("${name}"), true)
        }
        Place::Cache { group, layer } => (format!("cache[{group}, {layer}]"), true),
    };
    if whole {
        return name;
    }
    let (rows, end) = (expr(&o.rows), o.col_offset.saturating_add(o.cols));
    format!("{name}[{rows} by {}, {}..{end}]", o.row_stride, o.col_offset)
}

fn param(p: &Param) -> String {
    match p {
        Param::Int(v) => v.to_string(),
        Param::Float(v) => format!("{v:?}"),
        Param::Name(v) => safe(v),
    }
}

/// `2 t + r + 1`; symbols that have no name print as `s9`.
pub fn expr(e: &Expr) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (symbol, coefficient) in &e.terms {
        let name = SYMBOL_NAMES
            .get(*symbol as usize)
            .map_or_else(|| format!("s{symbol}"), |name| (*name).to_string());
        parts.push(if *coefficient == 1 { name } else { format!("{coefficient} {name}") });
    }
    if e.constant > 0 || parts.is_empty() {
        parts.push(e.constant.to_string());
    }
    parts.join(" + ")
}

/// The target as flags name it.
pub fn target(t: &Target) -> String {
    match t {
        Target::Cpu => "cpu".to_string(),
        Target::Cuda { arch } => safe(arch),
    }
}

fn cache(g: &CacheGroup) -> String {
    let kind = match g.kind {
        CacheKind::Paged { block, window: None } => format!("paged, {block} positions"),
        CacheKind::Paged { block, window: Some(w) } => format!("paged, {block} positions, window {w}"),
        CacheKind::Latent { block, width } => format!("latent, {block} positions, width {width}"),
        CacheKind::Recurrent { bytes } => format!("recurrent, {bytes} bytes per sequence"),
        CacheKind::Cross { block } => format!("cross, {block} positions"),
    };
    let replay = if g.replay_exact { "replays exactly" } else { "does not replay exactly" };
    format!("{kind}, {} bytes per block, {replay}", g.bytes_per_block)
}

fn option<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "none".to_string(), |v| v.to_string())
}

fn safe(text: &str) -> String {
    text.chars().flat_map(|c| c.escape_debug()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{small_cuda_plan, small_plan};

    #[test]
    fn text_is_stable() {
        for (name, file) in [("small.txt", small_plan()), ("small-cuda.txt", small_cuda_plan())] {
            let got = text(&Plan::from_bytes(file.unwrap()).unwrap());
            let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(&path, &got).unwrap();
            }
            let want = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(got, want, "run with BLESS=1 if the change is meant");
        }
    }

    #[test]
    fn json_holds_the_same() {
        let plan = Plan::from_bytes(small_plan().unwrap()).unwrap();
        let v = json(&plan);
        assert_eq!(v["card"]["limits"]["max_batch"], 4);
        assert_eq!(v["programs"][0]["launches"].as_array().unwrap().len(), 13);
        assert_eq!(v["weights"][0]["hash"].as_str().unwrap().len(), 64);
        assert_eq!(v["weights"][0]["dtype"], "bf16");
        assert_eq!(v, json(&plan));
        let cuda = json(&Plan::from_bytes(small_cuda_plan().unwrap()).unwrap());
        assert_eq!(cuda["programs"][0]["modules"][0]["entries"][0]["registers"], 40);
        assert_eq!(cuda["programs"][0]["modules"][1]["cubin"]["bytes"], 100);
        assert_eq!(
            cuda["programs"][0]["launches"][0]["device"][0]["grid"][0]["Sum"]["terms"][0]["symbol"],
            "Tokens"
        );
    }

    #[test]
    fn duplicates_are_counted_once_per_name() {
        let mut weights = Plan::from_bytes(small_plan().unwrap()).unwrap().weights().to_vec();
        assert_eq!(duplicated_bytes(&weights), 0);
        let copy = Weight { layout: crate::schema::Layout::RowMajor, bytes: 100, ..weights[0].clone() };
        weights.push(copy);
        assert_eq!(duplicated_bytes(&weights), 100);
    }

    #[test]
    fn strings_are_escaped() {
        assert_eq!(safe("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(expr(&Expr { constant: 1, terms: vec![(0, 2), (2, 1), (7, 1)] }), "2 t + r + s7 + 1");
    }
}
