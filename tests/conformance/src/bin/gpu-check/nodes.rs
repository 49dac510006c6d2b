//! A node of a model with all that it needs: operands of noise, tables, and what of them is compared.

use anyhow::{Context, Result};
use lathe_conformance::{Operands, Rig};
use lathe_device::{DevicePtr, StepTable, Symbols};
use lathe_kernels::cuda::Launches;
use lathe_numerics::DType;

/// Bytes of noise before it repeats; written in pieces of this size.
const PATTERN: usize = 8 << 20;

/// What device memory holds before a run.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Uniform in -1..1, of a dtype.
    Noise(DType),
    /// These bytes.
    Bytes(Vec<u8>),
    /// Zeros.
    Zero,
}

/// Device memory of a node.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Contents.
    pub fill: Fill,
    /// Size.
    pub bytes: usize,
    /// Type of the results in it; `None` is not compared.
    pub result: Option<DType>,
}

impl Buffer {
    /// `n` random elements.
    pub fn noise(dtype: DType, n: usize) -> Self {
        Buffer { fill: Fill::Noise(dtype), bytes: n * dtype.size(), result: None }
    }

    /// These bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Buffer { bytes: bytes.len(), fill: Fill::Bytes(bytes), result: None }
    }

    /// Zeros that are not compared.
    pub fn zero(bytes: usize) -> Self {
        Buffer { fill: Fill::Zero, bytes, result: None }
    }

    /// `n` elements that the node writes.
    pub fn result(dtype: DType, n: usize) -> Self {
        Buffer { fill: Fill::Zero, bytes: n * dtype.size(), result: Some(dtype) }
    }
}

/// A node and a step.
#[derive(Clone, Debug)]
pub struct Node {
    /// Kernel family, and what it does.
    pub family: &'static str,
    /// What it does in the model.
    pub role: &'static str,
    /// What is launched.
    pub launches: Launches,
    /// The step; the device's own number of multiprocessors is put in.
    pub symbols: Symbols,
    /// In the launch's order.
    pub inputs: Vec<Buffer>,
    /// In the launch's order, without workspaces.
    pub outputs: Vec<Buffer>,
    /// Tables of the step.
    pub tables: Vec<(StepTable, Buffer)>,
    /// Bytes that the node must move at least.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

impl Node {
    /// A node whose every operand is moved once.
    pub fn new(
        family: &'static str,
        role: &'static str,
        launches: Launches,
        symbols: Symbols,
        inputs: Vec<Buffer>,
        outputs: Vec<Buffer>,
    ) -> Self {
        let bytes = inputs.iter().chain(&outputs).map(|b| b.bytes as u64).sum();
        Node { family, role, launches, symbols, inputs, outputs, tables: vec![], bytes, flops: 0 }
    }

    fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.inputs.iter().chain(&self.outputs).chain(self.tables.iter().map(|t| &t.1))
    }

    /// Puts operands and workspaces on a device; `seed` decides the noise.
    ///
    /// # Errors
    /// The driver's.
    pub fn place(&self, rig: &mut Rig, seed: u64) -> Result<Placed> {
        let mut at = Vec::new();
        for (i, buffer) in self.buffers().enumerate() {
            let to = rig.empty(self.role, buffer.bytes)?;
            at.push(to);
            match &buffer.fill {
                Fill::Bytes(bytes) => rig.write(to, bytes)?,
                Fill::Zero => rig.driver().fill(to, 0, buffer.bytes as u64)?,
                Fill::Noise(dtype) => {
                    let pattern = noise(*dtype, buffer.bytes.min(PATTERN), seed << 8 | i as u64);
                    upload(rig, to, buffer.bytes, &pattern)?;
                }
            }
        }
        let (inputs, rest) = at.split_at(self.inputs.len());
        let (outputs, tables) = rest.split_at(self.outputs.len());
        let mut operands = Operands {
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
            tables: self.tables.iter().map(|t| t.0).zip(tables.iter().copied()).collect(),
        };
        for workspace in &self.launches.workspaces {
            let bytes = u64::from(self.symbols.get(workspace.symbol)) * workspace.floats * 4;
            let to = rig.empty("workspace", bytes as usize)?;
            at.push(to);
            operands.outputs.push(to);
        }
        Ok(Placed { at, operands })
    }

    /// Submits one run.
    ///
    /// # Errors
    /// The driver's.
    pub fn submit(&self, rig: &mut Rig, placed: &Placed) -> Result<()> {
        let symbols = Symbols { sm_count: rig.info().sm_count, ..self.symbols };
        rig.submit(&self.launches, symbols, &placed.operands)
            .with_context(|| format!("{} {}", self.family, self.role))
    }

    /// Bytes of all results, with their types.
    ///
    /// # Errors
    /// The driver's.
    pub fn results(&self, rig: &mut Rig, placed: &Placed) -> Result<Vec<(DType, Vec<u8>)>> {
        let all = self.buffers().zip(&placed.at);
        all.filter_map(|(buffer, at)| Some((buffer.result?, buffer.bytes, *at)))
            .map(|(dtype, bytes, at)| Ok((dtype, rig.read(at, bytes)?)))
            .collect()
    }

    /// Bytes of all its operands.
    pub fn footprint(&self) -> u64 {
        self.buffers().map(|b| b.bytes as u64).sum()
    }
}

/// Where a node's operands are.
pub struct Placed {
    at: Vec<DevicePtr>,
    /// As the rig takes them.
    pub operands: Operands,
}

impl Placed {
    /// Gives the memory back.
    ///
    /// # Errors
    /// The driver's.
    pub fn free(self, rig: &mut Rig) -> Result<()> {
        self.at.into_iter().try_for_each(|at| rig.free(at))
    }
}

/// SplitMix64.
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Uniform values in -1..1 as bytes of a dtype.
fn noise(dtype: DType, bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let values: Vec<f32> =
        (0..bytes / dtype.size()).map(|_| (random(&mut state) >> 40) as f32 / 8_388_608.0 - 1.0).collect();
    lathe_conformance::bytes::of(dtype, &values)
}

/// Writes a pattern again and again.
fn upload(rig: &mut Rig, to: DevicePtr, bytes: usize, pattern: &[u8]) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let mut host = rig.driver().host_buffer(pattern.len())?;
    host.bytes_mut()[..pattern.len()].copy_from_slice(pattern);
    for from in (0..bytes).step_by(pattern.len()) {
        let len = pattern.len().min(bytes - from);
        // SAFETY: the buffer lives and stays as it is until `wait` below has returned.
        unsafe { rig.driver().copy_to_device(to.add(from as u64), &*host, 0, len) }?;
    }
    rig.wait()
}
