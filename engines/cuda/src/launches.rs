//! A program's launches with all that is fixed at load: functions, addresses, constants. What a step changes is
//! evaluated without allocation.

use lathe_api::EngineError;
use lathe_device::{
    Arch, Arg, ArgValue, DeviceLaunch, DevicePtr, Driver, DriverError, Function, Image, LaunchConfig, Module,
    StepTable, Symbol, Symbols,
};
use lathe_plan::Plan;
use lathe_plan::schema::{Input, Launch, Operand, Place, Program};

/// Target of the trace event before every launch, with fields `kernel`, `node`, `grid` and `args`: what was submitted
/// last when a device fails. Costs nothing unless a subscriber asks for it.
pub const LAUNCH_EVENTS: &str = "lathe_cuda::launch";

/// First architecture on which a launch may start before the one before it has ended: kernels for older ones were
/// compiled without the wait that this needs.
const DEPENDENT_FROM: Arch = Arch { major: 9, minor: 0 };

/// Where everything lies that launches name.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Activations.
    pub arena: DevicePtr,
    /// By index in the plan's table; `None` for weights that the program does not name.
    pub weights: Vec<Option<DevicePtr>>,
    /// By index in [`StepTable::ALL`]; of `Blocks` that of the first cache group.
    pub tables: [DevicePtr; StepTable::ALL.len()],
    /// By cache group.
    pub groups: Vec<GroupAddresses>,
}

/// Where a cache group lies.
#[derive(Clone, Copy, Debug)]
pub struct GroupAddresses {
    /// Block 0.
    pub kv: DevicePtr,
    /// Block ids of every step.
    pub blocks: DevicePtr,
}

impl Addresses {
    /// A table's start.
    pub fn table(&self, table: StepTable) -> DevicePtr {
        self.tables[table_index(table)]
    }
}

/// Index of a table in [`StepTable::ALL`].
pub fn table_index(table: StepTable) -> usize {
    StepTable::ALL.iter().position(|t| *t == table).unwrap_or_default()
}

/// Code of a program on the device.
pub struct Code {
    modules: Vec<Module>,
    arch: Arch,
}

impl Code {
    /// Loads a program's modules.
    ///
    /// # Errors
    /// `Fit` when the driver takes none of a module's forms, `Failed` when it fails.
    pub fn load(
        driver: &mut dyn Driver,
        plan: &Plan,
        program: &Program,
        arch: Arch,
        jit: bool,
    ) -> Result<Self, EngineError> {
        let mut modules = Vec::with_capacity(program.modules.len());
        for module in &program.modules {
            let (cubin, ptx) = (plan.module_cubin(module), plan.module_ptx(module));
            let image = Image { cubin, ptx, allow_jit: jit };
            modules.push(driver.load_module(&module.name, image).map_err(load_error)?);
        }
        Ok(Code { modules, arch })
    }
}

/// An error of the driver while a plan is loaded.
pub fn load_error(error: DriverError) -> EngineError {
    let fit = |what: &str, why: String, remedy: &str| EngineError::Fit {
        what: what.into(),
        why,
        remedy: remedy.into(),
    };
    match error {
        DriverError::OutOfMemory { what, bytes, free } => fit(
            &what,
            format!("{bytes} bytes are needed, {free} are free on the device"),
            "lower --kv-memory, or compile with smaller --max-batch, --max-num-tokens or --kv-tokens",
        ),
        DriverError::NoImage { module, why } => {
            fit(&format!("module {module}"), why, "compile the model for this device")
        }
        DriverError::Unavailable { what, why } => fit(&what, why, "name another device"),
        e @ (DriverError::Fault { .. } | DriverError::Api { .. }) => EngineError::Failed(e.to_string()),
    }
}

/// One launch, bound.
pub struct Bound {
    launch: DeviceLaunch,
    function: Function,
    node: String,
    label: String,
    dependent: bool,
    args: Vec<ArgValue>,
    /// Arguments that follow the step.
    symbols: Vec<(usize, Symbol)>,
}

/// Why a launch was not submitted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{kernel} of {node}, grid {grid:?} of {block} threads, {shared_bytes} bytes shared, args {args}: {why}"
)]
pub struct LaunchError {
    kernel: String,
    node: String,
    grid: Option<[u32; 3]>,
    block: u32,
    shared_bytes: u32,
    args: String,
    why: String,
}

/// Arguments for people: addresses in hexadecimal, numbers as they are.
struct Args<'a>(&'a [ArgValue]);

impl std::fmt::Display for Args<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(")?;
        for (i, arg) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match arg {
                ArgValue::Ptr(at) => write!(f, "{:#x}", at.0)?,
                ArgValue::U32(v) => write!(f, "{v}")?,
                ArgValue::U64(v) => write!(f, "{v}")?,
                ArgValue::F32(v) => write!(f, "{v:?}")?,
            }
        }
        f.write_str(")")
    }
}

