//! A checked problem of whichever kernel, held in place.

use lathe_kernels::Kernel;
use lathe_kernels::attention::Attention;
use lathe_kernels::combine::Combine;
use lathe_kernels::elementwise::Elementwise;
use lathe_kernels::embedding::Embedding;
use lathe_kernels::expert_gemm::ExpertGemm;
use lathe_kernels::gather_rows::GatherRows;
use lathe_kernels::gemm::Gemm;
use lathe_kernels::layer_norm::LayerNorm;
use lathe_kernels::rms_norm::{AddRmsNorm, RmsNorm};
use lathe_kernels::rope_append::{KvAppend, Rope, RopeAppend};
use lathe_kernels::top_k::{GroupChoices, TopK};

macro_rules! prepared {
    ($($kernel:ident),*) => {
        /// A problem that a call poses in a step. No box: a step allocates nothing.
        pub enum Prepared<'a> {
            $($kernel($kernel<'a>)),*
        }

        impl Prepared<'_> {
            /// What threads run.
            pub fn kernel(&self) -> &dyn Kernel {
                match self {
                    $(Prepared::$kernel(kernel) => kernel),*
                }
            }
        }

        $(impl<'a> From<$kernel<'a>> for Prepared<'a> {
            fn from(kernel: $kernel<'a>) -> Self {
                Prepared::$kernel(kernel)
            }
        })*
    };
}

prepared!(
    AddRmsNorm,
    Attention,
    Combine,
    Elementwise,
    Embedding,
    ExpertGemm,
    GatherRows,
    Gemm,
    GroupChoices,
    KvAppend,
    LayerNorm,
    RmsNorm,
    Rope,
    RopeAppend,
    TopK
);
