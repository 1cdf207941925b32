"""Controls on a real model: a build that is known to be broken, and one that is known to be the original.

    python benchmarks/controls.py [--noise 0.02,0.05,0.1,0.2,0.4]

Adds Gaussian noise in steps to every F16 matrix of the demo model's FP16 file, its standard deviation a share of the
matrix's own, and copies that file byte for byte under another name. From every file, the copy included, the engine
answers which of four words it was told; the answers are then decided as recorded ones, where no build is taken for the
twin of another. The margin is the smallest of 5, 10, ... 30 pp that `plan` gives a build that loses nothing a chance
of 80 % at. Exits 1 unless the copy is non-inferior and noise is inferior from some step on.
"""

import argparse
import csv
import json
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from demo_model import level

import quantverdict as qv
from quantverdict.artifacts.gguf import inspect_gguf
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.backends.base import Decoding, Placement
from quantverdict.backends.open import open_backend
from quantverdict.bundle.prompts import freeze_prompts
from quantverdict.policy import Policy
from quantverdict.tasks.catalog import builtin_tasks, load_task

METRIC = "choice_accuracy_logprob"
MARGINS = (5, 10, 15, 20, 25, 30)
STUDY = """\
study: controls
models:
  - {{name: demo, family: Demo, baseline: FP16, variants: [FP16, {variants}]}}
collect: {{backend: replay, replay_dir: recorded}}
tasks: [{{path: words.yaml}}]
policy: {{base: quantverdict, quality_metric: {metric}, quality_margin_pp: {margin}, required: [{metric}],
  margins: {{{none}}}}}
"""
_GATED = ", ".join(f"{metric}: null" for metric in Policy().margins)


def words_task(count, seed=42):
    """A task of `count` words of the starter battery, each to be told from three others: a small model can do it."""
    texts = " ".join(str(item.fields) for name in builtin_tasks() for item in load_task(name).items)
    words = sorted(set(re.findall(r"\b[a-z]{5,8}\b", texts)))
    drawn = random.Random(seed).sample(words, 4 * count)
    groups = [drawn[at : at + 4] for at in range(0, 4 * count, 4)]
    samples = [
        {"id": f"w{at:04d}", "word": group[at % 4], "reference": group[at % 4], "categories": ", ".join(group)}
        for at, group in enumerate(groups)
    ]
    template = "Repeat this word and say nothing else: {{ word }}"
    return {"name": "words", "task_type": "classification", "prompt_template": template, "samples": samples}


def add_noise(source, out, share, seed=42):
    """Copy a GGUF and add noise to its F16 matrices: `share` of the standard deviation of each."""
    shutil.copyfile(source, out)
    draw = np.random.default_rng(seed)
    for tensor in open_gguf(out).tensors:
        if tensor.type.name == "F16" and tensor.n_dims > 1:
            data = np.memmap(out, np.float16, "r+", tensor.start, (tensor.n_elements,))
            wide = data.astype(np.float32)
            wide += share * wide.std() * draw.standard_normal(wide.size, np.float32)
            data[:] = wide
            data.flush()


def record(path, quant, folder, threads=1):
    """The engine's answers to `words.yaml` from a file, as a cell of recorded ones."""
    file = inspect_gguf(path)
    prompts = freeze_prompts([load_task(folder / "words.yaml")], file.chat_template, file.special_tokens)
    backend = open_backend("llamacpp", path, Placement(parallel=16, threads=threads, context=512))
    try:
        answers = backend.complete(prompts, Decoding(1))
    finally:
        backend.close()
    rows = [
        {"task": prompt.task, "sample_id": prompt.sample_id, "text": answer.text, "finish": answer.finish,
         "output_tokens": answer.output_tokens, "choice_logprobs": answer.choice_logprobs}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]  # fmt: skip
    (folder / "recorded").mkdir(exist_ok=True)
    (folder / "recorded" / f"demo__{quant}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def planned(folder, variants, count):
    """The study of `count` words at the smallest margin that the plan calls resolvable, and what it says of that."""
    (folder / "words.yaml").write_text(yaml.safe_dump(words_task(count)))
    study = folder / "controls.yaml"
    for margin in MARGINS:
        study.write_text(STUDY.format(variants=", ".join(variants), metric=METRIC, margin=margin, none=_GATED))
        found = qv.plan(study, measure=False).prospects.metrics
        if found[0].chances.non_inferior >= 0.8:
            return study, found
    raise SystemExit(f"{count} prompts resolve no margin up to {MARGINS[-1]} pp")


def decided(study, folder):
    """Rows of `paired.csv`."""
    qv.run(study, folder / "bundle", cache=False)
    with (folder / "bundle" / "paired.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["outcome"]]


def run(folder, shares, count):
    """What the plan said and the rows of the verdict, of the copy first and then from little noise to much."""
    noisy = {f"noise-{share:g}": share for share in shares}
    study, promised = planned(folder, ["copy", *noisy], count)
    original, other = level("FP16"), folder / "other.gguf"
    record(original, "FP16", folder)
    shutil.copyfile(original, other)
    record(other, "copy", folder)
    for quant, share in noisy.items():
        add_noise(original, other, share)
        record(other, quant, folder)
    rows = {row["quant"]: row for row in decided(study, folder)}
    return promised, [rows[quant] for quant in ("copy", *noisy)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--noise", default="0.02,0.05,0.1,0.2,0.4")
    parser.add_argument("--prompts", type=int, default=240)
    given, start = parser.parse_args(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        promised, rows = run(Path(name), [float(text) for text in given.noise.split(",")], given.prompts)
    for one in promised:
        print(f"plan: {one.n} prompts, margin {one.margin_pp:g} pp, true loss {one.true_loss_pp:g} pp: {one.chances}")
    print("| build | pairs | lost | gained | difference pp | p non_inferior | p inferior | outcome |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in rows:
        chances = " | ".join(f"{float(row[name]):.2g}" for name in ("p_noninferior", "p_inferior"))
        print(f"| {row['quant']} | {row['n_pairs']} | {row['lost']} | {row['gained']} | {float(row['delta_pp']):.1f} "
              f"| {chances} | {row['outcome']} |")  # fmt: skip
    print(f"{time.perf_counter() - start:.0f} s")
    return verdicts_hold(rows)


def verdicts_hold(rows):
    """Whether the copy, the first of the rows, is non-inferior, and noise inferior from some step on."""
    copied, *noisy = [row["outcome"] for row in rows]
    failed = [outcome == "inferior" for outcome in noisy]
    return copied == "non_inferior" and any(failed) and failed == sorted(failed)


if __name__ == "__main__":
    sys.exit(not main())
