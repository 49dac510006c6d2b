//! The structs of a step lie in device memory as the host writes them: sizes and every field's offset.

use std::mem::offset_of;

use lathe_conformance::{Operands, Rig};
use lathe_device::{
    Answer, Arg, DrawParams, Extent, Sequence, Symbols, WANT_LOGITS, WANT_SAMPLE, WANT_SCORE, When,
};
use lathe_kernels::cuda::{Cost, Launches, Source, Stage};

/// A kernel that stores the offsets of all fields and the sizes of structs, and the host's list of the same.
macro_rules! layout {
    ($($name:ident { $($field:ident)* })*) => {
        const KERNEL: &str = concat!(
            "#include \"step.cuh\"\n#define OFFSET(name, field) \\\n    lathe::u32((const char*)&((const name*)out)->field - (const char*)out)\nextern \"C\" __global__ void layout(lathe::u32* out) {\nif (threadIdx.x > 0) return;\n",
            $(
                $("*out++ = OFFSET(lathe::", stringify!($name), ", ", stringify!($field), ");\n",)*
                "*out++ = sizeof(lathe::", stringify!($name), ");\n",
            )*
            "*out++ = lathe::WANT_SAMPLE;\n*out++ = lathe::WANT_SCORE;\n*out++ = lathe::WANT_LOGITS;\n}\n",
        );

        fn host() -> Vec<(String, i32)> {
            let mut all = Vec::new();
            $(
                $(all.push((
                    concat!(stringify!($name), ".", stringify!($field)).to_owned(),
                    offset_of!($name, $field) as i32,
                ));)*
                all.push((concat!("size of ", stringify!($name)).to_owned(), size_of::<$name>() as i32));
                // Does not compile when a field is missing above.
                let _ = |it: $name| { let $name { $($field: _),* } = it; };
            )*
            all.push(("WANT_SAMPLE".into(), WANT_SAMPLE));
            all.push(("WANT_SCORE".into(), WANT_SCORE));
            all.push(("WANT_LOGITS".into(), WANT_LOGITS));
            all
        }
    };
}

layout! {
    Sequence { q_start q_len kv_len blocks_start }
    DrawParams {
        slot position want score_id temperature top_k top_p min_p repetition_penalty presence_penalty
        frequency_penalty n_bias n_stops n_top masked choice seed
    }
    Answer { id logprob rank n_top top_ids top_logprobs }
}

#[test]
fn device_and_host_agree() {
    let want = host();
    let stage = Stage {
        source: Source::new("step-structs", KERNEL, vec![]),
        entry: "layout",
        when: When::Always,
        grid: [Extent::fixed(1), Extent::fixed(1), Extent::fixed(1)],
        block: 32,
        shared_bytes: 0,
        dependent: false,
        args: vec![Arg::Output(0)],
        cost: Cost::default(),
    };
    let mut rig = Rig::chosen(true).unwrap();
    let out = rig.empty("offsets", 4 * want.len()).unwrap();
    let launches = Launches { stages: vec![stage], workspaces: vec![] };
    let symbols = Symbols { tokens: 1, sequences: 1, rows: 1, decode: true, sm_count: 1 };
    rig.run(&launches, symbols, &Operands { outputs: vec![out], ..Operands::default() }).unwrap();
    let got = rig.read_i32(out, want.len()).unwrap();
    for ((name, want), got) in want.iter().zip(got) {
        assert_eq!(got, *want, "{name}");
    }
}
