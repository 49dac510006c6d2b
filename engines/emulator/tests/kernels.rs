//! Whole kernels that NVRTC made: results against plain loops, over schedules, threads and host instruction sets.

use half::bf16;
use lathe_device::{Arch, ArgValue, DevicePtr, Driver, DriverError, Image, LaunchConfig};
use lathe_emulator::exec::HostIsa;
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};

const GEMM: &str = include_str!("ptx/gemm.ptx");
const RMS_NORM: &str = include_str!("ptx/rms_norm.ptx");

fn options() -> EmulatorOptions {
    let mut device = DeviceModel::of(Arch { major: 8, minor: 0 });
    device.total_bytes = 1 << 30;
    EmulatorOptions::new(device)
}

fn values(n: usize, seed: u32) -> Vec<bf16> {
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| bf16::from_f32(next())).collect()
}

fn bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn upload(device: &mut Emulator, name: &str, data: &[u8]) -> DevicePtr {
    let at = device.allocate(name, data.len() as u64).unwrap();
    let mut host = device.host_buffer(data.len()).unwrap();
    host.bytes_mut().copy_from_slice(data);
    // SAFETY: the buffer lives until after the wait.
    unsafe { device.copy_to_device(at, host.as_ref(), 0, data.len()).unwrap() };
    let event = device.record().unwrap();
    device.wait(event).unwrap();
    at
}

fn download(device: &mut Emulator, at: DevicePtr, len: usize) -> Result<Vec<bf16>, DriverError> {
    let mut host = device.host_buffer(len * 2)?;
    // SAFETY: the buffer is read after the wait.
    unsafe { device.copy_to_host(host.as_mut(), 0, at, len * 2)? };
    let event = device.record()?;
    device.wait(event)?;
    Ok(host.bytes().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect())
}

struct Case<'a> {
    ptx: &'a str,
    entry: &'a str,
    grid: [u32; 3],
    block: u32,
    shared: u32,
}

fn launch(device: &mut Emulator, case: &Case<'_>, args: &[ArgValue]) {
    let module = device.load_module(case.entry, Image { ptx: Some(case.ptx), ..Image::default() }).unwrap();
    let (function, _) = device.function(module, case.entry, case.shared).unwrap();
    let config = LaunchConfig {
        function,
        grid: case.grid,
        block: case.block,
        shared_bytes: case.shared,
        dependent: false,
        args,
        label: "test",
    };
    // SAFETY: arguments and kernel belong together, or the test is about what happens when they do not.
    unsafe { device.launch(&config).unwrap() };
}

const GEMM_SHARED: u32 = 3 * 2 * 64 * 64;

fn run_gemm(device: &mut Emulator, (m, n, k): (u32, u32, u32)) -> (Vec<bf16>, Vec<f32>) {
    let (a, b) = (values((m * k) as usize, 1), values((n * k) as usize, 2));
    let (pa, pb) = (upload(device, "a", &bytes(&a)), upload(device, "b", &bytes(&b)));
    let pc = device.allocate("c", u64::from(m * n * 2)).unwrap();
    let case = Case { ptx: GEMM, entry: "gemm", grid: [n / 64, m / 64, 1], block: 128, shared: GEMM_SHARED };
    let args = [
        ArgValue::Ptr(pa),
        ArgValue::Ptr(pb),
        ArgValue::Ptr(pc),
        ArgValue::U32(m),
        ArgValue::U32(n),
        ArgValue::U32(k),
    ];
    launch(device, &case, &args);
    let got = download(device, pc, (m * n) as usize).unwrap();
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let mut want = vec![0f32; m * n];
    for row in 0..m {
        for column in 0..n {
            want[row * n + column] =
                (0..k).map(|i| a[row * k + i].to_f32() * b[column * k + i].to_f32()).sum();
        }
    }
    (got, want)
}

#[test]
fn gemm_equals_loops() {
    let mut device = Emulator::new(&options()).unwrap();
    for shape in [(64, 64, 32), (128, 64, 96), (64, 192, 256)] {
        let (got, want) = run_gemm(&mut device, shape);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(
                (g.to_f32() - w).abs() <= 0.01 * w.abs().max(0.5),
                "{shape:?} element {i}: {g} and not {w}"
            );
        }
    }
}

#[test]
fn same_bits_over_schedules_threads_and_hosts() {
    let shape = (128, 128, 128);
    let (want, _) = run_gemm(&mut Emulator::new(&options()).unwrap(), shape);
    for seed in [None, Some(1), Some(2)] {
        for threads in [1, 3] {
            let mut device =
                Emulator::new(&EmulatorOptions { seed, threads: Some(threads), ..options() }).unwrap();
            assert_eq!(run_gemm(&mut device, shape).0, want, "seed {seed:?}, {threads} threads");
        }
    }
    let mut device = Emulator::new(&options()).unwrap();
    device.set_host_isa(HostIsa::portable());
    assert_eq!(run_gemm(&mut device, shape).0, want, "portable");
    let check = Some(CheckOptions::default());
    let mut device = Emulator::new(&EmulatorOptions { check, seed: Some(3), ..options() }).unwrap();
    assert_eq!(run_gemm(&mut device, shape).0, want, "checked");
}

