//! Thread-instructions per second of CPU time on a GEMM: `rate [unchecked|checked] [threads]`.

use std::time::Instant;

use lathe_device::{ArgValue, Driver, Image, LaunchConfig};
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};

const PTX: &str = include_str!("../tests/ptx/gemm.ptx");

fn cpu_seconds() -> f64 {
    // SAFETY: all zeros is a value of the structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is the one that the call fills.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    usage.ru_utime.tv_sec as f64 + usage.ru_utime.tv_usec as f64 * 1e-6
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let checked = args.get(1).is_some_and(|a| a == "checked");
    let mut options = EmulatorOptions::new(DeviceModel::of(lathe_device::Arch { major: 8, minor: 0 }));
    options.threads = Some(args.get(2).and_then(|n| n.parse().ok()).unwrap_or(1));
    options.check = checked.then(CheckOptions::default);
    let mut device = Emulator::new(&options)?;
    let (m, n, k) = if checked { (128u32, 128u32, 512u32) } else { (256, 512, 2048) };
    let module = device.load_module("gemm", Image { ptx: Some(PTX), ..Image::default() })?;
    let shared = 3 * 2 * 64 * 64;
    let (function, _) = device.function(module, "gemm", shared)?;
    let [a, b, c] = [m * k, n * k, m * n].map(|len| device.allocate("matrix", u64::from(len) * 2));
    let (a, b, c) = (a?, b?, c?);
    device.fill(a, 0x3d, u64::from(m * k) * 2)?;
    device.fill(b, 0x3d, u64::from(n * k) * 2)?;
    let args = [
        ArgValue::Ptr(a),
        ArgValue::Ptr(b),
        ArgValue::Ptr(c),
        ArgValue::U32(m),
        ArgValue::U32(n),
        ArgValue::U32(k),
    ];
    let grid = [n / 64, m / 64, 1];
    for _ in 0..3 {
        let config = LaunchConfig {
            function,
            grid,
            block: 128,
            shared_bytes: shared,
            dependent: false,
            args: &args,
            label: "rate",
        };
        let before = device.thread_instructions();
        // SAFETY: the arguments are those of the kernel.
        unsafe { device.launch(&config)? };
        let (cpu, wall) = (cpu_seconds(), Instant::now());
        let event = device.record()?;
        device.wait(event)?;
        let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
        let done = (device.thread_instructions() - before) as f64 * 1e-6;
        println!(
            "{done:.1} M thread-instructions, {:.0} M/s of CPU time, {:.0} M/s of wall time",
            done / cpu,
            done / wall
        );
    }
    Ok(())
}
