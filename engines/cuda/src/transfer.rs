//! Large amounts of bytes to the device and back through a ring of pinned buffers: one is filled while others are
//! copied.

use lathe_device::{DevicePtr, Driver, DriverError, Event, HostBuffer};

/// Bytes of a buffer of the ring: long enough that starting a copy costs nothing beside it.
const CHUNK: usize = 16 << 20;
/// Buffers of the ring while weights are loaded: one is read into, one is copied, one covers their unevenness.
const BUFFERS: usize = 3;

/// The ring.
pub struct Ring {
    buffers: Vec<(Box<dyn HostBuffer>, Option<Event>)>,
    chunk: usize,
    next: usize,
}

impl Ring {
    /// Buffers for transfers of at most `largest` bytes each.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(driver: &mut dyn Driver, largest: u64) -> Result<Self, DriverError> {
        let chunk = usize::try_from(largest).unwrap_or(usize::MAX).clamp(1, CHUNK);
        let buffers = (0..BUFFERS)
            .map(|_| Ok((driver.host_buffer(chunk)?, None)))
            .collect::<Result<Vec<_>, DriverError>>()?;
        Ok(Ring { buffers, chunk, next: 0 })
    }

    /// Copies `bytes` to `to`. Returns while the last copies are under way: `finish` ends them.
    ///
    /// # Errors
    /// The driver's.
    pub fn upload(
        &mut self,
        driver: &mut dyn Driver,
        to: DevicePtr,
        bytes: &[u8],
    ) -> Result<(), DriverError> {
        for (i, piece) in bytes.chunks(self.chunk).enumerate() {
            let at = self.next;
            self.next = (at + 1) % self.buffers.len();
            let (buffer, busy) = &mut self.buffers[at];
            if let Some(event) = busy.take() {
                driver.wait(event)?;
            }
            buffer.bytes_mut()[..piece.len()].copy_from_slice(piece);
            let to = to.add((i * self.chunk) as u64);
            // SAFETY: the buffer is not written before the event below was waited for; who drops the ring calls
            // `finish` before.
            unsafe { driver.copy_to_device(to, &**buffer, 0, piece.len()) }?;
            *busy = Some(driver.record()?);
        }
        Ok(())
    }

    /// Waits for all copies.
    ///
    /// # Errors
    /// The driver's.
    pub fn finish(&mut self, driver: &mut dyn Driver) -> Result<(), DriverError> {
        for (_, busy) in &mut self.buffers {
            if let Some(event) = busy.take() {
                driver.wait(event)?;
            }
        }
        Ok(())
    }

    /// Gives all buffers but one back; no copy is under way.
    pub fn shrink(&mut self) {
        self.buffers.truncate(1);
        self.next = 0;
    }

    /// Copies device memory to `bytes` and waits for it.
    ///
    /// # Errors
    /// The driver's.
    pub fn download(
        &mut self,
        driver: &mut dyn Driver,
        from: DevicePtr,
        bytes: &mut [u8],
    ) -> Result<(), DriverError> {
        self.finish(driver)?;
        let Some((buffer, _)) = self.buffers.first_mut() else { return Ok(()) };
        for (i, piece) in bytes.chunks_mut(self.chunk).enumerate() {
            let from = from.add((i * self.chunk) as u64);
            // SAFETY: the buffer is read only after the wait below.
            unsafe { driver.copy_to_host(&mut **buffer, 0, from, piece.len()) }?;
            let event = driver.record()?;
            driver.wait(event)?;
            piece.copy_from_slice(&buffer.bytes()[..piece.len()]);
        }
        Ok(())
    }
}

/// Waits until the device is at rest, so that host buffers may be dropped. A device that fails is at rest too.
pub fn settle(driver: &mut dyn Driver) {
    if let Ok(event) = driver.record() {
        drop(driver.wait(event));
    }
}
