"""Builds on a Ray cluster of three nodes of one CPU on this machine: nodes killed, overhead of a batch, makespan.

    python benchmarks/scale.py [--prompts 1200] [--batch 2] [--seconds 0.2] [--kills 0] [--pause 30]

Two builds that answer a batch in a fixed time are asked by a local run and on the cluster. With `--kills`, a node is
killed at a random moment (every `--pause` seconds on average) and another one started. Printed as JSON: whether the
answers have the same bytes, what was asked again, seconds a batch that are not the build's, and how long the schedule
of the measured times takes by itself beside what the run took. Needs the extra ray.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

from quantverdict.backends.base import Decoding
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import PromptPlan, plan_batches
from quantverdict.bundle.store import CellStore
from quantverdict.collect.executor import BuildRequest, Executor, Resources
from quantverdict.collect.ray_executor import RayExecutor
from quantverdict.collect.schedule import CellJob, run_cells
from quantverdict.config import Study
from quantverdict.records import CellId, Completion, Prompt

CELLS = [CellId("tiny", quant) for quant in ("FP16", "Q8_0")]
MODEL = {"name": "tiny", "family": "f", "baseline": "FP16", "source": {"path": "m.gguf"}, "variants": ["FP16", "Q8_0"]}
STUDY = Study.model_validate({"study": "scale", "models": [MODEL], "tasks": ["starter_qa"]})


class Echo:
    """Answers that follow from the prompts, in a fixed time."""

    def __init__(self, seconds: float, **_: Any) -> None:
        self.seconds, self.identity = seconds, {"engine": "echo"}

    def complete(self, prompts: Any, *_: Any) -> list[Completion]:
        time.sleep(self.seconds)
        return [Completion(f"to {one.text}", "stop", 1, 1, one.sha256[:8]) for one in prompts]

    def close(self) -> None:
        pass


class Quiet:
    """A view that shows nothing."""

    def start_cell(self, *_: Any) -> None: ...

    def advance(self, *_: Any) -> None: ...

    def finish_cell(self, *_: Any) -> None: ...

    def beside(self) -> Quiet:
        return self


def ask(
    folder: Path, plan: PromptPlan, seconds: float, executor: Executor | None, lines: list[tuple[float, str]]
) -> None:
    def say(line: str) -> None:
        lines.append((time.perf_counter(), line))

    make = partial(Echo, seconds)
    jobs = [CellJob(cell, plan, make, build=BuildRequest(cell, make, Resources(1))) for cell in CELLS]  # type: ignore[arg-type]
    with Bundle.open(folder, STUDY) as bundle:
        failed = [one.failure for one in run_cells(bundle, jobs, Quiet(), executor=executor, say=say) if one.failure]
    assert not failed, failed


def schedule(times: list[float], ready: list[float]) -> float:
    """When the last of these batches ends: each goes to the replica that is free first, none before it is loaded."""
    free = list(ready)
    heapq.heapify(free)
    for seconds in times:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default in (
        ("prompts", int, 1200), ("batch", int, 2), ("seconds", float, 0.2), ("kills", int, 0), ("pause", float, 30.0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    asked = parser.parse_args()
    prompts = tuple(Prompt("t", f"s{n}", f"q{n}", None, f"{n:064}", ()) for n in range(asked.prompts))
    plan = PromptPlan(prompts, plan_batches(prompts, asked.batch), {"t": Decoding(8)})
    root = Path(tempfile.mkdtemp(prefix="scale-"))
    ask(root / "local", plan, 0.0, None, [])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    live = [cluster.add_node(num_cpus=1) for _ in range(3)]
    executor = RayExecutor(cluster.address)
    lines: list[tuple[float, str]] = []
    start = time.perf_counter()
    work = threading.Thread(target=ask, args=(root / "ray", plan, asked.seconds, executor, lines))
    work.start()
    draw, kills = random.Random(7), 0
    while kills < asked.kills and work.is_alive():
        time.sleep(draw.random() * 2 * asked.pause)
        gone = live.pop(draw.randrange(len(live)))
        cluster.remove_node(gone, allow_graceful=False)
        kills += 1
        live.append(cluster.add_node(num_cpus=1))
    work.join()
    end = time.perf_counter()
    executor.close()
    cluster.shutdown()
    answers = [
        {path.name: path.read_bytes() for path in (root / name / "responses").iterdir()} for name in ("local", "ray")
    ]
    times = [timing.wall_s for cell in CELLS for timing in CellStore(root / "ray", cell, plan).timings]
    loaded = [at - start for at, line in lines if "loaded on" in line]
    alone = schedule(times, loaded) if loaded and not kills else None
    ran = end - start
    over = None if alone is None else round(1000 * (ran - alone) * min(3, len(loaded)) / len(times), 2)
    print(json.dumps({
        "kills": kills, "same_bytes": answers[0] == answers[1], "batches": len(times),
        "batches_asked_again": sum("batch" in line and "asked again" in line for _, line in lines),
        "replicas_lost_while_loading": sum("being loaded" in line for _, line in lines),
        "loads": len(loaded), "first_loaded_s": round(min(loaded), 2), "ran_s": round(ran, 2),
        "schedule_of_measured_times_s": None if alone is None else round(alone, 2),
        "overhead_ms_a_batch": over,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
