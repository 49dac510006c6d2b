#!/usr/bin/env python3
"""Writes a bf16 GGUF of a Llama shape with noise for weights: good for speed, its text means nothing.

  make_gguf.py config.json out.gguf
"""
import json
import os
import struct
import sys

import numpy as np

ALIGN = 32
F32, BF16 = 0, 30  # ggml tensor types
U32, FLOAT, STRING = 4, 6, 8  # gguf value types
BLOCK = 1 << 22  # elements of noise that are drawn once and used everywhere


def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def value(key, v):
    if isinstance(v, str):
        return text(key) + struct.pack("<I", STRING) + text(v)
    if isinstance(v, float):
        return text(key) + struct.pack("<If", FLOAT, v)
    return text(key) + struct.pack("<II", U32, v)


def tensors(c):
    """(name, rows, columns); rows 0 is a vector."""
    h, f, v, d = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    out = [("token_embd.weight", v, h), ("output_norm.weight", 0, h)]
    if not c["tie_word_embeddings"]:
        out.append(("output.weight", v, h))
    for i in range(c["num_hidden_layers"]):
        shapes = [("attn_norm", 0, h), ("attn_q", q, h), ("attn_k", kv, h), ("attn_v", kv, h), ("attn_output", h, q),
                  ("ffn_norm", 0, h), ("ffn_gate", f, h), ("ffn_up", f, h), ("ffn_down", h, f)]
        out += [(f"blk.{i}.{name}.weight", n, k) for name, n, k in shapes]
    return out


def main(config, path):
    c = json.load(open(config))
    keys = {
        "general.architecture": "llama",
        "general.alignment": ALIGN,
        "llama.context_length": c["max_position_embeddings"],
        "llama.embedding_length": c["hidden_size"],
        "llama.block_count": c["num_hidden_layers"],
        "llama.feed_forward_length": c["intermediate_size"],
        "llama.attention.head_count": c["num_attention_heads"],
        "llama.attention.head_count_kv": c["num_key_value_heads"],
        "llama.attention.key_length": c["head_dim"],
        "llama.attention.value_length": c["head_dim"],
        "llama.rope.dimension_count": c["head_dim"],
        "llama.rope.freq_base": float(c["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        "llama.vocab_size": c["vocab_size"],
        "tokenizer.ggml.model": "none",
    }
    noise = np.random.default_rng(1).standard_normal(BLOCK, dtype=np.float32) * np.float32(0.02)
    noise = (noise.view(np.uint32) >> 16).astype(np.uint16)
    infos, offset, plan = b"", 0, []
    for name, n, k in tensors(c):
        dims = [k, n] if n else [k]
        infos += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, BF16 if n else F32, offset)
        size = n * k * 2 if n else k * 4
        plan.append((n, k, size))
        offset += -(-size // ALIGN) * ALIGN
    head = b"GGUF" + struct.pack("<IQQ", 3, len(plan), len(keys)) + b"".join(value(*kv) for kv in keys.items()) + infos
    with open(path + ".part", "wb") as out:
        out.write(head + b"\0" * (-len(head) % ALIGN))
        for i, (n, k, size) in enumerate(plan):
            if n:
                # Another start per tensor, so that no two are the same bytes.
                shift, left = (i * 7919) % BLOCK, n * k
                while left:
                    part = noise[shift:shift + left]
                    out.write(part.tobytes())
                    shift, left = 0, left - len(part)
            else:
                out.write(np.ones(k, np.float32).tobytes())
            out.write(b"\0" * (-size % ALIGN))
    os.rename(path + ".part", path)


if __name__ == "__main__":
    main(*sys.argv[1:])
