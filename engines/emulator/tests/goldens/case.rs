//! One instruction, rows of operands, the results that the PTX manual's words give.

use lathe_device::{Arch, ArgValue, DevicePtr, Driver, Image, LaunchConfig};
use lathe_emulator::{DeviceModel, Emulator, EmulatorOptions};

/// Class of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    B16,
    B32,
    B64,
    F32,
    F64,
    Pred,
}
pub use Ty::*;

impl Ty {
    /// Type in declarations and of loads and stores.
    fn class(self) -> &'static str {
        match self {
            B16 => "b16",
            B32 => "b32",
            B64 => "b64",
            F32 => "f32",
            F64 => "f64",
            Pred => "pred",
        }
    }

    fn literal(self, bits: u64) -> Option<String> {
        Some(match self {
            B16 | Pred => return None,
            B32 => format!("{:#x}", bits as u32),
            B64 => format!("{bits:#x}"),
            F32 => format!("0f{:08X}", bits as u32),
            F64 => format!("0d{bits:016X}"),
        })
    }

    fn cut(self, bits: u64) -> u64 {
        match self {
            B16 => bits & 0xffff,
            B32 | F32 => bits & 0xffff_ffff,
            B64 | F64 => bits,
            Pred => bits & 1,
        }
    }
}

pub const HEAD: &str = ".version 8.8\n.target sm_90\n.address_size 64\n";

/// Bits of a float.
pub fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// Bits of a double.
pub fn g(x: f64) -> u64 {
    x.to_bits()
}

/// Stands for any NaN in a column of results.
pub const ANY_NAN: u64 = 0x7fa5_a5a5;

