//! The checked mode on small kernels: each has one fault that must be found, and a repaired twin that must pass.

mod dependent;
mod device;

use device::{Device, KERNELS, run};
use lathe_device::{Driver, DriverError};

const SOURCE: &str = include_str!("../ptx/check.cu");
const SEEDS: [Option<u64>; 5] = [None, Some(1), Some(2), Some(3), Some(4)];

/// Kernel, blocks, threads, source text at one of the two parties, and words of the report.
type Row = (&'static str, u32, u32, &'static str, &'static [&'static str]);

const ROWS: &[Row] = &[
    ("shared_read", 1, 64, "s[63 - t]", &["race", "same block", "shared memory byte"]),
    ("shared_reuse", 1, 64, "s[63 - t]", &["race", "same block", "shared memory byte"]),
    ("lanes_clash", 1, 64, "good ? in[t / 32 + 1] : in[t]", &["different values", "at once"]),
    ("halves", 1, 64, "s[good ? 0 : 32] = 7", &["race", "same block"]),
    ("global_read", 1, 64, "out[63 - t]", &["race", "same block", "`output`"]),
    ("blocks_overlap", 2, 64, "blockIdx.x * n + t", &["race", "of block [", "`output`"]),
    ("blocks_in_place", 2, 64, "neighbour", &["race", "of block [", "`output`"]),
    ("last_block", 4, 64, "out[64 * blockIdx.x + t]", &["race", "of block [", "fences and an atomic"]),
    (
        "last_block_acquire",
        4,
        64,
        "out[64 * blockIdx.x + t]",
        &["race", "of block [", "fences and an atomic"],
    ),
    ("atomic_read", 2, 64, "atomicAdd", &["race", "atomic", "of block [", "`output`"]),
    ("async_no_wait", 1, 64, "cp.async.cg", &["asynchronous copy", "not been waited for"]),
    ("async_wait_count", 1, 64, "cp.async.cg", &["asynchronous copy", "not been waited for"]),
    ("async_no_barrier", 1, 64, "cp.async.cg", &["asynchronous copy", "not been waited for"]),
    ("async_reuse", 1, 64, "cp.async.cg", &["race", "same block", "shared memory byte"]),
    (
        "async_overwrite",
        1,
        64,
        "cp.async.cg",
        &["writes bytes of an asynchronous copy", "not been waited for"],
    ),
    ("undefined_branch", 1, 64, "> 3", &["undefined data", "decides"]),
    ("undefined_address", 1, 64, "in[s[63 - t] & 63]", &["undefined data", "address", "thread 58"]),
    ("undefined_result", 1, 64, "", &["host copies", "never written", "`output`", "byte 232"]),
    ("barrier_lanes", 1, 64, "__syncthreads", &["divergent barrier 0", "lanes 0x0000ffff"]),
    ("barrier_warps", 1, 64, "__syncthreads", &["divergent barrier 0", "warp 0", "warp 1"]),
    ("barrier_exit", 1, 64, "", &["divergent barrier 0"]),
    ("barrier_count", 1, 96, "bar.sync 1, 64", &["deadlock", "barrier 1"]),
    ("barrier_named", 1, 64, "s[", &["race", "same block", "shared memory byte"]),
    ("matrix_read", 1, 64, "s[64 * i + t]", &["race", "same block", "shared memory byte"]),
    ("matrix_column", 1, 32, "", &["host copies", "never written", "byte 20"]),
];

/// True if a line named in the report holds the text.
fn names_line(report: &str, text: &str) -> bool {
    let lines: Vec<&str> = SOURCE.lines().collect();
    report
        .split("check.cu:")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok())
        .any(|n| lines.get(n.wrapping_sub(1)).is_some_and(|line| line.contains(text)))
}

fn report(error: DriverError) -> String {
    match error {
        DriverError::Fault { kernel, report } => format!("{kernel}: {report}"),
        other => panic!("a fault was expected, not {other}"),
    }
}

#[test]
fn faults_are_found_whatever_the_order() {
    for (name, blocks, threads, text, words) in ROWS {
        let kernel = format!("{name}_bad");
        for seed in SEEDS {
            let found = match run(&kernel, *blocks, *threads, seed) {
                Ok(_) => panic!("{kernel}, seed {seed:?}: nothing found"),
                Err(error) => report(error),
            };
            for word in *words {
                assert!(found.contains(word), "{kernel}, seed {seed:?}: {word:?} is missing in: {found}");
            }
            assert!(
                text.is_empty() || names_line(&found, text),
                "{kernel}, seed {seed:?}, {text:?}: {found}"
            );
            let instruction = !found.contains("host copies");
            assert!(!instruction || found.contains(&kernel), "{kernel}: {found}");
            assert!(
                !instruction || (found.contains("block (") && found.contains("thread ")),
                "{kernel}: {found}"
            );
        }
    }
}

#[test]
fn repaired_twins_pass_whatever_the_order() {
    for (name, blocks, threads, ..) in ROWS {
        let kernel = format!("{name}_good");
        let expected = run(&kernel, *blocks, *threads, None).unwrap_or_else(|e| panic!("{kernel}: {e}"));
        assert!(expected.iter().any(|w| *w != 0), "{kernel} did nothing");
        for seed in SEEDS {
            let out =
                run(&kernel, *blocks, *threads, seed).unwrap_or_else(|e| panic!("{kernel} {seed:?}: {e}"));
            assert_eq!(out, expected, "{kernel} {seed:?}");
        }
    }
}

#[test]
fn what_nobody_wrote_does_not_reach_the_host() {
    let mut device = Device::new(KERNELS, None);
    let fresh = device.driver.allocate("fresh", 64).unwrap();
    device.write(fresh, &[7; 8]);
    assert_eq!(device.read(fresh, 8).unwrap(), [7; 8]);
    let found = report(device.read(fresh, 9).unwrap_err());
    assert!(found.contains("byte 32") && found.contains("`fresh`"), "{found}");
}

#[test]
fn memory_given_back_is_undefined_again() {
    let mut device = Device::new(KERNELS, None);
    let first = device.driver.allocate("first", 64).unwrap();
    device.write(first, &[7; 16]);
    device.driver.free(first).unwrap();
    let second = device.driver.allocate("second", 64).unwrap();
    let found = report(device.read(second, 16).unwrap_err());
    assert!(found.contains("byte 0") && found.contains("`second`"), "{found}");
}

#[test]
fn launches_one_after_the_other_are_ordered() {
    for seed in SEEDS {
        let mut device = Device::new(KERNELS, seed);
        let (input, output) = (device.input, device.output);
        for _ in 0..3 {
            device.launch("shared_read_good", 1, 64, &[input, output], false).unwrap();
            device.launch("shared_read_good", 1, 64, &[output, input], false).unwrap();
            device.launch("blocks_in_place_good", 2, 64, &[input, output], false).unwrap();
        }
        device.wait().unwrap();
        device.read(output, 128).unwrap();
    }
}
