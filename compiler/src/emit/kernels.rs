//! Device code of a plan's programs: every source once per architecture, compiled or taken from the cache.

use lathe_kernels::cuda::{HEADERS, Source};
use lathe_nvrtc::{Compiled, Compiler};
use lathe_plan::CodeWriter;
use lathe_plan::schema::{Entry, Module, Program, Target};

use crate::error::{CompileError, Result};
use crate::options::Options;
use crate::report::KernelReport;
use crate::select::DeviceCode;
use crate::targets::{self, CudaArch};

/// Compiles what the programs need and fills their modules; `code` has one entry per program. The code itself goes to
/// `writer`. Reports the kernels of every decoder.
///
/// # Errors
/// No NVRTC where something must be compiled, or sources that it refuses (a bug).
pub fn compile(
    programs: &mut [Program],
    code: &[DeviceCode],
    options: &Options,
    writer: &mut CodeWriter,
) -> Result<Vec<KernelReport>> {
    let mut jobs: Vec<(&Source, &'static CudaArch)> = Vec::new();
    let mut wanted = Vec::new();
    for (program, code) in programs.iter().zip(code) {
        let Target::Cuda { arch } = &program.target else { continue };
        let arch = targets::arch(arch)
            .ok_or_else(|| CompileError::Bug(format!("program {}: no architecture {arch}", program.name)))?;
        for source in &code.sources {
            if !jobs.contains(&(source, arch)) {
                jobs.push((source, arch));
            }
        }
        wanted.push(arch);
    }
    if jobs.is_empty() {
        return Ok(vec![]);
    }
    let sources: Vec<_> = jobs.iter().map(|(source, arch)| (nvrtc_source(source), arch.name)).collect();
    let compiler = Compiler::new(options.kernel_cache.clone());
    let compiled = compiler.compile_all(&sources, options.threads)?;
    tracing::debug!(phase = "emit", modules = compiled.len(), "kernels compiled");

    let mut reports = Vec::new();
    let on_devices = programs.iter_mut().zip(code).filter(|(p, _)| p.target != Target::Cpu);
    for ((program, code), arch) in on_devices.zip(wanted) {
        for source in &code.sources {
            let at = jobs.iter().position(|job| *job == (source, arch));
            let compiled = at.and_then(|at| compiled.get(at));
            let compiled =
                compiled.ok_or_else(|| CompileError::Bug(format!("{} was not compiled", source.name)))?;
            let at = program.modules.len() as u32;
            program.modules.push(module(source, compiled, &kernels(program, at), writer));
        }
        if program.name == "decoder" {
            reports.extend(report(program, code, arch));
        }
    }
    Ok(reports)
}

fn nvrtc_source(source: &Source) -> lathe_nvrtc::Source<'_> {
    lathe_nvrtc::Source { name: &source.name, text: source.text, headers: HEADERS, defines: &source.defines }
}

/// Names of the kernels that a program launches from a module.
fn kernels(program: &Program, module: u32) -> Vec<String> {
    let launches = program.launches.iter().flat_map(|l| &l.device).chain(&program.sampling);
    let mut names: Vec<String> = launches.filter(|l| l.module == module).map(|l| l.entry.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// A module of the plan. Of PTX alone the compiler says nothing but that it is right, so the kernels are those that are
/// launched.
fn module(source: &Source, compiled: &Compiled, launched: &[String], writer: &mut CodeWriter) -> Module {
    let known = compiled.entries.iter().map(|e| Entry {
        name: e.name.clone(),
        registers: e.registers,
        spill_bytes: e.spill_store_bytes + e.spill_load_bytes,
        stack_bytes: e.stack_bytes,
        shared_bytes: e.shared_bytes,
    });
    let unknown = launched.iter().map(|name| Entry {
        name: name.clone(),
        registers: 0,
        spill_bytes: 0,
        stack_bytes: 0,
        shared_bytes: 0,
    });
    let defines = source.defines.iter().map(|(name, value)| format!(" {name}={value}"));
    Module {
        name: source.name.clone() + &defines.collect::<String>(),
        cubin: (!compiled.cubin.is_empty()).then(|| writer.add(&compiled.cubin)),
        ptx: Some(writer.add(compiled.ptx.as_bytes())),
        entries: if compiled.entries.is_empty() { unknown.collect() } else { known.collect() },
    }
}

/// One line per kernel, in the order of the first launch.
fn report(program: &Program, code: &DeviceCode, arch: &CudaArch) -> Vec<KernelReport> {
    let mut lines: Vec<(u32, &str, KernelReport)> = Vec::new();
    let launches = program.launches.iter().flat_map(|l| &l.device).chain(&program.sampling);
    for (launch, work) in launches.zip(&code.uses) {
        let same = |(module, entry, _): &&mut (u32, &str, KernelReport)| {
            (*module, *entry) == (launch.module, &*launch.entry)
        };
        let (fewest, most) = work.rows;
        let bytes = |rows: u32| work.cost.fixed_bytes + work.cost.row_bytes * u64::from(rows);
        let flops = |rows: u32| work.cost.row_flops * u64::from(rows);
        let line = match lines.iter_mut().find(same) {
            Some((.., line)) => line,
            None => {
                let module = &program.modules[launch.module as usize];
                let entry = module.entries.iter().find(|e| e.name == launch.entry);
                lines.push((
                    launch.module,
                    &launch.entry,
                    KernelReport {
                        target: arch.name,
                        device: arch.device,
                        kernel: code.sources[launch.module as usize].name.clone(),
                        entry: launch.entry.clone(),
                        launches: 0,
                        threads: launch.block,
                        registers: entry.map_or(0, |e| e.registers),
                        spill_bytes: entry.map_or(0, |e| e.spill_bytes),
                        stack_bytes: entry.map_or(0, |e| e.stack_bytes),
                        shared_bytes: launch.shared_bytes + entry.map_or(0, |e| e.shared_bytes),
                        rows: (fewest, most),
                        bytes: (0, 0),
                        flops: (0, 0),
                        bound: ("memory", "memory"),
                    },
                ));
                let last = lines.len() - 1;
                &mut lines[last].2
            }
        };
        line.launches += 1;
        line.rows = (line.rows.0.min(fewest), line.rows.1.max(most));
        line.bytes = (line.bytes.0 + bytes(fewest), line.bytes.1 + bytes(most));
        line.flops = (line.flops.0 + flops(fewest), line.flops.1 + flops(most));
    }
    for (.., line) in &mut lines {
        line.bound = (arch.bound(line.bytes.0, line.flops.0), arch.bound(line.bytes.1, line.flops.1));
    }
    lines.into_iter().map(|(.., line)| line).collect()
}