/// Runs `.entry k(.param .u64 in, .param .u64 out)` with `blocks` blocks of `threads`; answers `n_out` words.
pub fn run(ptx: &str, blocks: u32, threads: u32, input: &[u64], n_out: usize) -> Vec<u64> {
    let model = DeviceModel::of(Arch { major: 9, minor: 0 });
    let mut device = Emulator::new(&EmulatorOptions::new(model)).unwrap();
    let bytes = (input.len().max(n_out) * 8).max(8);
    let mut host = device.host_buffer(bytes).unwrap();
    for (to, word) in host.bytes_mut().chunks_exact_mut(8).zip(input) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    let from: DevicePtr = device.allocate("in", (input.len() * 8).max(8) as u64).unwrap();
    let to = device.allocate("out", (n_out * 8).max(8) as u64).unwrap();
    device.fill(to, 0, (n_out * 8).max(8) as u64).unwrap();
    let image = Image { cubin: None, ptx: Some(ptx), allow_jit: false };
    let module = device.load_module("golden", image).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    let (function, _) = device.function(module, "k", 0).unwrap();
    let args = [ArgValue::Ptr(from), ArgValue::Ptr(to)];
    let config = LaunchConfig {
        function,
        grid: [blocks, 1, 1],
        block: threads,
        shared_bytes: 0,
        dependent: false,
        args: &args,
        label: "golden",
    };
    // SAFETY: the buffer is not touched before the wait, and the kernel stays within both allocations.
    unsafe {
        device.copy_to_device(from, &*host, 0, input.len() * 8).unwrap();
        device.launch(&config).unwrap();
    }
    let event = device.record().unwrap();
    device.wait(event).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    // SAFETY: as above.
    unsafe { device.copy_to_host(&mut *host, 0, to, n_out * 8).unwrap() };
    let event = device.record().unwrap();
    device.wait(event).unwrap();
    host.bytes().chunks_exact(8).take(n_out).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Results of `op d, a, b, ..` over rows of operands: all in registers, one lane per row, rows again from the first on
/// until the last warp is full. With `guarded` only lanes 0, 3, 6, .. execute it; the others answer 0.
fn in_registers(op: &str, out: Ty, ins: &[Ty], rows: &[Vec<u64>], guarded: bool) -> Vec<u64> {
    let names = ["a", "b", "c", "e"];
    let mut ptx = format!("{HEAD}.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n");
    ptx += ".reg .b64 %p, %q, %z;\n.reg .b32 %t, %w;\n.reg .pred %pa, %pb;\n";
    ptx += &format!(".reg .{} %d;\n", out.class());
    for (ty, name) in ins.iter().zip(names) {
        ptx += &format!(".reg .{} %{name};\n", ty.class());
    }
    ptx += "ld.param.u64 %p, [in];\nld.param.u64 %q, [out];\ncvta.to.global.u64 %p, %p;\ncvta.to.global.u64 %q, %q;\n";
    ptx += "mov.u32 %t, %ctaid.x;\nshl.b32 %t, %t, 5;\nmov.u32 %w, %laneid;\nadd.u32 %t, %t, %w;\n";
    ptx += &format!("mad.wide.u32 %p, %t, {}, %p;\nmad.wide.u32 %q, %t, 8, %q;\n", 8 * ins.len());
    for (i, (ty, name)) in ins.iter().zip(names).enumerate() {
        if *ty == Pred {
            ptx += &format!("ld.global.b32 %w, [%p+{}];\nsetp.ne.u32 %{name}, %w, 0;\n", 8 * i);
        } else {
            ptx += &format!("ld.global.{} %{name}, [%p+{}];\n", ty.class(), 8 * i);
        }
    }
    let operands: Vec<String> = names.iter().take(ins.len()).map(|n| format!("%{n}")).collect();
    if guarded {
        ptx += "mov.u32 %w, %laneid;\nrem.u32 %w, %w, 3;\nsetp.eq.u32 %pa, %w, 0;\n";
        ptx += &match out {
            Pred => "setp.ne.u32 %d, %w, %w;\n@%pa ".to_string(),
            F32 => "mov.b32 %d, 0f00000000;\n@%pa ".to_string(),
            F64 => "mov.b64 %d, 0d0000000000000000;\n@%pa ".to_string(),
            _ => format!("mov.{} %d, 0;\n@%pa ", out.class()),
        };
    }
    ptx += &instruction(op, "%d", &operands);
    ptx += &store(out, "%d", 0);
    ptx += "ret;\n}\n";
    let padded = rows.len().div_ceil(32) * 32;
    let input: Vec<u64> = (0..padded).flat_map(|i| rows[i % rows.len()].clone()).collect();
    run(&ptx, padded as u32 / 32, 32, &input, padded)
}

/// The same with the last operand as a literal, one instruction per row.
fn with_literals(op: &str, out: Ty, ins: &[Ty], rows: &[Vec<u64>]) -> Option<Vec<u64>> {
    let (last, others) = ins.split_last().filter(|(_, others)| !others.is_empty())?;
    let mut ptx = format!("{HEAD}.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n");
    ptx += ".reg .b64 %p, %q, %z;\n.reg .b32 %w;\n";
    ptx += &format!(".reg .{} %d;\n", out.class());
    for (i, ty) in others.iter().enumerate() {
        ptx += &format!(".reg .{} %x{i};\n", ty.class());
    }
    ptx += "ld.param.u64 %p, [in];\nld.param.u64 %q, [out];\ncvta.to.global.u64 %p, %p;\ncvta.to.global.u64 %q, %q;\n";
    for (n, row) in rows.iter().enumerate() {
        let mut operands = Vec::new();
        for (i, ty) in others.iter().enumerate() {
            if *ty == Pred {
                return None;
            }
            ptx += &format!("ld.global.{} %x{i}, [%p+{}];\n", ty.class(), 8 * (n * ins.len() + i));
            operands.push(format!("%x{i}"));
        }
        operands.push(last.literal(row[others.len()])?);
        ptx += &instruction(op, "%d", &operands);
        ptx += &store(out, "%d", 8 * n);
    }
    ptx += "ret;\n}\n";
    Some(run(&ptx, 1, 1, &rows.concat(), rows.len()))
}

fn instruction(op: &str, d: &str, operands: &[String]) -> String {
    // A trailing literal of the operation itself stands after `;`.
    match op.split_once(';') {
        Some((op, rest)) => format!("{op} {d}, {}, {rest};\n", operands.join(", ")),
        None => format!("{op} {d}, {};\n", operands.join(", ")),
    }
}

fn store(out: Ty, d: &str, at: usize) -> String {
    match out {
        Pred => format!("selp.u32 %w, 1, 0, {d};\nst.global.u32 [%q+{at}], %w;\n"),
        _ => format!("st.global.{} [%q+{at}], {d};\n", out.class()),
    }
}

/// `op d, a, b, ..` gives the last number of each row for the others; what stands after `;` in `op` are further operands.
pub fn check<const N: usize>(op: &str, out: Ty, ins: &[Ty], rows: &[[u64; N]]) {
    assert_eq!(N, ins.len() + 1, "{op}");
    let operands: Vec<Vec<u64>> = rows.iter().map(|r| r[..N - 1].to_vec()).collect();
    let judge = |results: Vec<u64>, how: &str, every: usize| {
        for (i, (row, result)) in rows.iter().cycle().zip(results).enumerate() {
            let (operands, expected) = row.split_at(N - 1);
            let expected = if i % 32 % every == 0 { out.cut(expected[0]) } else { 0 };
            let nan = out == F32 && expected == ANY_NAN && f32::from_bits(result as u32).is_nan();
            let result = if nan { ANY_NAN } else { result };
            assert_eq!(
                out.cut(result),
                expected,
                "{op} {how} of {operands:#x?}: {result:#x}, not {expected:#x}"
            );
        }
    };
    judge(in_registers(op, out, ins, &operands, false), "in registers", 1);
    judge(in_registers(op, out, ins, &operands, true), "in some lanes", 3);
    if let Some(results) = with_literals(op, out, ins, &operands) {
        judge(results, "with literals", 1);
    }
}

/// As [`check`] for one-operand functions that are approximate: within `ulps` of the last place; NaN is any NaN.
pub fn approximate(op: &str, ulps: u32, rows: &[(f32, f32)]) {
    let operands: Vec<Vec<u64>> = rows.iter().map(|(x, _)| vec![f(*x)]).collect();
    for ((x, y), result) in rows.iter().cycle().zip(in_registers(op, F32, &[F32], &operands, false)) {
        let z = f32::from_bits(result as u32);
        let order = |x: f32| {
            let bits = x.to_bits() as i32;
            i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
        };
        let same_zero = *y != 0.0 || z.is_sign_negative() == y.is_sign_negative();
        let fits = y.is_nan() && z.is_nan()
            || !z.is_nan() && (order(z) - order(*y)).unsigned_abs() <= u64::from(ulps) && same_zero;
        assert!(fits, "{op}({x:e}) is {z:e} ({result:#x}), not {y:e}");
    }
}
