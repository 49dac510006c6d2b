//! Control flow of hand-written PTX, and what is refused: unknown instructions, bad text, launches that cannot be.

use lathe_device::{Arch, ArgValue, DevicePtr, Driver, DriverError, Function, Image, LaunchConfig};
use lathe_emulator::{DeviceModel, Emulator, EmulatorOptions};

const HEAD: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

/// A kernel `k(out)` with some registers; `%r0` is the thread, `%rd1` where it writes its answer.
fn kernel(before: &str, body: &str) -> String {
    format!(
        "{HEAD}{before}
.visible .entry k(.param .u64 out)
{{
    .reg .pred %p<4>;
    .reg .b32 %r<10>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd0, [out];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd1, %rd0, %rd1;
{body}
    st.global.u32 [%rd1], %r1;
    ret;
}}
"
    )
}

fn device(seed: Option<u64>) -> Emulator {
    let mut model = DeviceModel::of(Arch { major: 8, minor: 0 });
    model.total_bytes = 1 << 24;
    Emulator::new(&EmulatorOptions { seed, threads: Some(1), ..EmulatorOptions::new(model) }).unwrap()
}

fn load(device: &mut Emulator, ptx: &str) -> Result<Function, DriverError> {
    let module = device.load_module("test", Image { ptx: Some(ptx), ..Image::default() })?;
    Ok(device.function(module, "k", 0)?.0)
}

fn launch(
    device: &mut Emulator,
    function: Function,
    block: u32,
    args: &[ArgValue],
) -> Result<(), DriverError> {
    let config =
        LaunchConfig { function, grid: [1, 1, 1], block, shared_bytes: 0, dependent: false, args, label: "" };
    // SAFETY: the kernel writes one word per thread.
    unsafe { device.launch(&config) }
}

