//! What ptxas says about the kernels of a module (`--ptxas-options=-v`).

/// What one kernel needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryReport {
    /// Name as the module knows it: plain for `extern "C"`.
    pub name: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes that a thread writes to local memory for want of registers, functions that it calls included.
    pub spill_store_bytes: u32,
    /// Bytes that it reads back.
    pub spill_load_bytes: u32,
    /// Local memory of a thread.
    pub stack_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
}

/// A log taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// Kernels in the log's order.
    pub(crate) entries: Vec<EntryReport>,
    /// What is no report: warnings.
    pub(crate) warnings: String,
}

/// Reads a log of a compilation that succeeded.
pub(crate) fn parse(log: &str) -> Log {
    let mut out = Log::default();
    for line in log.lines() {
        let Some(said) = line.strip_prefix("ptxas").map(str::trim_start) else {
            // An indented line carries on with the properties of a function.
            if !properties(line, &mut out.entries) && !line.trim().is_empty() {
                out.warnings.push_str(line.trim_end());
                out.warnings.push('\n');
            }
            continue;
        };
        let Some(said) = said.strip_prefix("info").map(|s| s.trim_start().trim_start_matches(':').trim())
        else {
            if !properties(said, &mut out.entries) {
                out.warnings.push_str(line.trim_end());
                out.warnings.push('\n');
            }
            continue;
        };
        if let Some(rest) = said.strip_prefix("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            out.entries.push(EntryReport { name, ..EntryReport::default() });
        } else if said.starts_with("Used ") {
            if let Some(entry) = out.entries.last_mut() {
                entry.registers = number_before(said, " registers").unwrap_or(0);
                entry.shared_bytes = number_before(said, " bytes smem").unwrap_or(0);
            }
        } else {
            properties(said, &mut out.entries);
        }
    }
    out
}

/// Adds `0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads` to the last kernel.
fn properties(line: &str, entries: &mut [EntryReport]) -> bool {
    let (Some(stack), Some(stores), Some(loads)) = (
        number_before(line, " bytes stack frame"),
        number_before(line, " bytes spill stores"),
        number_before(line, " bytes spill loads"),
    ) else {
        return false;
    };
    if let Some(entry) = entries.last_mut() {
        entry.stack_bytes += stack;
        entry.spill_store_bytes += stores;
        entry.spill_load_bytes += loads;
    }
    true
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = &line[..line.find(unit)?];
    let digits = before.len() - before.bytes().rev().take_while(u8::is_ascii_digit).count();
    before[digits..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_and_warnings_kept() {
        let log = "\
k.cu(3): warning #177-D: variable \"x\" was declared but never referenced

ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'fold' for 'sm_80'
ptxas info    : Function properties for fold
ptxas         .     280 bytes stack frame, 488 bytes spill stores, 392 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 280 bytes cumulative stack size, 256 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 1.445 ms
ptxas info    : Compiling entry function '_Z1gv' for 'sm_80'
ptxas info    : Function properties for _Z1gv
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for callee
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 12 registers, 348 bytes cmem[0]
ptxas warning : Registers are spilled to local memory in function 'fold', 488 bytes spill stores, 392 bytes spill loads
";
        let fold = EntryReport {
            name: "fold".into(),
            registers: 64,
            spill_store_bytes: 488,
            spill_load_bytes: 392,
            stack_bytes: 280,
            shared_bytes: 256,
        };
        let g = EntryReport {
            name: "_Z1gv".into(),
            registers: 12,
            spill_store_bytes: 4,
            spill_load_bytes: 8,
            stack_bytes: 24,
            shared_bytes: 0,
        };
        let out = parse(log);
        assert_eq!(out.entries, [fold, g]);
        assert_eq!(out.warnings.lines().count(), 2);
        assert!(out.warnings.contains("#177-D") && out.warnings.contains("Registers are spilled"));
        assert_eq!(parse(""), Log::default());
    }
}
