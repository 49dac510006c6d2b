"""Scores a Hugging Face directory on the held-out cases by real greedy decoding in transformers: `python evaluate.py [DIR]`.

Goes through the stored chat template, and a case only counts if the model ended its turn itself.
`--write-cases` writes eval_cases.jsonl anew from data.py.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import data

HERE = Path(__file__).parent.parent
CASES = HERE / "eval_cases.jsonl"


def main():
    arg = argparse.ArgumentParser()
    arg.add_argument("dir", nargs="?", type=Path, default=HERE)
    arg.add_argument("--write-cases", action="store_true")
    arg.add_argument("--dtype", default="float32", help="of the arithmetic; the weights are bf16")
    arg.add_argument("--show", type=int, default=0, help="wrong answers to print per task")
    arg = arg.parse_args()
    if arg.write_cases:
        rows = [json.dumps(data.case(t, i), ensure_ascii=False) for t, n in data.CASES.items() for i in range(n)]
        CASES.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    tok = AutoTokenizer.from_pretrained(arg.dir)
    model = AutoModelForCausalLM.from_pretrained(arg.dir, dtype=getattr(torch, arg.dtype)).eval()
    good, total, wrong = Counter(), Counter(), Counter()
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        ids = tok.apply_chat_template(case["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, do_sample=False, max_new_tokens=48)[0, ids["input_ids"].shape[1] :]
        answer = tok.decode(out, skip_special_tokens=True)
        right = answer == case["answer"] and out[-1] == tok.eos_token_id
        total[case["task"]] += 1
        good[case["task"]] += right
        if not right and wrong[case["task"]] < arg.show:
            wrong[case["task"]] += 1
            print(case["task"], repr(case["messages"][-1]["content"][-60:]), "gave", repr(answer), "wanted", repr(case["answer"]))
    print(" ".join(f"{t} {good[t] / total[t]:.3f}" for t in total))


if __name__ == "__main__":
    main()
