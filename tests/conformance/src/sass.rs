//! What ptxas made of a kernel: the instructions of a cubin, by NVIDIA's disassembler.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Instructions of each kernel of a cubin, predicates left out: `HMMA.16816.F32.BF16 R4, R8, R2, R4`.
///
/// # Errors
/// No disassembler, or a cubin that it refuses.
pub fn disassemble(cubin: &[u8]) -> Result<BTreeMap<String, Vec<String>>> {
    let program = disassembler().context("nvdisasm: not found; run tools/cuda-kit")?;
    let file = std::env::temp_dir().join(format!("{}-{:p}.cubin", std::process::id(), cubin));
    std::fs::File::create(&file)?.write_all(cubin)?;
    let out = Command::new(&program).args(["-c", "-ndf"]).arg(&file).stdin(Stdio::null()).output();
    std::fs::remove_file(&file)?;
    let out = out.with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("nvdisasm: {}{text}", String::from_utf8_lossy(&out.stderr));
    }
    let kernels = parse(&text);
    ensure!(!kernels.is_empty(), "nvdisasm: no kernel in\n{text}");
    Ok(kernels)
}

/// That of `LATHE_CUDA_HOME`, else of the kit.
fn disassembler() -> Option<PathBuf> {
    let home = std::env::var_os("LATHE_CUDA_HOME").map(PathBuf::from);
    let places = home.into_iter().chain(lathe_nvrtc::kit()).map(|folder| folder.join("bin/nvdisasm"));
    places.into_iter().find(|path| path.is_file())
}

fn parse(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut kernels = BTreeMap::new();
    let mut kernel: Option<&mut Vec<String>> = None;
    for line in text.lines() {
        if let Some(section) = line.trim_start().strip_prefix(".section\t") {
            let name = section.split(',').next().unwrap_or_default();
            kernel = name.strip_prefix(".text.").map(|name| kernels.entry(name.to_owned()).or_default());
        }
        // `        /*0010*/              @!P0 EXIT ;`
        let Some((address, rest)) = line.trim_start().strip_prefix("/*").and_then(|l| l.split_once("*/"))
        else {
            continue;
        };
        let instruction = rest.trim().trim_end_matches(';').trim();
        if !address.bytes().all(|b| b.is_ascii_hexdigit()) || instruction.is_empty() {
            continue;
        }
        let plain = match instruction.strip_prefix('@').and_then(|guarded| guarded.split_once(' ')) {
            Some((_, plain)) => plain.trim_start(),
            None => instruction,
        };
        if let Some(kernel) = &mut kernel {
            kernel.push(plain.to_owned());
        }
    }
    kernels
}

/// How many instructions start with `opcode` and hold every one of its modifiers: `LDG.128` finds `LDG.E.128.CONSTANT`.
pub fn count(code: &[String], opcode: &str) -> usize {
    let mut wanted = opcode.split('.');
    let (base, modifiers) = (wanted.next().unwrap_or_default(), wanted.collect::<Vec<_>>());
    let holds = |line: &&String| {
        let mut parts = line.split_whitespace().next().unwrap_or_default().split('.');
        let is = parts.next() == Some(base);
        let parts: Vec<&str> = parts.collect();
        is && modifiers.iter().all(|modifier| parts.contains(modifier))
    };
    code.iter().filter(holds).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_read_by_kernel() {
        let text = "\t.headerflags\t@\"EF_CUDA_SM80\"\n\
                    .section\t.text.k,\"ax\",@progbits\n\
                    .text.k:\n\
                    \x20       /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;\n\
                    \x20       /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;\n\
                    .L_x_0:\n\
                    \x20       /*0020*/                   BRA `(.L_x_0);\n\
                    .section\t.nv.info,\"\",@\"SHT_CUDA_INFO\"\n\
                    \x20       /*0000*/        .byte   0x04\n\
                    .section\t.text.l,\"ax\",@progbits\n\
                    \x20       /*0000*/                   EXIT ;\n";
        let kernels = parse(text);
        assert_eq!(kernels.keys().collect::<Vec<_>>(), ["k", "l"]);
        let k = &kernels["k"];
        assert_eq!(k[1], "LDG.E.128.CONSTANT R4, [R2.64]");
        assert_eq!((k.len(), count(k, "LDG.128"), count(k, "LDG.64"), count(k, "LD")), (3, 1, 0, 0));
        assert_eq!((count(k, "BRA"), count(&kernels["l"], "EXIT")), (1, 1));
    }
}
