//! What a mixture of experts was routed by.
//!
//! A router that is nearly undecided picks other experts after any rounding, and then the logits of two correct programs are
//! far apart. So the reference is routed by the engine's logits wherever they are within the bound of its own, and by its
//! own elsewhere: what is compared is what the experts that the engine chose make of it.

use std::collections::HashMap;

use lathe_cpu::Observed;
use lathe_ir::{Data, Graph, Tensor, ops::Op};
use lathe_plan::schema::{Place, Program};

use crate::emit::rows::widen;
use crate::self_test::routers::reach;

/// The routers of a program and what each said at the positions that were asked.
pub struct Choices<'a> {
    /// The routers' values in the reference's graph.
    names: Vec<&'a str>,
    /// The launch and the output that gives the same value.
    given: HashMap<(usize, usize), usize>,
    /// `[positions, experts]` of each router.
    logits: Vec<Vec<f32>>,
    /// Rows that the reference was routed by, and rows that were too far from its own.
    pub counts: (usize, usize),
}

impl<'a> Choices<'a> {
    /// The routers of `program`, which was compiled from `graph`.
    pub fn new(graph: &'a Graph, program: &Program) -> Self {
        let routers = graph.nodes().filter(|(_, node)| matches!(node.op, Op::TopK(_)));
        let names: Vec<&str> = routers.map(|(_, node)| graph.value_name(node.inputs[0])).collect();
        let mut written: HashMap<u32, (usize, usize)> = HashMap::new();
        let mut given = HashMap::new();
        for (at, launch) in program.launches.iter().enumerate() {
            if let ("top_k", Some(Place::Buffer(buffer))) =
                (&*launch.kernel, launch.inputs.first().map(|i| i.place))
                && let Some(&from) = written.get(&buffer)
            {
                given.insert(from, given.len());
            }
            for (output, operand) in launch.outputs.iter().enumerate() {
                if let Place::Buffer(buffer) = operand.place {
                    written.insert(buffer, (at, output));
                }
            }
        }
        let logits = vec![Vec::new(); names.len()];
        Choices { names, given, logits, counts: (0, 0) }
    }

    /// Keeps what a router said.
    pub fn observe(&mut self, seen: &Observed<'_>) {
        let router = self.given.get(&(seen.launch, seen.output));
        if let Some(logits) = router.and_then(|&router| self.logits.get_mut(router)) {
            let start = logits.len();
            logits.resize(start + seen.rows * seen.cols, 0.0);
            widen(seen.bytes, seen.dtype, &mut logits[start..]);
        }
    }

    /// Puts the engine's logits into the reference's value `name`, whose first row is position `start`, where no element is
    /// further away than `bound` times the row's largest.
    pub fn follow(&mut self, name: &str, start: usize, value: &mut Tensor, bound: f32) {
        let Some(router) = self.names.iter().position(|n| *n == name) else { return };
        let width = value.row_len().max(1);
        let Data::Float(own) = &mut value.data else { return };
        let Some(engine) = self.logits[router].get(start * width..start * width + own.len()) else { return };
        for (own, engine) in own.chunks_exact_mut(width).zip(engine.chunks_exact(width)) {
            let reach = reach(own, bound);
            // NaN is not near anything.
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= reach;
            if own.iter().zip(engine).all(near) {
                own.copy_from_slice(engine);
                self.counts.0 += 1;
            } else {
                self.counts.1 += 1;
            }
        }
    }
}
