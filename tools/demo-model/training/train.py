"""Trains the demo model and exports it in Hugging Face form.

    python train.py --out .. --state /tmp/demo.pt --minutes 40

Runs --procs processes of one thread each, which meet once a step to add gradients: on shared cores that is far
ahead of one process with two threads, which would wait for each other in every operation.

Resumes from --state. Every --eval-minutes it scores held-out cases with bf16-rounded weights, appends one line
to the log, and exports when the worst margin to the targets got better.
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import data

HERE = Path(__file__).parent
SEED = 20261120
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTER, THETA, EPS, MAX_POS = 256, 4, 4, 2, 64, 640, 10000.0, 1e-5, 2048
TARGETS = {"arithmetic": 0.95, "facts": 0.95, "recall_256": 0.95, "recall_1000": 0.90, "chat": 0.95}

# The same text as data.render: no newlines, one token per role.
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('role must be system, user or assistant') }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

# ---- tokenizer ----


def make_tokenizer():
    tok = Tokenizer(models.BPE())
    # One digit per token; a word takes the space before it.
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1536, min_frequency=12, special_tokens=data.SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(data.tokenizer_corpus(), trainer)
    bos = tok.token_to_id(data.BOS)
    tok.post_processor = processors.TemplateProcessing(single=f"{data.BOS} $A", special_tokens=[(data.BOS, bos)])
    return tok


# ---- model: the Llama block, parameter names as in the checkpoint ----


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        shapes = {"q": (q, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, q)}
        shapes |= {"gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER)}
        for name, shape in shapes.items():
            std = shape[1] ** -0.5 * (0.5 if name in ("o", "down") else 1.0)
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * std))
        self.norm1 = nn.Parameter(torch.ones(HIDDEN))
        self.norm2 = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = F.rms_norm(x, (HIDDEN,), self.norm1.to(x.dtype), EPS)
        q, k, v = F.linear(h, torch.cat([self.q, self.k, self.v])).split([p.shape[0] for p in (self.q, self.k, self.v)], -1)
        q, k, v = (z.view(b, t, -1, HEAD_DIM).transpose(1, 2) for z in (q, k, v))
        q, k = (z * cos + torch.cat([-z[..., HEAD_DIM // 2 :], z[..., : HEAD_DIM // 2]], -1) * sin for z in (q, k))
        k, v = (z.repeat_interleave(HEADS // KV_HEADS, 1) for z in (k, v))
        if t <= 128 and x.dtype == torch.bfloat16:  # the fused backward is slower than plain products here
            mask = torch.full((t, t), -torch.inf, dtype=q.dtype).triu(1)
            a = (q @ k.mT * HEAD_DIM**-0.5 + mask).softmax(-1) @ v
        else:
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(a.transpose(1, 2).reshape(b, t, -1), self.o)
        h = F.rms_norm(x, (HIDDEN,), self.norm2.to(x.dtype), EPS)
        gate, up = F.linear(h, torch.cat([self.gate, self.up])).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Model(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = nn.Parameter(torch.randn(vocab, HIDDEN) * 0.05)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(HIDDEN))
        self.look_back()
        freq = THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angle = torch.outer(torch.arange(MAX_POS).float(), torch.cat([freq, freq]))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @torch.no_grad()
    def look_back(self):
        """Starts the four heads of the first layer as "the token 1, 2, 3, 4 places back".

        Lookup by key is two such steps composed, and waiting for the first to form by chance is most of the training.
        A constant feature in every embedding (which a tied head cannot see: it moves all logits alike) gives queries and
        keys that depend on the distance only; the planes of high frequency make its score sharp.
        """
        planes = torch.arange(8)
        freq = THETA ** (-2 * planes / HEAD_DIM)
        feature = F.normalize(torch.ones(HIDDEN), dim=0)
        self.embed += (self.embed.norm(dim=1).mean() - self.embed @ feature)[:, None] * feature
        block, size = self.blocks[0], 0.6
        for head in range(HEADS):
            direction = torch.zeros(HEAD_DIM)
            direction[planes], direction[planes + HEAD_DIM // 2] = (freq * (head + 1)).cos(), -(freq * (head + 1)).sin()
            block.q[head * HEAD_DIM : (head + 1) * HEAD_DIM] = size * torch.outer(direction, feature)
        for head in range(KV_HEADS):
            direction = torch.zeros(HEAD_DIM)
            direction[planes] = 1.0
            block.k[head * HEAD_DIM : (head + 1) * HEAD_DIM] = size * torch.outer(direction, feature)

    def forward(self, ids, rows, dtype):
        """Logits at the flat positions `rows` only: most positions carry no loss."""
        x = F.embedding(ids, self.embed).to(dtype)
        cos, sin = (z[: ids.shape[1]].to(dtype) for z in (self.cos, self.sin))
        for block in self.blocks:
            x = block(x, cos, sin)
        x = F.rms_norm(x.reshape(-1, HIDDEN)[rows], (HIDDEN,), self.norm.to(x.dtype), EPS)
        return F.linear(x, self.embed).float()


# ---- optimizer: Muon for the hidden matrices, AdamW for the rest ----


def orthogonalise(g):
    """Five Newton-Schulz steps on a batch of matrices."""
    x = g.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Each process keeps all momentum but orthogonalises its own part of every stack."""

    def __init__(self, params, rank, world):
        self.rank, self.world = rank, world
        self.groups = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.momentum = {s: torch.zeros(len(g), *s) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, lr, decay=0.1, beta=0.95):
        for shape, group in self.groups.items():
            g, m = torch.stack([p.grad for p in group]), self.momentum[shape]
            m.lerp_(g, 1 - beta)
            g = g.lerp(m, beta)
            own, update = slice(self.rank * len(g) // self.world, (self.rank + 1) * len(g) // self.world), torch.zeros_like(g)
            update[own] = orthogonalise(g[own]) * max(1.0, shape[0] / shape[1]) ** 0.5
            dist.all_reduce(update)
            for p, u in zip(group, update):
                p.mul_(1 - lr * decay).sub_(u, alpha=lr)
                p.grad = None


# ---- batches ----


def encode(tok, turns):
    return tok.encode(data.render(turns), add_special_tokens=False).ids


def answer_mask(ids, ids_of):
    """True where the token is part of an answer or its end of turn, that is where it must be predicted."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    inside = torch.zeros(ids.shape[0], dtype=torch.bool)
    for t in range(ids.shape[1]):
        mask[:, t] = inside
        inside = (inside & (ids[:, t] != ids_of["end"])) | (ids[:, t] == ids_of["assistant"])
    return mask


class Batches:
    def __init__(self, tok):
        self.tok = tok
        self.ids_of = {"end": tok.token_to_id(data.END), "assistant": tok.token_to_id(data.ASSISTANT), "pad": tok.token_to_id(data.PAD)}

    def pack(self, rows, length=None):
        length = length or max(map(len, rows))
        pad = self.ids_of["pad"]
        ids = torch.tensor([(r + [pad] * length)[:length] for r in rows])
        return ids, answer_mask(ids, self.ids_of)

    def training(self, step, length, tokens, mix, most, rank, world):
        r = data.Rng(SEED, "step", step)
        rows, tasks = [], []
        for i in range(tokens // length):
            u, task = r.random() * sum(mix.values()), None
            for task, w in mix.items():
                u -= w
                if u < 0:
                    break
            if i % world == rank:
                rows.append(encode(self.tok, data.conversation(SEED, task, f"{step}.{i}", length, int(most.get(task, 1000)))))
                tasks.append(list(data.TASKS).index(task))
        return *self.pack(rows, length), torch.tensor(tasks)


# Share of steps per length, and the pairs that a recall context must have reached before that length is used.
LENGTHS = {64: (0.30, 0), 128: (0.30, 8), 320: (0.30, 24), 640: (0.12, 80), 1152: (0.20, 160)}


def pick_length(step, pairs):
    shares = {length: share for length, (share, least) in LENGTHS.items() if pairs >= least}
    u = data.Rng(SEED, "length", step).random() * sum(shares.values())
    for length, share in shares.items():
        u -= share
        if u < 0:
            break
    return length


def lr_factor(step, fraction, decay_from):
    if fraction > decay_from:
        return max(0.02, 1 - (fraction - decay_from) / (1 - decay_from))
    return min(1.0, (step + 1) / 100)


# ---- evaluation and export ----


@torch.no_grad()
def score(model, batches, cases):
    """Exact match under greedy decoding, by one forward pass: every answer token must be the argmax.

    Each process takes its share of the cases; the counts are added."""
    tok, count = batches.tok, torch.zeros(len(data.CASES), 2)
    for n, task in enumerate(data.CASES):
        rows = [encode(tok, [*((m["role"], m["content"]) for m in c["messages"]), ("assistant", c["answer"])]) for c in cases if c["task"] == task][dist.get_rank() :: dist.get_world_size()]
        good = 0
        for i in range(0, len(rows), 50):
            ids, mask = batches.pack(rows[i : i + 50])
            at = mask[:, 1:].nonzero()
            guess = model(ids, at[:, 0] * ids.shape[1] + at[:, 1], torch.float32).argmax(-1)
            wrong = at[guess != ids[at[:, 0], at[:, 1] + 1]][:, 0].unique()
            good += len(ids) - len(wrong)
        count[n] = torch.tensor([good, len(rows)])
    dist.all_reduce(count)
    return {task: (good / total).item() for task, (good, total) in zip(data.CASES, count)}


def rounded(model):
    """The model as it ships: weights through bf16."""
    other = Model(model.embed.shape[0])
    other.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()})
    return other


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export(model, tok, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    for i, b in enumerate(model.blocks):
        p = f"model.layers.{i}."
        tensors |= {f"{p}self_attn.{n}_proj.weight": getattr(b, n) for n in "qkvo"}
        tensors |= {f"{p}mlp.{n}_proj.weight": getattr(b, n) for n in ("gate", "up", "down")}
        tensors |= {f"{p}input_layernorm.weight": b.norm1, f"{p}post_attention_layernorm.weight": b.norm2}
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    ids = {s: tok.token_to_id(s) for s in data.SPECIALS}
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": ids[data.BOS],
        "dtype": "bfloat16", "eos_token_id": ids[data.END], "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": INTER, "max_position_embeddings": MAX_POS, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
        "pad_token_id": ids[data.PAD], "pretraining_tp": 1, "rms_norm_eps": EPS,
        "rope_parameters": {"rope_theta": THETA, "rope_type": "default"}, "tie_word_embeddings": True,
        "transformers_version": "5.23.0", "use_cache": True, "vocab_size": tok.get_vocab_size(),
    }  # fmt: skip
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"bos_token_id": ids[data.BOS], "do_sample": False, "eos_token_id": [ids[data.END]], "pad_token_id": ids[data.PAD]})
    names = {"bos_token": data.BOS, "eos_token": data.END, "pad_token": data.PAD}
    write_json(out / "special_tokens_map.json", names)
    write_json(
        out / "tokenizer_config.json",
        names | {"additional_special_tokens": data.SPECIALS, "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "model_max_length": MAX_POS, "tokenizer_class": "PreTrainedTokenizerFast"},
    )
    tok.save(str(out / "tokenizer.json"))
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(out.iterdir()) if p.name != "SHA256SUMS"]
    (out / "SHA256SUMS").write_text("".join(sums))


# ---- training ----


class Progress:
    """What the batches themselves say: accuracy per task on answer tokens, averaged over about 50 steps.

    It sets the task mix, with more weight on what is weak and a floor under what is learnt, and the size of
    contexts: lookup is learnt on two to four items, and each success makes the lists longer."""

    def __init__(self):
        self.good, self.all = {t: 0.0 for t in data.TASKS}, {t: 1.0 for t in data.TASKS}
        self.most = {"recall": 4.0, "facts": 3.0, "chat": 4.0}

    def accuracy(self, task):
        return self.good[task] / self.all[task]

    def add(self, counts):
        for task, (good, n) in zip(data.TASKS, counts.tolist()):
            self.good[task], self.all[task] = 0.98 * self.good[task] + good, 0.98 * self.all[task] + n
        for task, limit in (("recall", 345), ("facts", 24)):
            if self.accuracy(task) > 0.85 and self.all[task] > 500 and self.most[task] < limit:
                self.most[task] = min(limit, self.most[task] * 1.3 + 1)
                self.good[task] = self.all[task] = 1.0
                self.good[task] = 0.0
        self.most["chat"] = self.most["recall"]

    def mix(self):
        lack = {t: 1.1 - self.accuracy(t) * (1.0 if self.most.get(t, 999) >= 24 else 0.5) for t in ("recall", "facts", "arithmetic")}
        lack["arithmetic"] *= 2  # the accuracy is per token, and a sum has two or three
        return {t: 0.12 + 0.6 * v / sum(lack.values()) for t, v in lack.items()} | {"chat": 0.06}


def add_gradients(params, extra):
    """Means over the processes; the numbers of `extra` travel along, summed."""
    flat = torch.cat([*(p.grad.reshape(-1) for p in params), extra])
    dist.all_reduce(flat)
    at = 0
    for p in params:
        p.grad.copy_((flat[at : at + p.numel()] / dist.get_world_size()).view_as(p))
        at += p.numel()
    return flat[at:]


def worker(rank, arg):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(arg.port)}
    dist.init_process_group("gloo", rank=rank, world_size=arg.procs)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tok = make_tokenizer()
    batches = Batches(tok)
    cases = [data.case(t, i) for t, n in data.CASES.items() for i in range(n)]
    model = Model(tok.get_vocab_size())
    params = list(model.parameters())
    muon = Muon([p for b in model.blocks for p in b.parameters() if p.ndim == 2], rank, arg.procs)
    adam = torch.optim.AdamW([model.embed, *(p for p in params if p.ndim == 1)], lr=0, betas=(0.9, 0.95), weight_decay=0.0)
    step, seconds, seen, best = 0, 0.0, 0, -9.0
    progress = Progress()
    if arg.state.exists():
        s = torch.load(arg.state, weights_only=False)
        model.load_state_dict(s["model"])
        muon.momentum = s["muon"]
        adam.load_state_dict(s["adam"])
        step, seconds, seen, best = s["step"], s["seconds"], s["seen"], s["best"]
        vars(progress).update(s["progress"])

    def log(line):
        if rank == 0:
            print(line, flush=True)
            with arg.log.open("a") as f:
                f.write(line + "\n")

    next_eval, losses, started, done = seconds + arg.eval_minutes * 60, [], time.time() - seconds, False
    while not done:
        fraction = seconds / (arg.minutes * 60)
        length, mix = pick_length(step, progress.most["recall"]), progress.mix()
        if length >= 600:
            mix["recall"] += 1.0  # only lists need it
        ids, mask, tasks = batches.training(step, length, arg.tokens, mix, progress.most, rank, arg.procs)
        at = mask[:, 1:].nonzero()
        rows, target = at[:, 0] * length + at[:, 1], ids[at[:, 0], at[:, 1] + 1]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, rows, torch.bfloat16)
        loss = F.cross_entropy(logits, target)
        loss.backward()
        # The first process's clock is everybody's.
        extra = torch.zeros(1 + 2 * len(data.TASKS))
        extra[0] = time.time() - started if rank == 0 else 0.0
        content = target != batches.ids_of["end"]
        good = (logits.argmax(-1) == target).float()
        for t in range(len(data.TASKS)):
            here = content & (tasks[at[:, 0]] == t)
            extra[1 + 2 * t], extra[2 + 2 * t] = good[here].sum(), here.sum()
        extra = add_gradients(params, extra)
        seconds = extra[0].item()
        progress.add(extra[1:].view(-1, 2))
        factor = lr_factor(step, fraction, arg.decay_from)
        muon.step(arg.muon_lr * factor)
        for g in adam.param_groups:
            g["lr"] = arg.adam_lr * factor
        adam.step()
        adam.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + arg.tokens
        losses.append(loss.item())
        if step % 20 == 0 and rank == 0:
            print(f"step {step} {seconds / 60:.1f} min length {length} loss {sum(losses[-20:]) / 20:.4f} " + " ".join(f"{t} {progress.accuracy(t):.2f}/{progress.most.get(t, 0):.0f}" for t in data.TASKS), flush=True)
        done = seconds > arg.minutes * 60
        if seconds > next_eval or done:
            shipped = rounded(model)
            # A third of the cases is enough while it is far from done.
            scores = score(shipped, batches, cases[:: 1 if fraction > arg.decay_from + 0.1 else 3])
            margin = min(scores[t] - TARGETS[t] for t in TARGETS)
            log(
                f"step {step} minutes {seconds / 60:.1f} tokens {seen / 1e6:.2f}M loss {sum(losses) / len(losses):.4f} lr x{factor:.2f} "
                + " ".join(f"{t} {v:.3f}" for t, v in scores.items())
                + " mix " + " ".join(f"{t} {v:.2f}" for t, v in progress.mix().items())
                + f" pairs {progress.most['recall']:.0f} sentences {progress.most['facts']:.0f}"
            )  # fmt: skip
            short = sum(min(0.0, scores[t] - TARGETS[t] - 0.03) for t in TARGETS)
            losses = []
            better = short + 0.01 * margin > best
            best = max(best, short + 0.01 * margin)
            if rank == 0:
                if better:
                    export(shipped, tok, arg.out)
                    log(f"exported at step {step}")
                state = {"model": model.state_dict(), "muon": muon.momentum, "adam": adam.state_dict()}
                state |= {"step": step, "seconds": seconds, "seen": seen, "best": best, "progress": vars(progress)}
                torch.save(state, str(arg.state) + ".new")
                os.replace(str(arg.state) + ".new", arg.state)
            next_eval = seconds + arg.eval_minutes * 60
            enough = all(scores[t] >= (0.93 if t == "recall_1000" else 0.97) for t in TARGETS)
            done = done or (enough and factor < 0.1)


def main():
    arg = argparse.ArgumentParser()
    arg.add_argument("--out", type=Path, default=HERE.parent)
    arg.add_argument("--state", type=Path, default=Path("/tmp/demo-model.pt"))
    arg.add_argument("--log", type=Path, default=HERE / "training.log")
    arg.add_argument("--minutes", type=float, default=40)
    arg.add_argument("--eval-minutes", type=float, default=4)
    arg.add_argument("--tokens", type=int, default=4608, help="per step, over all processes")
    arg.add_argument("--muon-lr", type=float, default=0.008)
    arg.add_argument("--adam-lr", type=float, default=2e-3)
    arg.add_argument("--decay-from", type=float, default=0.5)
    arg.add_argument("--procs", type=int, default=2)
    arg.add_argument("--port", type=int, default=29541)
    arg = arg.parse_args()
    torch.multiprocessing.spawn(worker, (arg,), arg.procs)


if __name__ == "__main__":
    main()
