//! What NVRTC gives, and how the cache stands before it. Needs the kit (tools/cuda-kit).

use std::fs;
use std::path::Path;
use std::process::Command;

use lathe_nvrtc::{Compiler, NvrtcError, Source, VERSION, supported};

const HEADERS: &[(&str, &str)] = &[(
    "scale.cuh",
    "#pragma once\ntemplate <class T>\n__device__ __forceinline__ T scale(T x) { return x * T(FACTOR); }\n",
)];

const TEXT: &str = r#"#include "scale.cuh"
extern "C" __global__ void reversed(float* x) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = scale(s[63 - threadIdx.x]);
}
extern "C" __global__ void __launch_bounds__(1024) spilling(float* x) {
    float v[128];
    for (int i = 0; i < 128; i++) v[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] = v[i] * v[127 - i];
}
"#;

fn defines() -> Vec<(&'static str, String)> {
    vec![("FACTOR", "3".into())]
}

fn source<'a>(defines: &'a [(&'a str, String)]) -> Source<'a> {
    Source { name: "reversed", text: TEXT, headers: HEADERS, defines }
}

#[test]
fn every_architecture_gives_code_and_a_report() {
    let (compiler, defines) = (Compiler::new(None), defines());
    for arch in supported() {
        let made = compiler.compile(&source(&defines), arch).unwrap();
        assert_eq!(&made.cubin[..4], b"\x7fELF", "{arch}");
        assert!(made.ptx.contains(&format!(".target {arch}\n")), "{arch}");
        assert!(made.ptx.contains(".loc") && made.ptx.contains("\"reversed.cu\""), "{arch}");
        assert!(made.ptx.ends_with('\n') && made.ptx.contains("\"scale.cuh\""), "{arch}");
        assert_eq!(made.warnings, "", "{arch}");
        assert_eq!(made.version.split('.').count(), 3);

        let entry = |name| made.entries.iter().find(|entry| entry.name == name).unwrap();
        let reversed = entry("reversed");
        assert_eq!((reversed.stack_bytes, reversed.spill_store_bytes, reversed.spill_load_bytes), (0, 0, 0));
        assert!((5..40).contains(&reversed.registers), "{arch}: {reversed:?}");
        // From sm_90 on, the system has 1,024 bytes of its own.
        assert!([256, 256 + 1024].contains(&reversed.shared_bytes), "{arch}: {reversed:?}");
        let spilling = entry("spilling");
        assert!(spilling.registers <= 64 && spilling.stack_bytes > 0, "{arch}: {spilling:?}");
        assert!(spilling.spill_store_bytes > 0 && spilling.spill_load_bytes > 0, "{arch}: {spilling:?}");
        assert_eq!(made.entries.len(), 2);
    }
}

#[test]
fn the_same_source_gives_the_same_bytes_from_any_folder() {
    let defines = defines();
    let first = Compiler::new(None).compile(&source(&defines), "sm_90").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(folder.path()).unwrap();
    let second = Compiler::new(None).compile(&source(&defines), "sm_90").unwrap();
    assert!(first == second);
    let place = folder.path().to_str().unwrap();
    assert!(!second.ptx.contains(place));
    assert!(!second.cubin.windows(place.len()).any(|bytes| bytes == place.as_bytes()));
}

#[test]
fn a_virtual_architecture_gives_the_same_ptx_and_no_code() {
    let (compiler, defines) = (Compiler::new(None), defines());
    let real = compiler.compile(&source(&defines), "sm_80").unwrap();
    let portable = compiler.compile(&source(&defines), "compute_80").unwrap();
    assert!(portable.cubin.is_empty() && portable.entries.is_empty());
    assert_eq!(portable.ptx, real.ptx);
}

#[test]
fn macros_headers_and_names_reach_the_compiler() {
    let compiler = Compiler::new(None);
    let with = |factor: &str| vec![("FACTOR", factor.to_owned())];
    let (three, five) = (with("3"), with("5"));
    let ptx = |defines: &[(&str, String)]| compiler.compile(&source(defines), "compute_80").unwrap().ptx;
    assert!(ptx(&three).contains("0f40400000") && ptx(&five).contains("0f40A00000"));

    let error = compiler.compile(&source(&[]), "sm_80").unwrap_err();
    let NvrtcError::Compile { source_name, arch, log } = &error else { panic!("{error}") };
    assert_eq!((source_name.as_str(), arch.as_str()), ("reversed", "sm_80"));
    assert!(log.contains("FACTOR") && log.contains("scale.cuh(3)"), "{log}");
    assert!(error.to_string().contains("FACTOR"));

    let no_header = Source { headers: &[], ..source(&three) };
    assert!(compiler.compile(&no_header, "sm_80").unwrap_err().to_string().contains("scale.cuh"));
    let nul = Source { text: "a\0b", ..source(&three) };
    assert!(matches!(compiler.compile(&nul, "sm_80"), Err(NvrtcError::Input { .. })));
    assert!(matches!(compiler.compile(&source(&three), "sm_100a"), Err(NvrtcError::Arch { .. })));
}

#[test]
fn warnings_are_kept_with_the_module() {
    let folder = tempfile::tempdir().unwrap();
    let unused = Source {
        name: "unused",
        text: "extern \"C\" __global__ void k(int* x) { int never; *x = 1; }",
        headers: &[],
        defines: &[],
    };
    for _ in 0..2 {
        let made = Compiler::new(Some(folder.path().into())).compile(&unused, "sm_80").unwrap();
        assert!(
            made.warnings.contains("unused.cu(1)") && made.warnings.contains("never"),
            "{}",
            made.warnings
        );
    }
}

#[test]
fn many_are_compiled_in_order_and_the_first_fault_counts() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(Some(folder.path().into()));
    let factors: Vec<Vec<(&str, String)>> = (0..6).map(|n| vec![("FACTOR", n.to_string())]).collect();
    let jobs: Vec<_> = factors.iter().map(|defines| (source(defines), "compute_80")).collect();
    let threads = 3;
    let all = compiler.compile_all(&jobs, threads).unwrap();
    for (job, made) in jobs.iter().zip(&all) {
        assert!(*made == Compiler::new(None).compile(&job.0, job.1).unwrap());
    }
    assert!(compiler.compile_all(&[], 0).unwrap().is_empty());

    let wrong = Source { text: "nonsense", name: "wrong", ..jobs[0].0 };
    let mut jobs = jobs;
    jobs[2].0 = wrong;
    jobs[4].1 = "sm_100a";
    let error = compiler.compile_all(&jobs, threads).unwrap_err();
    assert!(matches!(&error, NvrtcError::Compile { source_name, .. } if source_name == "wrong"), "{error}");
}

fn only_file(folder: &Path) -> std::path::PathBuf {
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn damaged_entries_are_made_again_and_what_cannot_be_written_is_not() {
    let (folder, defines) = (tempfile::tempdir().unwrap(), defines());
    let compile = || Compiler::new(Some(folder.path().into())).compile(&source(&defines), "sm_80").unwrap();
    let first = compile();
    let file = only_file(folder.path());
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for bytes in [&damaged[..], &whole[..40], &[]] {
        fs::write(&file, bytes).unwrap();
        assert!(compile() == first);
        assert_eq!(fs::read(only_file(folder.path())).unwrap(), whole);
    }

    // A file stands where the folder should be.
    let blocked = Compiler::new(Some(file)).compile(&source(&defines), "sm_80").unwrap();
    assert!(blocked == first);
}

#[test]
fn all_that_goes_in_is_in_the_key() {
    let (folder, defines) = (tempfile::tempdir().unwrap(), defines());
    let compiler = Compiler::new(Some(folder.path().into()));
    let base = source(&defines);
    let four = vec![("FACTOR", "4".to_owned())];
    let more = [HEADERS[0], ("more.cuh", "")];
    let text = format!("{TEXT}\n");
    let jobs = [
        (base, "compute_80"),
        (base, "compute_90"),
        (Source { name: "other", ..base }, "compute_80"),
        (Source { text: &text, ..base }, "compute_80"),
        (Source { headers: &more, ..base }, "compute_80"),
        (Source { defines: &four, ..base }, "compute_80"),
    ];
    for (done, (source, arch)) in jobs.iter().enumerate() {
        for _ in 0..2 {
            compiler.compile(source, arch).unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), done + 1);
        }
    }
}

const CHILD: &str = "LATHE_NVRTC_TEST_CACHE";

#[test]
fn a_full_cache_needs_no_nvrtc() {
    let defines = defines();
    if let Some(cache) = std::env::var_os(CHILD) {
        // The child: NVRTC cannot be found here.
        let full = Compiler::new(Some(cache.into()));
        full.compile(&source(&defines), "sm_80").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("libnvrtc"), "a full cache opened NVRTC");
        let error = full.compile(&source(&defines), "sm_86").unwrap_err();
        let NvrtcError::NotFound { searched } = &error else { panic!("{error}") };
        assert!(searched.contains("/nowhere") && error.to_string().contains("tools/cuda-kit"), "{error}");
        assert!(!searched.contains("cuda-kit-"), "a home that is set is the only place: {searched}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = Compiler::new(Some(folder.path().into())).compile(&source(&defines), "sm_80").unwrap();
    assert_eq!(
        made.version, VERSION,
        "another NVRTC than the pinned one answers here; unset LATHE_CUDA_HOME"
    );
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_cache_needs_no_nvrtc", "--nocapture"])
        .env("LATHE_CUDA_HOME", "/nowhere")
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}
