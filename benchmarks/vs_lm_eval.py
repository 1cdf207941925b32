"""The same prompts through lm-eval's `hf` model on the CPU and through ours: the whole run, from process to answers.

    python3.11 -m venv /tmp/lmeval && echo torch==2.13.0 > /tmp/constraints.txt
    /tmp/lmeval/bin/pip install torch==2.13.0
    PIP_CONSTRAINT=/tmp/constraints.txt /tmp/lmeval/bin/pip install lm-eval transformers accelerate gguf
    python benchmarks/vs_lm_eval.py /tmp/lmeval/bin/python [--prompts 100] [--new-tokens 64] [--rounds 3]

lm-eval gets the demo model dequantised to float32 (its 16-bit kernels are slower on a CPU), the prompts as they are,
and its best batch size of those tried. Rounds are interleaved; ratios are medians over rounds of ratios within a
round. Targets: as fast at FP16, 1.4 times at Q8_0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from demo_model import LEVELS, demo_gguf, level, prompts

from quantverdict.backends.base import Decoding, Placement, physical_cores
from quantverdict.backends.open import open_backend

DEQUANTISE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, name, target = sys.argv[1:]
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
).save_pretrained(target)
"""

TASK = """
task: quantverdict_prompts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: ""
generation_kwargs:
  until: ["<|im_end|>"]
  max_gen_toks: {new_tokens}
  do_sample: false
metric_list:
  - metric: bypass
"""


def dequantised(python: str) -> Path:
    """The demo model as a Hugging Face checkpoint, made once and not timed."""
    target = LEVELS / "hf"
    if not (target / "config.json").exists():
        LEVELS.mkdir(exist_ok=True)
        path = demo_gguf()
        subprocess.run([python, "-c", DEQUANTISE, str(path.parent), path.name, str(target)], check=True)
    return target


def timed(command: Sequence[str], threads: int) -> tuple[float, str]:
    """Wall seconds of a process, and what it printed."""
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stderr[-3000:]}")
    return wall, done.stdout


def lm_eval(python: str, folder: Path, batch: int, threads: int) -> float:
    command = [python, "-m", "lm_eval", "--model", "hf", "--model_args",
               f"pretrained={folder / 'model'},dtype=float32,add_bos_token=False", "--include_path", str(folder),
               "--tasks", "quantverdict_prompts", "--batch_size", str(batch), "--device", "cpu",
               "--output_path", str(folder / "out"), "--log_samples"]  # fmt: skip
    return timed(command, threads)[0]


def answer(path: str, count: int, new_tokens: int, threads: int) -> None:
    """What our timed process does: load, ask in batches of 32, write the answers down."""
    backend = open_backend("llamacpp", Path(path), Placement(parallel=16, threads=threads, context=1024))
    asked = sorted(prompts(count), key=lambda prompt: len(prompt.text))
    for start in range(0, count, 32):
        done = backend.complete(asked[start : start + 32], Decoding(max_new_tokens=new_tokens))
        pairs = zip(asked[start : start + 32], done, strict=True)
        print(json.dumps({prompt.chat: completion.text for prompt, completion in pairs}))
    backend.close()


def agreeing(folder: Path, ours: Mapping[str, str]) -> int:
    """Prompts that both answered with the same text: proof that both did the same work."""
    newest = max((folder / "out").rglob("samples_*.jsonl"), key=lambda path: path.stat().st_mtime)
    samples = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    return sum(ours[sample["doc"]["prompt"]].strip() == sample["resps"][0][0].strip() for sample in samples)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("python", help="of the environment that has lm-eval")
    options.add_argument("--prompts", type=int, default=100)
    options.add_argument("--new-tokens", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--batches", default="8,16,32", help="lm-eval's batch sizes to try")
    options.add_argument("--answer", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.answer:
        answer(chosen.answer, chosen.prompts, chosen.new_tokens, chosen.threads)
        return
    with tempfile.TemporaryDirectory() as place:
        compare(chosen, Path(place))


def compare(chosen: argparse.Namespace, folder: Path) -> None:
    data = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt.chat}) + "\n" for prompt in prompts(chosen.prompts)]
    data.write_text("".join(lines), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK.format(data=data, new_tokens=chosen.new_tokens), encoding="utf-8")
    (folder / "model").symlink_to(dequantised(chosen.python))
    sizes = [int(size) for size in chosen.batches.split(",")]
    tried = {size: lm_eval(chosen.python, folder, size, chosen.threads) for size in sizes} if len(sizes) > 1 else {}
    best = min(tried, key=tried.__getitem__) if tried else sizes[0]
    print(f"lm-eval, seconds by batch size: { {size: round(wall, 1) for size, wall in tried.items()} }, best {best}")
    ours: dict[str, dict[str, str]] = {}
    walls: dict[str, list[float]] = {"lm-eval": [], "FP16": [], "Q8_0": []}
    for number in range(chosen.rounds):
        for name in sorted(walls, reverse=bool(number % 2)):
            if name == "lm-eval":
                wall = lm_eval(chosen.python, folder, best, chosen.threads)
            else:
                wall, said = timed([sys.executable, __file__, chosen.python, "--answer", str(level(name)),
                              "--prompts", str(chosen.prompts), "--new-tokens", str(chosen.new_tokens),
                              "--threads", str(chosen.threads)], chosen.threads)  # fmt: skip
                ours[name] = {chat: text for line in said.splitlines() for chat, text in json.loads(line).items()}
            walls[name].append(wall)
            print(f"round {number + 1}  {name:8} {wall:7.1f} s", flush=True)
    faster = {name: round(median(a / b for a, b in zip(walls["lm-eval"], walls[name], strict=True)), 3)
              for name in ("FP16", "Q8_0")}  # fmt: skip
    agreed = {name: agreeing(folder, texts) for name, texts in ours.items()}
    report = {
        "prompts": chosen.prompts,
        "new_tokens": chosen.new_tokens,
        "threads": chosen.threads,
        "lm_eval_batch": best,
        "seconds": walls,
        "times_as_fast_as_lm_eval": faster,
        "same_answer_as_lm_eval": agreed,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
