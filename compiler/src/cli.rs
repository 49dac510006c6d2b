//! The command line of `compile`.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use lathe_compiler::checkpoint::{Checkpoint, HubCache, Tokenizer};
use lathe_compiler::error::{CompileError, Result};
use lathe_compiler::import;
use lathe_compiler::options::{Options, Phase};
use lathe_compiler::targets;
use lathe_cpu::Isa;
use lathe_diagnostics::LogFormat;
use lathe_numerics::DType;

/// What `--help` says of models.
fn architectures() -> String {
    let names: Vec<_> = import::IMPORTERS.iter().map(|i| i.architecture).collect();
    format!("Architectures: {}", names.join(", "))
}

/// Compiles a checkpoint in Hugging Face form into one engine plan.
#[derive(Debug, Parser)]
#[command(name = "compile", max_term_width = 110, after_help = architectures(), subcommand_negates_reqs = true)]
#[command(group(ArgGroup::new("source").required(true).args(["model", "config"])))]
pub struct Args {
    /// What to do instead of compiling.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Directory of a checkpoint, or a hub id that lies in the local Hugging Face cache, in the revision main or another:
    /// branch, tag or whole commit hash.
    #[arg(long, value_name = "DIR|ORG/NAME[@REVISION]")]
    pub model: Option<String>,

    /// config.json of a model whose weights are made up, to measure its speed and memory.
    #[arg(long, value_name = "FILE", requires = "synthetic_weights")]
    pub config: Option<PathBuf>,

    /// Seed of made-up weights.
    #[arg(long, value_name = "SEED", requires = "config", conflicts_with = "model")]
    pub synthetic_weights: Option<u64>,

    /// Takes tokenizer, chat template and generation_config.json from another directory; `none` makes a plan that
    /// takes token ids only.
    #[arg(long, value_name = "DIR|none")]
    pub tokenizer: Option<PathBuf>,

    /// What the plan runs on, one or several of cpu, sm_80, sm_86, sm_89, sm_90, sm_120a, native; compute_80 adds PTX
    /// for `runtime --allow-ptx-jit true` on other GPUs.
    #[arg(long, value_name = "TARGET[,TARGET]", default_value = "cpu")]
    pub target: String,

    /// Folder of compiled CUDA kernels; `none` compiles all anew [default: lathe/kernels in the user's cache folder].
    #[arg(long, value_name = "DIR|none", env = "LATHE_KERNEL_CACHE")]
    pub kernel_cache: Option<PathBuf>,

    /// Type of weights and activations [default: the checkpoint's].
    #[arg(long)]
    pub dtype: Option<FloatType>,

    /// Type of keys and values [default: as --dtype].
    #[arg(long, value_name = "DTYPE")]
    pub kv_cache: Option<FloatType>,

    /// Quantizes weights and activations to fp8. Not there yet: refused.
    #[arg(long)]
    pub fp8: bool,

    /// Sequences that run at once.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_batch: u32,

    /// Longest sequence, prompt and answer together [default: the model's, at most 8192].
    #[arg(long, value_name = "N")]
    pub max_seq_len: Option<u32>,

    /// Tokens in one step, prompts and answers together.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub max_num_tokens: u32,

    /// Positions that the KV pool holds unless the server is told otherwise [default: max-batch x max-seq-len, at
    /// most 65536, at least max-seq-len].
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<u64>,

    /// Sampling defaults of generation_config.json: `auto` takes them, `none` leaves the API's own.
    #[arg(long, value_name = "auto|none", default_value = "auto")]
    pub generation_config: GenerationConfig,

    /// The plan's path.
    #[arg(short, long, value_name = "FILE", default_value = "engine.plan")]
    pub output: PathBuf,

    /// Stops after a phase and prints the IR: import, canonical, quant, fuse, select, schedule, emit.
    #[arg(long, value_name = "PHASE", default_value = "emit")]
    pub to: Phase,

    /// Writes the IR's text after each phase into this directory.
    #[arg(long, value_name = "DIR")]
    pub dump_phases: Option<PathBuf>,

    /// Threads that lay out weights; never changes a byte of the plan [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Prints the report as JSON.
    #[arg(long)]
    pub json: bool,

    /// Shape of log lines on standard error.
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,
}

/// What the program does beside compiling.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compares a plan with its checkpoint: weights byte for byte, logits with the reference interpreter's. Exits 6 where they
    /// differ.
    Verify(VerifyArgs),
}

/// Arguments of `compile verify`.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("origin").required(true).args(["model", "config"])))]
pub struct VerifyArgs {
    /// The checkpoint that the plan was compiled from: a directory, or a hub id in the local Hugging Face cache.
    #[arg(long, value_name = "DIR|ORG/NAME[@REVISION]")]
    pub model: Option<String>,

    /// config.json of a plan with made-up weights.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The engine plan.
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,

    /// Also holds every launch to its kernel's tolerance, on the engine's own inputs, and names the first that leaves it.
    #[arg(long)]
    pub layers: bool,

    /// Prompt as comma-separated token ids [default: 16 from all over the vocabulary].
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub tokens: Vec<u32>,

    /// Prompt as UTF-8 text, for the plan's tokenizer, which adds its special tokens.
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub text: Option<PathBuf>,

    /// Threads; never changes a result [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Instruction set of the engine: avx512, avx2, neon or scalar [default: the fastest of this machine].
    #[arg(long, value_name = "ISA")]
    pub isa: Option<Isa>,

    /// Prints the report as JSON.
    #[arg(long)]
    pub json: bool,

    /// Shape of log lines on standard error.
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,
}

/// Number formats that the flags take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatType {
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// IEEE single
    F32,
}

