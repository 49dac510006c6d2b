//! `runtime inspect`, `runtime diff`, `runtime strip` and `--version`.

use clap::ArgMatches;
use lathe_cpu::Isa;
use lathe_diagnostics::{Exit, format_bytes};
use lathe_plan::header::VERSION;
use lathe_plan::{diff::diff as differences, inspect as plan_text};

use super::console::print;
use super::faults::{self, Outcome};
use super::{load, path};

/// What `--version` prints after the name.
pub fn version() -> String {
    let format = format!("{}.{}", VERSION.0, VERSION.1);
    lathe_diagnostics::version(&format, &["cpu", "cuda"], Isa::fastest().name())
}

/// Prints all of a plan but its weights' bytes.
pub fn inspect(matches: &ArgMatches) -> Outcome<Exit> {
    let plan = load::plan(&path(matches, "plan"))?;
    if matches.get_flag("json") {
        print(&format!("{:#}\n", plan_text::json(&plan)))?;
    } else {
        print(&plan_text::text(&plan))?;
    }
    Ok(Exit::Ok)
}

/// Writes a plan without PTX that no GPU of its targets needs.
pub fn strip(matches: &ArgMatches) -> Outcome<Exit> {
    let plan = load::plan(&path(matches, "plan"))?;
    let output = path(matches, "output");
    let written = lathe_plan::strip_ptx(&plan, &output).map_err(faults::plan)?;
    let (before, after) = (format_bytes(plan.file_bytes()), format_bytes(written.file_bytes));
    print(&format!("{}: {after}, was {before}\n", output.display()))?;
    Ok(Exit::Ok)
}

/// Prints one line per difference, nothing where both plans do the same.
pub fn diff(matches: &ArgMatches) -> Outcome<Exit> {
    let (a, b) = (load::plan(&path(matches, "plan"))?, load::plan(&path(matches, "other"))?);
    for difference in differences(&a, &b) {
        print(&format!("{difference}\n"))?;
    }
    Ok(Exit::Ok)
}