fn run(ptx: &str, block: u32, seed: Option<u64>) -> Result<Vec<u32>, DriverError> {
    let mut device = device(seed);
    let function = load(&mut device, ptx)?;
    let out = device.allocate("out", u64::from(block) * 4)?;
    launch(&mut device, function, block, &[ArgValue::Ptr(out)])?;
    let mut host = device.host_buffer(block as usize * 4)?;
    // SAFETY: the buffer is read after the wait.
    unsafe { device.copy_to_host(host.as_mut(), 0, out, block as usize * 4)? };
    let event = device.record()?;
    device.wait(event)?;
    Ok(host.bytes().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// The kernel gives the same in order and by chance.
fn check(ptx: &str, block: u32, want: impl Fn(u32) -> u32) {
    for seed in [None, Some(1), Some(2), Some(3)] {
        let got = run(ptx, block, seed).unwrap();
        assert_eq!(got, (0..block).map(&want).collect::<Vec<_>>(), "seed {seed:?}");
    }
}

fn load_error(ptx: &str) -> String {
    let error = load(&mut device(None), ptx).unwrap_err();
    assert!(matches!(error, DriverError::NoImage { .. }), "{error}");
    error.to_string()
}

#[test]
fn lanes_part_and_meet() {
    // Even lanes go through a loop of their own length; all meet at a shuffle that wants the whole warp.
    let body = "
    and.b32 %r2, %r0, 1;
    setp.eq.u32 %p0, %r2, 1;
    mov.u32 %r1, 100;
    @%p0 bra $odd;
    mov.u32 %r3, 0;
$again:
    setp.ge.u32 %p1, %r3, %r0;
    @%p1 bra $meet;
    add.s32 %r1, %r1, 1;
    add.s32 %r3, %r3, 1;
    bra.uni $again;
$odd:
    mov.u32 %r1, 7;
$meet:
    shfl.sync.bfly.b32 %r4|%p2, %r1, 1, 31, -1;
    add.s32 %r1, %r1, %r4;";
    check(&kernel("", body), 64, |t| 100 + (t & !1) + 7);
}

#[test]
fn tables_of_branches() {
    let body = "
    and.b32 %r2, %r0, 3;
    brx.idx %r2, $table;
$table: .branchtargets $a, $b, $c, $d;
$a:
    mov.u32 %r1, 11;
    bra $end;
$b:
    mov.u32 %r1, 22;
    bra $end;
$c:
    mov.u32 %r1, 33;
    bra $end;
$d:
    mov.u32 %r1, 44;
$end:";
    check(&kernel("", body), 32, |t| 11 * (t % 4 + 1));
}

#[test]
fn scopes_hide_registers_and_labels() {
    let body = "
    mov.u32 %r1, 5;
    { .reg .b32 %r1; .reg .pred p; mov.u32 %r1, 9; setp.lt.u32 p, %r0, 8; @p bra done; mov.u32 %r2, %r1; done: }
    { .reg .pred p; setp.ge.u32 p, %r0, 8; @p bra done; mov.u32 %r2, 1; done: }
    add.s32 %r1, %r1, %r2;";
    check(&kernel("", body), 32, |t| if t < 8 { 6 } else { 14 });
}

#[test]
fn warps_meet_at_barriers_of_some_threads() {
    // Warps 0 and 1 hand words to each other over barrier 1; warps 2 and 3 have exited or never come there.
    let before = ".shared .align 4 .b8 words[256];";
    let body = "
    mov.u32 %r1, 77;
    setp.ge.u32 %p0, %r0, 96;
    @%p0 bra $end;
    setp.ge.u32 %p0, %r0, 64;
    @%p0 bra $end;
    mov.u64 %rd2, words;
    mul.wide.u32 %rd3, %r0, 4;
    add.s64 %rd2, %rd2, %rd3;
    st.shared.u32 [%rd2], %r0;
    bar.sync 1, 64;
    xor.b32 %r2, %r0, 32;
    mul.wide.u32 %rd3, %r2, 4;
    mov.u64 %rd2, words;
    add.s64 %rd2, %rd2, %rd3;
    ld.shared.u32 %r1, [%rd2];
$end:";
    check(&kernel(before, body), 128, |t| if t < 64 { t ^ 32 } else { 77 });
}

#[test]
fn warp_barriers_on_different_paths() {
    let before = ".shared .align 4 .b8 words[128];";
    let body = "
    mov.u64 %rd2, words;
    mul.wide.u32 %rd3, %r0, 4;
    add.s64 %rd2, %rd2, %rd3;
    and.b32 %r2, %r0, 1;
    setp.eq.u32 %p0, %r2, 1;
    @%p0 bra $odd;
    bar.warp.sync -1;
    ld.shared.u32 %r1, [%rd2+4];
    bra $end;
$odd:
    st.shared.u32 [%rd2], %r0;
    bar.warp.sync -1;
    mov.u32 %r1, 3;
$end:";
    check(&kernel(before, body), 32, |t| if t % 2 == 0 { t + 1 } else { 3 });
}

#[test]
fn variables_of_modules() {
    let before = ".const .align 4 .u32 squares[4] = {0, 1, 4, 9};\n.global .align 4 .u32 base = 1000;";
    let body = "
    and.b32 %r2, %r0, 3;
    mul.wide.u32 %rd2, %r2, 4;
    mov.u64 %rd3, squares;
    add.s64 %rd2, %rd2, %rd3;
    ld.const.u32 %r1, [%rd2];
    ld.global.u32 %r3, [base];
    add.s32 %r1, %r1, %r3;";
    check(&kernel(before, body), 32, |t| 1000 + (t % 4).pow(2));
}

#[test]
fn memory_of_threads() {
    let body = "
    .local .align 8 .b8 own[16];
    mov.u64 %rd2, own;
    cvta.local.u64 %rd3, %rd2;
    st.u32 [%rd3+8], %r0;
    ld.local.u32 %r1, [%rd2+8];
    add.s32 %r1, %r1, 1;";
    check(&kernel("", body), 64, |t| t + 1);
}

#[test]
fn deadlock_names_who_waits_where() {
    let body = "
    setp.lt.u32 %p0, %r0, 32;
    mov.u32 %r1, 0;
    @%p0 bra $one;
    bar.sync 2, 64;
    bra $end;
$one:
    bar.sync 3, 64;
$end:";
    let report = run(&kernel("", body), 64, None).unwrap_err().to_string();
    for part in ["deadlock", "warp 0 waits for barrier 3", "warp 1 waits for barrier 2", "bar.sync 3, 64;"] {
        assert!(report.contains(part), "`{part}` is missing in: {report}");
    }
}

#[test]
fn faults_of_kernels() {
    for (body, part) in [
        ("    trap;", "trap"),
        ("    ld.global.u32 %r1, [%rd0+2];", "load of 4 bytes at an address that is not a multiple of 4"),
        ("    mov.u64 %rd2, 0;\n    ld.global.u32 %r1, [%rd2];", "load of 4 bytes out of bounds: 0x0"),
        ("    mov.u64 %rd2, 0;\n    st.u32 [%rd2], %r0;", "store of 4 bytes out of bounds"),
        (
            "    mov.u32 %r2, 4096;\n    st.shared.u32 [%r2], %r0;",
            "shared memory byte 3072 (the block has 0)",
        ),
        ("    mov.u64 %rd2, -8;\n    ld.global.u64 %rd3, [%rd2];", "out of bounds: 0xfffffffffffffff8"),
        ("    bar.sync 16;", "there is no barrier 16"),
        ("    brx.idx %r0, $t;\n$t: .branchtargets $e;\n$e:", "branch 1 of 1"),
        ("    shfl.sync.idx.b32 %r1, %r0, 0, 31, 1;", "lane is not in its own member mask 0x1"),
    ] {
        let report = run(&kernel("", body), 32, None).unwrap_err().to_string();
        assert!(report.contains(part), "`{part}` is missing in: {report}");
        assert!(report.contains("ptx line"), "{report}");
    }
}

#[test]
fn unknown_instructions_are_named() {
    for (line, part) in [
        ("wgmma.fence.sync.aligned;", "`wgmma.fence.sync.aligned;`: the emulator does not know"),
        ("add.rz.f32 %r1, %r0, %r0;", "`add.rz.f32`"),
        ("frobnicate.b32 %r1, %r0;", "`frobnicate.b32`"),
        ("ld.global.odd.u32 %r1, [%rd0];", "`.odd` of `ld.global.odd.u32`"),
        ("mov.u32 %r1, %pm0;", "special register `%pm0`"),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd0}, {%rd0}, {%rd0}, {%rd0};", "m8n8k4"),
        ("call foo;", "calls"),
    ] {
        let error = load_error(&kernel("", &format!("    {line}")));
        assert!(error.contains(part) && error.contains("ptx line 14"), "`{part}` is missing in: {error}");
    }
}

#[test]
fn bad_text_is_refused_with_its_line() {
    for (line, part) in [
        ("add.s32 %r1, %r99, %r0;", "special register `%r99`"),
        ("bra $nowhere;", "no such label"),
        ("@%r0 mov.u32 %r1, 0;", "`%r0` is no predicate"),
        ("add.s32 %r1, %r0;", "2 operands where 3 to 3 belong"),
        ("add.s64 %rd1, %r0, %rd0;", "64-bit operand expected"),
        ("mov.u32 %r1, nothing;", "`nothing` is declared nowhere"),
        ("mov.u32 %r1, 0xzz;", "not a number"),
        (".frob;", "`.frob` is not known"),
    ] {
        let error = load_error(&kernel("", &format!("    {line}")));
        assert!(error.contains(part) && error.contains("ptx line 14"), "`{part}` is missing in: {error}");
    }
    // What is missing shows at the next token.
    let error = load_error(&kernel("", "    add.s32 %r1, %r0"));
    assert!(error.contains("ptx line 15") && error.contains("`,` or `;` expected"), "{error}");
    assert!(load_error("hello").contains("ptx line 1"));
    assert!(load_error("").contains("not a PTX module"));
    assert!(load_error(kernel("", "").trim_end().trim_end_matches('}')).contains("kernel without end"));
}

#[test]
fn images_that_the_device_cannot_run() {
    let mut d = device(None);
    let error = d.load_module("m", Image { cubin: Some(&[1, 2]), ..Image::default() }).unwrap_err();
    assert!(
        matches!(&error, DriverError::NoImage { module, why } if module == "m" && why.contains("no PTX"))
    );
    let newer = kernel("", "").replace("sm_80", "sm_90");
    assert!(load_error(&newer).contains("its PTX is for sm_90, the device is sm_80"));
}

#[test]
fn launches_that_cannot_be() {
    let mut d = device(None);
    let ptx = kernel("", "    mov.u32 %r1, 0;")
        .replace("(.param .u64 out)", "(.param .u64 out)\n.maxntid 64, 1, 1");
    let function = load(&mut d, &ptx).unwrap();
    let out = ArgValue::Ptr(DevicePtr(0));
    let mut refused = |block, args: &[ArgValue], part: &str| {
        let error = launch(&mut d, function, block, args).unwrap_err().to_string();
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    };
    refused(32, &[], "0 arguments, k has 1 parameters");
    refused(32, &[ArgValue::U32(1)], "argument 0 has 4 bytes, the parameter of k has 8");
    refused(96, &[out], "96 threads, k may have 64");
    refused(0, &[out], "0 threads");
    let module = d.load_module("again", Image { ptx: Some(&ptx), ..Image::default() }).unwrap();
    assert!(d.function(module, "other", 0).unwrap_err().to_string().contains("no kernel `other`"));
    assert!(d.function(module, "k", 1 << 20).unwrap_err().to_string().contains("a block may have 166912"));
}

#[test]
fn host_buffers_of_copies_under_way_are_seen() {
    let mut d = device(None);
    let at = d.allocate("words", 4).unwrap();
    let mut host = d.host_buffer(4).unwrap();
    host.bytes_mut().fill(1);
    // SAFETY: the range is written too early on purpose; memory stays valid.
    unsafe { d.copy_to_device(at, host.as_ref(), 0, 4).unwrap() };
    host.bytes_mut().fill(2);
    let event = d.record().unwrap();
    d.wait(event).unwrap();
    let mut back = d.host_buffer(4).unwrap();
    // SAFETY: read after the wait.
    unsafe { d.copy_to_host(back.as_mut(), 0, at, 4).unwrap() };
    let event = d.record().unwrap();
    d.wait(event).unwrap();
    assert_eq!(back.bytes(), [2; 4], "the copy ran when it was waited for, not before");
    // SAFETY: refused before anything happens.
    let error = unsafe { d.copy_to_device(at, host.as_ref(), 0, 5) }.unwrap_err().to_string();
    assert!(error.contains("host buffer of 4"), "{error}");
}