/// Values of `--generation-config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerationConfig {
    /// As the checkpoint says
    Auto,
    /// The API's own
    None,
}

impl From<FloatType> for DType {
    fn from(t: FloatType) -> DType {
        match t {
            FloatType::Bf16 => DType::BF16,
            FloatType::F16 => DType::F16,
            FloatType::F32 => DType::F32,
        }
    }
}

impl Args {
    /// Refuses what this build cannot do at all.
    ///
    /// # Errors
    /// A target or a quantization that does not exist yet; no threads; an output that cannot be replaced.
    pub fn check(&self) -> Result<()> {
        if self.fp8 {
            return Err(CompileError::unsupported("--fp8", "supported: --dtype bf16, f16 or f32"));
        }
        // The plan is renamed into place, which would replace a device or fail on a directory after all the work.
        if self.output.metadata().is_ok_and(|m| !m.is_file()) {
            let what = format!("--output {}", self.output.display());
            return Err(CompileError::usage(what, "exists and is no regular file"));
        }
        if self.threads == Some(0) {
            return Err(CompileError::usage("--threads 0", "must be at least 1"));
        }
        Ok(())
    }

    /// The checkpoint that the flags name.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let tokenizer = match &self.tokenizer {
            None => Tokenizer::Checkpoint,
            Some(dir) if dir.as_os_str() == "none" => Tokenizer::None,
            Some(dir) if dir.is_dir() => Tokenizer::Dir(dir.clone()),
            Some(dir) => {
                return Err(CompileError::usage(format!("--tokenizer {}", dir.display()), "is no directory"));
            }
        };
        match (&self.model, &self.config, self.synthetic_weights) {
            (Some(model), None, None) => {
                Checkpoint::open(model, &HubCache::from_env(|v| std::env::var_os(v)), &tokenizer)
            }
            (None, Some(config), Some(seed)) => import::synthetic(config, seed, &tokenizer),
            _ => Err(CompileError::usage(
                "--model, --config",
                "give a checkpoint, or a config and a seed, not both",
            )),
        }
    }

    /// The rest of the flags.
    ///
    /// # Errors
    /// Targets that do not exist.
    pub fn options(&self) -> Result<Options> {
        let defaults = Options::default();
        Ok(Options {
            targets: targets::parse(&self.target, lathe_nvrtc::native_arch)?,
            kernel_cache: self.kernel_cache(),
            dtype: self.dtype.map(DType::from),
            kv_dtype: self.kv_cache.map(DType::from),
            max_batch: self.max_batch,
            max_seq_len: self.max_seq_len,
            max_num_tokens: self.max_num_tokens,
            kv_tokens: self.kv_tokens,
            generation_defaults: self.generation_config == GenerationConfig::Auto,
            output: self.output.clone(),
            to: self.to,
            dump_phases: self.dump_phases.clone(),
            threads: self.threads.unwrap_or(defaults.threads),
        })
    }

    /// Where compiled kernels lie: as asked, else in the user's cache folder, else nowhere.
    fn kernel_cache(&self) -> Option<PathBuf> {
        match &self.kernel_cache {
            Some(dir) if dir.as_os_str() == "none" => None,
            Some(dir) => Some(dir.clone()),
            None => lathe_nvrtc::cache_folder().map(|folder| folder.join("kernels")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("compile").chain(line.split_whitespace()))
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let args = parse("--model DIR").unwrap();
        args.check().unwrap();
        let o = args.options().unwrap();
        assert_eq!((o.max_batch, o.max_seq_len, o.max_num_tokens, o.kv_tokens), (32, None, 2048, None));
        assert_eq!((o.dtype, o.kv_dtype, o.to, o.generation_defaults), (None, None, Phase::Emit, true));
        assert_eq!(o.output, PathBuf::from("engine.plan"));
    }

    #[test]
    fn flags_that_contradict_are_usage_errors() {
        for line in [
            "",
            "--config c.json",
            "--synthetic-weights 1",
            "--model DIR --config c.json --synthetic-weights 1",
            "--model DIR --synthetic-weights 1",
            "--model DIR --dtype fp8",
            "--model DIR --dtype i32",
            "--model DIR --to fold",
            "--model DIR --max-batch many",
            "--model DIR --generation-config vllm",
            "--model DIR extra",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }

    #[test]
    fn what_does_not_exist_yet_names_what_does() {
        for (line, want) in [
            ("--model D --fp8", "unsupported --fp8: supported: --dtype bf16, f16 or f32"),
            ("--model D --threads 0", "--threads 0: must be at least 1"),
            ("--model D -o /dev/null", "--output /dev/null: exists and is no regular file"),
            ("--model D -o /", "--output /: exists and is no regular file"),
        ] {
            assert_eq!(parse(line).unwrap().check().unwrap_err().to_string(), want);
        }
        let args = parse("--model D --tokenizer /no/such/dir").unwrap();
        let Err(error) = args.checkpoint() else { panic!("no error") };
        assert_eq!(error.to_string(), "--tokenizer /no/such/dir: is no directory");
    }

    #[test]
    fn verify_asks_for_a_plan_and_its_checkpoint() {
        let args = parse("verify --model D --plan e.plan --layers --tokens 1,2,3 --isa scalar").unwrap();
        let Some(Command::Verify(verify)) = args.command else { panic!("no verify") };
        assert_eq!((verify.tokens, verify.layers, verify.isa), (vec![1, 2, 3], true, Some(Isa::Scalar)));
        for line in [
            "verify",
            "verify --model D",
            "verify --plan e.plan",
            "verify --model D --config c --plan e.plan",
            "verify --model D --plan e.plan --text t --tokens 1",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn clap_finds_no_fault_with_the_definition() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