impl Bound {
    /// Submits the launch, if it belongs to the step and has work there.
    ///
    /// # Errors
    /// The driver refused it.
    pub fn submit(&mut self, driver: &mut dyn Driver, symbols: &Symbols) -> Result<(), LaunchError> {
        if !self.launch.when.holds(symbols) {
            return Ok(());
        }
        for (at, symbol) in &self.symbols {
            self.args[*at] = ArgValue::U32(symbols.get(*symbol));
        }
        let Some(grid) = self.launch.grid(symbols) else {
            return Err(self.error(None, "the grid does not fit 32 bits"));
        };
        if grid.contains(&0) {
            return Ok(());
        }
        if tracing::enabled!(target: LAUNCH_EVENTS, tracing::Level::TRACE) {
            let (kernel, node) = (self.launch.entry.as_str(), self.node.as_str());
            tracing::trace!(target: LAUNCH_EVENTS, kernel, node, ?grid, args = %Args(&self.args));
        }
        let config = LaunchConfig {
            function: self.function,
            grid,
            block: self.launch.block,
            shared_bytes: self.launch.shared_bytes,
            dependent: self.dependent,
            args: &self.args,
            label: &self.label,
        };
        // SAFETY: the plan's verifier proved that operands lie within their buffers at every symbol bound, steps are
        // checked against the same bounds, and the device code of a plan is trusted like a binary.
        unsafe { driver.launch(&config) }.map_err(|e| self.error(Some(grid), &e.to_string()))
    }

    /// How the launch that a fault names was made in a step of these symbols; `None` if it names another one.
    pub fn of_fault(&self, fault: &DriverError, symbols: &Symbols) -> Option<String> {
        let DriverError::Fault { kernel, .. } = fault else { return None };
        let is_it = kernel.contains(&self.launch.entry) && kernel.contains(&self.label);
        if !is_it || !self.launch.when.holds(symbols) {
            return None;
        }
        let mut args = self.args.clone();
        for (at, symbol) in &self.symbols {
            args[*at] = ArgValue::U32(symbols.get(*symbol));
        }
        let grid = self.launch.grid(symbols).unwrap_or_default();
        Some(format!("grid {grid:?} of {} threads, args {}", self.launch.block, Args(&args)))
    }

    fn error(&self, grid: Option<[u32; 3]>, why: &str) -> LaunchError {
        LaunchError {
            kernel: self.launch.entry.clone(),
            node: self.node.clone(),
            grid,
            block: self.launch.block,
            shared_bytes: self.launch.shared_bytes,
            args: Args(&self.args).to_string(),
            why: why.into(),
        }
    }
}

/// Binds launches of one program.
pub struct Binder<'a> {
    program: &'a Program,
    code: &'a Code,
    addresses: &'a Addresses,
    /// Dynamic shared memory that each kernel is allowed: the most that any of its launches asks for.
    shared: Vec<(u32, &'a str, u32)>,
}

impl<'a> Binder<'a> {
    /// A binder of `program`'s launches.
    pub fn new(program: &'a Program, code: &'a Code, addresses: &'a Addresses) -> Self {
        let mut shared: Vec<(u32, &str, u32)> = Vec::new();
        let nodes = program.launches.iter().flat_map(|l| &l.device);
        for launch in nodes.chain(&program.sampling) {
            let known = shared.iter_mut().find(|(m, e, _)| *m == launch.module && *e == launch.entry);
            match known {
                Some((_, _, bytes)) => *bytes = launch.shared_bytes.max(*bytes),
                None => shared.push((launch.module, &launch.entry, launch.shared_bytes)),
            }
        }
        Binder { program, code, addresses, shared }
    }

    /// The launches of all nodes, in order.
    ///
    /// # Errors
    /// `Plan` for a launch that names what is not there, `Fit` for a kernel that the device cannot hold.
    pub fn nodes(&self, driver: &mut dyn Driver) -> Result<Vec<Bound>, EngineError> {
        let mut bound = Vec::new();
        for node in &self.program.launches {
            if node.device.is_empty() {
                return Err(refuse(node, "it has no device launches"));
            }
            for launch in &node.device {
                bound.push(self.bind(driver, node, launch)?);
            }
        }
        Ok(bound)
    }

