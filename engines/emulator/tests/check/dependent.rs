//! Launches that begin before their predecessor has ended.

use super::device::{DEPENDENT, Device};
use super::{SEEDS, report};
use lathe_device::{Driver, DriverError};

/// `produce` or `hurry` into `middle`, then `kernel` with the arguments that `args` picks of input, middle, output.
fn pair(
    seed: Option<u64>,
    first: &str,
    kernel: &str,
    args: &[usize],
    dependent: bool,
) -> Result<Vec<u32>, DriverError> {
    let mut device = Device::new(DEPENDENT, seed);
    let middle = device.driver.allocate("middle", 1024)?;
    let places = [device.input, middle, device.output];
    device.launch(first, 2, 64, &[places[0], middle], false)?;
    let pointers: Vec<_> = args.iter().map(|i| places[*i]).collect();
    device.launch(kernel, 2, 64, &pointers, dependent)?;
    device.wait()?;
    device.read(places[2], 128)
}

#[test]
fn what_the_launch_before_writes_is_read_after_the_wait() {
    for seed in SEEDS {
        let out = pair(seed, "produce", "consume_good", &[1, 2, 0], true).unwrap();
        assert_eq!(out, (0..128).map(|i| 2 * i + 1).collect::<Vec<u32>>());
        let out = pair(seed, "produce", "consume_by_one", &[1, 2], true).unwrap();
        assert_eq!(out, (1..129).collect::<Vec<u32>>());
        let found = report(pair(seed, "produce", "consume_bad", &[1, 2, 0], true).unwrap_err());
        assert!(
            found.contains("race") && found.contains("launch of") && found.contains("`middle`"),
            "{found}"
        );
    }
}

#[test]
fn what_the_launch_before_reads_is_written_after_the_wait() {
    for seed in SEEDS {
        let found = report(pair(seed, "produce", "overwrite_bad", &[0, 2], true).unwrap_err());
        assert!(
            found.contains("race") && found.contains("launch of") && found.contains("`input`"),
            "{found}"
        );
    }
}

#[test]
fn a_launch_that_does_not_depend_need_not_wait() {
    for seed in SEEDS {
        let out = pair(seed, "produce", "consume_bad", &[1, 2, 0], false).unwrap();
        assert_eq!(out, (0..128).map(|i| 2 * i + 1).collect::<Vec<u32>>());
    }
}

/// Writes `middle` two launches before `consume_bad` reads it; the launch between is `between`.
fn chain(between: &str) -> Result<Vec<u32>, DriverError> {
    let mut device = Device::new(DEPENDENT, None);
    let middle = device.driver.allocate("middle", 1024)?;
    let other = device.driver.allocate("other", 1024)?;
    let (input, output) = (device.input, device.output);
    device.launch("produce", 2, 64, &[input, middle], false)?;
    device.launch(between, 2, 64, &[input, other], true)?;
    device.launch("consume_bad", 2, 64, &[middle, output, input], true)?;
    device.wait()?;
    device.read(output, 128)
}

#[test]
fn who_lets_the_next_start_early_passes_its_own_waiting_on() {
    assert!(chain("produce").is_ok());
    let found = report(chain("hurry").unwrap_err());
    assert!(found.contains("launch of produce"), "{found}");
}
