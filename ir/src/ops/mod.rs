//! The registry of operations. A new op is one file, its `mod` line and its line in `ops!`.

use std::collections::BTreeMap;

use crate::facts::{Bindings, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, Attrs, Cost, Operation};
use crate::tensor::Value;

mod activation;
mod add;
mod add_rms_norm;
mod attention;
mod cast;
mod combine;
mod combine_add;
mod embedding;
mod expert_linear;
mod expert_linear_glu;
mod gather_rows;
mod glu;
mod kv_append;
mod layer_norm;
mod linear;
mod linear_add;
mod linear_glu;
mod mul;
mod norm_linear;
mod norm_linear_glu;
mod norm_linear_rope_append;
mod rms_norm;
mod rope;
mod rope_append;
mod scale;
mod slice_cols;
mod softcap;
mod top_k;

pub use rope_append::QkNorm;
pub use top_k::Over;

macro_rules! ops {
    ($($module:ident :: $name:ident,)*) => {
        $(pub use $module::$name;)*

        /// Any operation of the registry.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("`", stringify!($module), "`, see [`", stringify!($name), "`].")] $name($name),)*
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*

        /// Names of all operations.
        pub const NAMES: &[&str] = &[$($name::NAME),*];

        impl Op {
            /// The word used in text.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => $name::NAME,)* }
            }

            /// The operation `name` with the attributes given as text.
            ///
            /// # Errors
            /// An unknown name; a missing, malformed or unknown attribute.
            pub fn from_text(name: &str, attrs: BTreeMap<String, String>) -> Result<Op, String> {
                $(if name == $name::NAME {
                    let mut op = $name::default();
                    Attrs::read(attrs, |a| op.attrs(a))?;
                    return Ok(Op::$name(op));
                })*
                Err(format!("unknown op {name}"))
            }

            /// Attributes as text, sorted, without those that have their default.
            pub fn attrs(&self) -> BTreeMap<&'static str, String> {
                match self { $(Op::$name(op) => { let mut op = op.clone(); Attrs::write(|a| op.attrs(a)) })* }
            }

            /// See [`Operation::infer`].
            ///
            /// # Errors
            /// The reason why the operands or attributes do not fit.
            pub fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
                match self { $(Op::$name(op) => op.infer(args),)* }
            }

            /// See [`Operation::eval`].
            ///
            /// # Errors
            /// The reason why the data does not fit.
            pub fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
                match self { $(Op::$name(op) => op.eval(inputs, cx),)* }
            }

            /// See [`Operation::is_rowwise`].
            pub fn is_rowwise(&self, input: usize) -> bool {
                match self { $(Op::$name(op) => op.is_rowwise(input),)* }
            }

            /// See [`Operation::is_elementwise`].
            pub fn is_elementwise(&self) -> bool {
                match self { $(Op::$name(op) => op.is_elementwise(),)* }
            }

            /// See [`Operation::has_effects`].
            pub fn has_effects(&self) -> bool {
                match self { $(Op::$name(op) => op.has_effects(),)* }
            }

            /// See [`Operation::is_weight`].
            pub fn is_weight(&self, input: usize) -> bool {
                match self { $(Op::$name(op) => op.is_weight(input),)* }
            }

            /// See [`Operation::cache_layer`].
            pub fn cache_layer(&self) -> Option<usize> {
                match self { $(Op::$name(op) => op.cache_layer(),)* }
            }

            /// See [`Operation::cost`].
            pub fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
                match self { $(Op::$name(op) => op.cost(inputs, outputs, at),)* }
            }
        }
    };
}

ops! {
    activation::Activate,
    add::Add,
    add_rms_norm::AddRmsNorm,
    attention::Attention,
    combine::Combine,
    combine_add::CombineAdd,
    cast::Cast,
    embedding::Embedding,
    expert_linear::ExpertLinear,
    expert_linear_glu::ExpertLinearGlu,
    gather_rows::GatherRows,
    kv_append::KvAppend,
    layer_norm::LayerNorm,
    linear::Linear,
    linear_add::LinearAdd,
    linear_glu::LinearGlu,
    mul::Mul,
    norm_linear::NormLinear,
    norm_linear_rope_append::NormLinearRopeAppend,
    norm_linear_glu::NormLinearGlu,
    rms_norm::RmsNorm,
    rope::Rope,
    rope_append::RopeAppend,
    glu::Glu,
    scale::Scale,
    slice_cols::SliceCols,
    top_k::TopK,
    softcap::Softcap,
}