    /// The launches that draw tokens.
    ///
    /// # Errors
    /// As `nodes`.
    pub fn sampling(&self, driver: &mut dyn Driver) -> Result<Vec<Bound>, EngineError> {
        let node = Launch {
            kernel: "sampling".into(),
            node: "tokens".into(),
            inputs: vec![self.program.logits.clone()],
            outputs: vec![],
            params: vec![],
            device: vec![],
        };
        self.program.sampling.iter().map(|launch| self.bind(driver, &node, launch)).collect()
    }

    fn bind(
        &self,
        driver: &mut dyn Driver,
        node: &Launch,
        launch: &DeviceLaunch,
    ) -> Result<Bound, EngineError> {
        let Some(module) = self.code.modules.get(launch.module as usize) else {
            return Err(refuse(node, &format!("module {} does not exist", launch.module)));
        };
        let shared = self
            .shared
            .iter()
            .find(|(m, e, _)| *m == launch.module && *e == launch.entry)
            .map_or(launch.shared_bytes, |(_, _, bytes)| *bytes);
        let most = driver.info().max_shared_bytes;
        let (function, info) = driver.function(*module, &launch.entry, shared).map_err(load_error)?;
        let needed = u64::from(shared) + u64::from(info.static_shared_bytes);
        if needed > u64::from(most) || launch.block > info.max_threads {
            return Err(EngineError::Fit {
                what: format!("kernel {}", launch.entry),
                why: format!(
                    "its blocks take {needed} bytes of shared memory and {} threads, the device has {most} and the \
                     kernel's registers allow {}",
                    launch.block, info.max_threads
                ),
                remedy: "compile the model for this device".into(),
            });
        }
        let mut args = Vec::with_capacity(launch.args.len());
        let mut symbols = Vec::new();
        for (i, arg) in launch.args.iter().enumerate() {
            args.push(match *arg {
                Arg::Input(at) => ArgValue::Ptr(self.operand(node, node.inputs.get(at as usize))?),
                Arg::Output(at) => ArgValue::Ptr(self.operand(node, node.outputs.get(at as usize))?),
                Arg::Table(StepTable::Blocks) => ArgValue::Ptr(self.blocks(node)?),
                Arg::Table(table) => ArgValue::Ptr(self.addresses.table(table)),
                Arg::Symbol(symbol) => {
                    symbols.push((i, symbol));
                    ArgValue::U32(0)
                }
                Arg::U32(v) => ArgValue::U32(v),
                Arg::U64(v) => ArgValue::U64(v),
                Arg::F32(v) => ArgValue::F32(v),
            });
        }
        Ok(Bound {
            launch: launch.clone(),
            function,
            node: node.node.clone(),
            label: format!("{} {}", node.kernel, node.node),
            dependent: launch.dependent && self.code.arch >= DEPENDENT_FROM,
            args,
            symbols,
        })
    }

    /// The block table of the cache group that a node names.
    fn blocks(&self, node: &Launch) -> Result<DevicePtr, EngineError> {
        let group = node.inputs.iter().find_map(|o| match o.place {
            Place::Cache { group, .. } => Some(group),
            Place::Buffer(_) | Place::Weight(_) | Place::Input(_) => None,
        });
        match self.addresses.groups.get(group.unwrap_or(0) as usize) {
            Some(group) => Ok(group.blocks),
            None => Err(refuse(node, "an argument names a cache group that does not exist")),
        }
    }

    fn operand(&self, node: &Launch, operand: Option<&Operand>) -> Result<DevicePtr, EngineError> {
        let Some(operand) = operand else { return Err(refuse(node, "an argument names no operand")) };
        let missing = |what: &str| refuse(node, &format!("an argument names a {what} that does not exist"));
        let at = match operand.place {
            Place::Buffer(index) => {
                let buffer = self.program.buffers.get(index as usize).ok_or_else(|| missing("buffer"))?;
                self.addresses.arena.add(buffer.offset)
            }
            Place::Weight(index) => self
                .addresses
                .weights
                .get(index as usize)
                .copied()
                .flatten()
                .ok_or_else(|| missing("weight"))?,
            Place::Input(Input::Tokens) => self.addresses.table(StepTable::Tokens),
            Place::Input(Input::Positions) => self.addresses.table(StepTable::Positions),
            Place::Input(Input::SampleRows) => self.addresses.table(StepTable::SampleRows),
            Place::Cache { group, layer } => {
                let layer = self.program.cache_layer(group, layer).ok_or_else(|| missing("cache layer"))?.1;
                let group =
                    self.addresses.groups.get(group as usize).ok_or_else(|| missing("cache group"))?;
                group.kv.add(layer.offset)
            }
        };
        Ok(at.add(operand.col_offset * operand.dtype.size() as u64))
    }
}

fn refuse(node: &Launch, why: &str) -> EngineError {
    EngineError::Plan { what: format!("launch {} {}", node.kernel, node.node), why: why.into() }
}
