//! Every setting of the runtime in one table: flag, environment variable, default, meaning.

use clap::{Arg, ArgAction};

/// One setting. Its flag is `--name`, its key in a settings file `name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knob {
    /// Name in kebab case.
    pub name: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Placeholder of the value in help.
    pub value: &'static str,
    /// Value when nobody sets it; `None` is described by `help`.
    pub default: Option<&'static str>,
    /// One line.
    pub help: &'static str,
}

/// Settings of every command that runs an engine.
pub const ENGINE: &[Knob] = &[
    Knob {
        name: "device",
        env: "LATHE_DEVICE",
        value: "DEVICE",
        default: Some("auto"),
        help: "cpu, cuda, cuda:N, emulator (runs the plan's CUDA program on the CPU), emulator:checked (and checks every \
               access), or auto: a GPU that the plan has a program for, else the CPU",
    },
    Knob {
        name: "device-reserve",
        env: "LATHE_DEVICE_RESERVE",
        value: "SIZE",
        default: Some("512MiB"),
        help: "Device memory that is left to others when the KV pool is sized",
    },
    Knob {
        name: "allow-ptx-jit",
        env: "LATHE_ALLOW_PTX_JIT",
        value: "BOOL",
        default: Some("false"),
        help: "true lets the driver compile the plan's PTX for a GPU that it holds no machine code for",
    },
    Knob {
        name: "threads",
        env: "LATHE_THREADS",
        value: "N",
        default: None,
        help: "Worker threads; all that the process may use unless set",
    },
    Knob {
        name: "isa",
        env: "LATHE_ISA",
        value: "ISA",
        default: None,
        help: "avx512, avx2, neon or scalar; the fastest of this machine unless set",
    },
    Knob {
        name: "kv-memory",
        env: "LATHE_KV_MEMORY",
        value: "SIZE",
        default: None,
        help: "Size of the KV pool, e.g. 512MiB; what the plan was compiled for unless set",
    },
    Knob {
        name: "prefill-chunk",
        env: "LATHE_PREFILL_CHUNK",
        value: "TOKENS",
        default: None,
        help: "Prompt tokens of one sequence in one step at most; no limit of its own unless set",
    },
    LOG_FORMAT,
];

/// Shape of the log.
pub const LOG_FORMAT: Knob = Knob {
    name: "log-format",
    env: "LATHE_LOG_FORMAT",
    value: "FORMAT",
    default: Some("text"),
    help: "text or json; LATHE_LOG sets the level",
};

/// Settings of `serve` alone.
pub const SERVE: &[Knob] = &[
    Knob {
        name: "host",
        env: "LATHE_HOST",
        value: "ADDRESS",
        default: Some("127.0.0.1"),
        help: "Address or name to listen on",
    },
    Knob {
        name: "port",
        env: "LATHE_PORT",
        value: "PORT",
        default: Some("8000"),
        help: "Port to listen on; 0 picks a free one and prints it",
    },
    Knob {
        name: "served-model-name",
        env: "LATHE_SERVED_MODEL_NAME",
        value: "NAME",
        default: None,
        help: "Name that requests give; the plan's file stem unless set",
    },
    Knob {
        name: "api-key-file",
        env: "LATHE_API_KEY_FILE",
        value: "FILE",
        default: None,
        help: "Keys, one per line, of which requests must show one; LATHE_API_KEY adds one more",
    },
    Knob {
        name: "drain-timeout",
        env: "LATHE_DRAIN_TIMEOUT",
        value: "TIME",
        default: Some("30s"),
        help: "Time that running requests get after SIGTERM",
    },
    Knob {
        name: "request-timeout",
        env: "LATHE_REQUEST_TIMEOUT",
        value: "TIME",
        default: None,
        help: "Longest time of one request; no limit unless set",
    },
    Knob {
        name: "header-timeout",
        env: "LATHE_HEADER_TIMEOUT",
        value: "TIME",
        default: Some("30s"),
        help: "Longest time for a request's head to come, and for a connection to stay open without a request",
    },
    Knob {
        name: "max-connections",
        env: "LATHE_MAX_CONNECTIONS",
        value: "N",
        default: Some("1000"),
        help: "Connections at once; more wait until one ends",
    },
    Knob {
        name: "max-body",
        env: "LATHE_MAX_BODY",
        value: "SIZE",
        default: Some("16MiB"),
        help: "Largest request body",
    },
    Knob {
        name: "max-queue",
        env: "LATHE_MAX_QUEUE",
        value: "N",
        default: Some("1024"),
        help: "Sequences that may wait; more get 429",
    },
    Knob {
        name: "cors-origin",
        env: "LATHE_CORS_ORIGIN",
        value: "ORIGIN",
        default: None,
        help: "Origin that browsers may call from, * is any; none unless set",
    },
];

/// Command line arguments of a table.
pub fn args(knobs: &[Knob]) -> Vec<Arg> {
    knobs
        .iter()
        .map(|knob| {
            let default = knob.default.map_or(String::new(), |d| format!(" [default: {d}]"));
            Arg::new(knob.name)
                .long(knob.name)
                .value_name(knob.value)
                .action(ArgAction::Set)
                .help(format!("{} [env: {}]{default}", knob.help, knob.env))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_names_follow_the_flags() {
        for knob in ENGINE.iter().chain(SERVE) {
            assert_eq!(knob.env, format!("LATHE_{}", knob.name.replace('-', "_").to_uppercase()));
        }
    }
}
