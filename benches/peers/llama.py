#!/usr/bin/env python3
"""llama.cpp behind the line protocol of src/peer.rs: loads once, then runs one case per line of standard input.

  llama.py model.gguf THREADS

Through the C API; settings are the library's own, but for threads and sizes. Python's part of a step (filling the
batch, argmax) is some 0.1 ms at 32 sequences and 1 us per prompt id.
"""
import json
import sys
import time

import numpy as np
import llama_cpp as L


BATCH = 2048  # ids of a call, llama.cpp's own default


def reply(**fields):
    print(json.dumps(fields), flush=True)


def prompt(n, sequence=0):
    """The ids of src/cases.rs."""
    return [((i + sequence * 101) * 7919 + 13) % 31000 + 100 for i in range(n)]


quiet = L.llama_log_callback(lambda *_: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
path, threads = sys.argv[1], int(sys.argv[2])
started = time.perf_counter()
model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
if not model:
    sys.exit(f"{path}: llama.cpp cannot load it")
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
batch = L.llama_batch_init(BATCH, 0, 1)
contexts, kept = {}, set()


def context(n_seqs, n_ctx):
    if (n_seqs, n_ctx) not in contexts:
        p = L.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = n_ctx * n_seqs, BATCH, 512, n_seqs
        p.n_threads = p.n_threads_batch = threads
        contexts[n_seqs, n_ctx] = L.llama_init_from_model(model, p)
    return contexts[n_seqs, n_ctx]


def fill(items):
    batch.n_tokens = len(items)
    for i, (token, position, sequence, wanted) in enumerate(items):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence


def decode(c):
    if L.llama_decode(c, batch) != 0:
        sys.exit("llama_decode failed")


def largest(c, row):
    return int(np.ctypeslib.as_array(L.llama_get_logits_ith(c, row), (vocab,)).argmax())


def prompts(c, n_seqs, n_prompt):
    """All prompts, at most BATCH ids a call; the last id of each."""
    last, items, rows = [0] * n_seqs, [], []
    for s in range(n_seqs):
        for i, t in enumerate(prompt(n_prompt, s)):
            if i == n_prompt - 1:
                rows.append((s, len(items)))
            items.append((t, i, s, i == n_prompt - 1))
            if len(items) == BATCH or (s, i) == (n_seqs - 1, n_prompt - 1):
                fill(items)
                decode(c)
                for sequence, row in rows:
                    last[sequence] = largest(c, row)
                items, rows = [], []
    return last


def run(n_seqs, n_prompt, n_new, extra=""):
    c = context(n_seqs, n_prompt + n_new + 1 + -(n_prompt + n_new + 1) % 256)
    memory = L.llama_get_memory(c)
    case = (n_seqs, n_prompt, n_new)
    if case not in kept:
        L.llama_memory_clear(memory, True)
    t0 = time.perf_counter()
    if case in kept:
        for s in range(n_seqs):
            L.llama_memory_seq_rm(memory, s, n_prompt, -1)
        last = [0] * n_seqs
    else:
        last = prompts(c, n_seqs, n_prompt)
    if extra == "kept":
        kept.add(case)
    t1 = time.perf_counter()
    for i in range(n_new):
        fill([(last[s], n_prompt + i, s, True) for s in range(n_seqs)])
        decode(c)
        last = [largest(c, s) for s in range(n_seqs)]
    t2 = time.perf_counter()
    reply(prefill_s=t1 - t0, decode_s=t2 - t1, last=last)


info = L.llama_print_system_info().decode()
reply(name="llama.cpp", version=f"llama-cpp-python {L.__version__}", build=info, load_s=time.perf_counter() - started)
for line in sys.stdin:
    numbers = line.split()
    run(*map(int, numbers[:3]), *numbers[3:])