#[test]
fn rms_norm_equals_loops() {
    for check in [None, Some(CheckOptions::default())] {
        let mut device = Emulator::new(&EmulatorOptions { check, ..options() }).unwrap();
        let (x, w) = (values(3 * 1024, 5), values(1024, 6));
        let (px, pw) = (upload(&mut device, "x", &bytes(&x)), upload(&mut device, "w", &bytes(&w)));
        let py = device.allocate("y", 3 * 2048).unwrap();
        let case = Case { ptx: RMS_NORM, entry: "rms_norm", grid: [3, 1, 1], block: 128, shared: 0 };
        let args = [ArgValue::Ptr(px), ArgValue::Ptr(pw), ArgValue::Ptr(py), ArgValue::F32(1e-5)];
        launch(&mut device, &case, &args);
        let got = download(&mut device, py, 3 * 1024).unwrap();
        for row in 0..3 {
            let x = &x[row * 1024..][..1024];
            let mean = x.iter().map(|v| v.to_f32().powi(2)).sum::<f32>() / 1024.0;
            let inv = 1.0 / (mean + 1e-5).sqrt();
            for i in 0..1024 {
                let want = x[i].to_f32() * inv * w[i].to_f32();
                let got = got[row * 1024 + i].to_f32();
                assert!(
                    (got - want).abs() <= 0.01 * want.abs().max(0.01),
                    "row {row} element {i}: {got} and not {want}"
                );
            }
        }
    }
}

#[test]
fn out_of_bounds_is_a_fault_with_all_that_is_known() {
    for check in [None, Some(CheckOptions::default())] {
        let mut device = Emulator::new(&EmulatorOptions { check, threads: Some(1), ..options() }).unwrap();
        let (px, pw) = (upload(&mut device, "x", &[0; 2048]), upload(&mut device, "weights", &[0; 1024]));
        let py = device.allocate("y", 2048).unwrap();
        let case = Case { ptx: RMS_NORM, entry: "rms_norm", grid: [1, 1, 1], block: 128, shared: 0 };
        let args = [ArgValue::Ptr(px), ArgValue::Ptr(pw), ArgValue::Ptr(py), ArgValue::F32(1e-5)];
        launch(&mut device, &case, &args);
        let event = device.record().unwrap();
        let DriverError::Fault { kernel, report } = device.wait(event).unwrap_err() else {
            panic!("no fault")
        };
        assert_eq!(kernel, "rms_norm (test)");
        // Warp 3 opened the barrier before the load, and goes on as the first.
        for part in [
            "load of 16 bytes out of bounds",
            "512 bytes past the end of `weights` (1024 bytes)",
            "rms_norm.cu:",
            "ld.global.nc.v4.u32",
            "block (0, 0, 0), thread 96",
        ] {
            assert!(report.contains(part), "`{part}` is missing in: {report}");
        }
        // The device is unusable from then on, and says why.
        assert!(matches!(device.allocate("more", 1), Err(DriverError::Fault { .. })));
    }
}

#[test]
fn freed_memory_is_a_fault() {
    let mut device = Emulator::new(&options()).unwrap();
    let (px, pw) = (upload(&mut device, "x", &[0; 2048]), upload(&mut device, "w", &[0; 2048]));
    let py = device.allocate("y", 2048).unwrap();
    let case = Case { ptx: RMS_NORM, entry: "rms_norm", grid: [1, 1, 1], block: 128, shared: 0 };
    let args = [ArgValue::Ptr(px), ArgValue::Ptr(pw), ArgValue::Ptr(py), ArgValue::F32(1e-5)];
    launch(&mut device, &case, &args);
    device.free(py).unwrap();
    let event = device.record().unwrap();
    let report = device.wait(event).unwrap_err().to_string();
    assert!(report.contains("store of 16 bytes out of bounds") && report.contains("freed `y`"), "{report}");
}

#[test]
fn graphs_replay_what_was_captured() {
    let mut device = Emulator::new(&options()).unwrap();
    let (x, w) = (values(1024, 5), values(1024, 6));
    let (px, pw) = (upload(&mut device, "x", &bytes(&x)), upload(&mut device, "w", &bytes(&w)));
    let py = device.allocate("y", 2048).unwrap();
    device.fill(py, 0, 2048).unwrap();
    let case = Case { ptx: RMS_NORM, entry: "rms_norm", grid: [1, 1, 1], block: 128, shared: 0 };
    let args = [ArgValue::Ptr(px), ArgValue::Ptr(pw), ArgValue::Ptr(py), ArgValue::F32(1e-5)];
    device.begin_capture().unwrap();
    launch(&mut device, &case, &args);
    let graph = device.end_capture().unwrap();
    let zero = vec![bf16::ZERO; 1024];
    assert_eq!(download(&mut device, py, 1024).unwrap(), zero, "capturing runs nothing");
    // SAFETY: the graph's memory lives.
    unsafe { device.launch_graph(graph).unwrap() };
    let first = download(&mut device, py, 1024).unwrap();
    assert_ne!(first, zero);
    device.fill(py, 0, 2048).unwrap();
    // SAFETY: as above.
    unsafe { device.launch_graph(graph).unwrap() };
    assert_eq!(download(&mut device, py, 1024).unwrap(), first);
}
