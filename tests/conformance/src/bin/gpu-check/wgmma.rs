//! Do the warpgroup instructions have one answer for all widths, and is it that of `mma.sync`? Decides whether prefill may
//! use them under the numeric contract. There is no emulation of them: on the emulator only `mma.sync` runs.

use anyhow::{Context, Result};
use lathe_conformance::{Rig, bytes, code};
use lathe_device::{Arch, ArgValue, DevicePtr, Image, LaunchConfig};
use lathe_kernels::cuda::{HEADERS, Source};
use lathe_numerics::DType;
use lathe_nvrtc::{Compiled, Compiler};
use serde_json::{Map, Value, json};

use crate::Bench;
use crate::nodes::random;

const KERNELS: &str = include_str!("wgmma.cu");
/// Columns of a product, all that are powers of two.
const WIDTHS: &[usize] = &[8, 16, 32, 64, 128, 256];
const ROWS: usize = 64;
const WIDEST: usize = 256;
const K: usize = 1024;

/// The kernel of `mma.sync`.
pub fn reference() -> Source {
    Source::new("by-mma", KERNELS, vec![])
}

/// The instruction for `n` columns, and its accumulators as operands, as macros.
fn defines(n: usize) -> Vec<(&'static str, String)> {
    let count = n / 2;
    let list = |item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(",");
    let registers = list(&|i| format!("%{i}"));
    let text = format!(
        "\"{{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 \
         {{{registers}}}, %{count}, %{}, p, 1, 1, 0, 0;}}\"",
        count + 1
    );
    let operands = list(&|i| format!("\"+f\"(x[{i}])"));
    vec![("COLUMNS", n.to_string()), ("OPERANDS(x)", operands), ("WGMMA", text)]
}

/// The kernels of all widths.
///
/// # Errors
/// NVRTC's.
pub fn compile(compiler: &Compiler) -> Result<Vec<Compiled>> {
    let made = |n: &usize| {
        let defines = defines(*n);
        let name = format!("by-wgmma-{n}");
        let source = lathe_nvrtc::Source { name: &name, text: KERNELS, headers: HEADERS, defines: &defines };
        compiler.compile(&source, "sm_90a").with_context(|| format!("wgmma of {n} columns"))
    };
    WIDTHS.iter().map(made).collect()
}

/// Launches a kernel of a module of its own and reads `n` columns of its result.
fn product(rig: &mut Rig, code: &Compiled, entry: &str, at: [DevicePtr; 3], n: usize) -> Result<Vec<f32>> {
    let image = Image { cubin: Some(&code.cubin), ptx: Some(&code.ptx), allow_jit: false };
    let module = rig.driver().load_module(entry, image)?;
    let (function, _) = rig.driver().function(module, entry, 0)?;
    let mut args: Vec<ArgValue> = at.iter().map(|at| ArgValue::Ptr(*at)).collect();
    args.push(ArgValue::U32(K as u32));
    let (grid, block) = match entry {
        "by_mma" => ([(n / 8) as u32, (ROWS / 16) as u32, 1], 32),
        _ => ([1, 1, 1], 128),
    };
    if entry == "by_mma" {
        args.push(ArgValue::U32(n as u32));
    }
    let config =
        LaunchConfig { function, grid, block, shared_bytes: 0, dependent: false, args: &args, label: entry };
    // SAFETY: the buffers hold 64 and 256 rows of K and 64 rows of 256 columns, more than any of the kernels touches.
    unsafe { rig.driver().launch(&config) }?;
    rig.wait()?;
    rig.read_f32(at[2], ROWS * n)
}

/// Values of many magnitudes, so that the order and the width of sums show.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut one = || {
        let bits = random(&mut state);
        let mantissa = (bits >> 40) as f32 / 8_388_608.0 - 1.0;
        DType::BF16.round(mantissa * f32::powi(2.0, (bits % 17) as i32 - 8))
    };
    (0..n).map(|_| one()).collect()
}

/// How many of the first columns' elements differ in bits, and the largest difference over the largest value.
fn compare(a: &[f32], a_columns: usize, b: &[f32], b_columns: usize) -> Value {
    let columns = a_columns.min(b_columns);
    let (mut differ, mut worst, mut largest) = (0, 0f32, 0f32);
    for (x, y) in a.chunks(a_columns).zip(b.chunks(b_columns)) {
        for (x, y) in x[..columns].iter().zip(&y[..columns]) {
            differ += usize::from(x.to_bits() != y.to_bits());
            worst = worst.max((x - y).abs());
            largest = largest.max(y.abs());
        }
    }
    json!({ "elements": ROWS * columns, "other_bits": differ, "largest_difference": worst / largest })
}

/// # Errors
/// The device's; kernels that do not compile.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    let mut rig = bench.rig()?;
    let (a, b) = (values(ROWS * K, 1), values(WIDEST * K, 2));
    let exact: Vec<f32> = (0..ROWS * WIDEST)
        .map(|i| {
            let (x, y) = (&a[i / WIDEST * K..][..K], &b[i % WIDEST * K..][..K]);
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
        })
        .collect();
    let at = [
        rig.buffer("a", &bytes::of(DType::BF16, &a))?,
        rig.buffer("b", &bytes::of(DType::BF16, &b))?,
        rig.empty("d", ROWS * WIDEST * 4)?,
    ];
    let compiler = code::compiler();
    let by_mma = code::compile(&compiler, &[&reference()], crate::shapes::ARCH)?.remove(0);
    let by_mma = product(&mut rig, &by_mma, "by_mma", at, WIDEST)?;
    found.insert("mma_sync_against_f64".into(), compare(&by_mma, WIDEST, &exact, WIDEST));
    let mut emulator = Rig::emulator(false)?;
    let there = [
        emulator.buffer("a", &bytes::of(DType::BF16, &a))?,
        emulator.buffer("b", &bytes::of(DType::BF16, &b))?,
        emulator.empty("d", ROWS * WIDEST * 4)?,
    ];
    let code = code::compile(&compiler, &[&reference()], crate::shapes::ARCH)?.remove(0);
    let emulated = product(&mut emulator, &code, "by_mma", there, WIDEST)?;
    found.insert("mma_sync_against_emulator".into(), compare(&by_mma, WIDEST, &emulated, WIDEST));

    let all = compile(&compiler)?;
    if rig.info().arch != (Arch { major: 9, minor: 0 }) || bench.emulator {
        found.insert("wgmma".into(), json!("compiled, not run: there is no such device"));
        return Ok(());
    }
    let mut narrowest: Option<Vec<f32>> = None;
    let mut rows = Vec::new();
    for (n, code) in WIDTHS.iter().zip(all) {
        let got = product(&mut rig, &code, "by_wgmma", at, *n).with_context(|| format!("{n} columns"))?;
        let narrow = narrowest.get_or_insert_with(|| got.clone());
        rows.push(json!({
            "columns": n,
            "against_f64": compare(&got, *n, &exact, WIDEST),
            "against_mma_sync": compare(&got, *n, &by_mma, WIDEST),
            "against_8_columns": compare(&got, *n, narrow, WIDTHS[0]),
        }));
        found.insert("wgmma".into(), json!(rows));
    }
    Ok(())
}
