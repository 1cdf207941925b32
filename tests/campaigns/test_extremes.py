"""Every number of every file that a user writes, at every extreme: one line, or it works; and soon.

The keys are found by walking the models, so that a new one is tried as well.
"""

import copy
import importlib.util
import itertools
import math
import sys
import types
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from quantverdict.bundle.sources import Sources, read_sources
from quantverdict.config import Study, load_study
from quantverdict.errors import QuantverdictError
from quantverdict.policy import Policy, load_policy
from quantverdict.protocol.gate import GatePolicy
from quantverdict.stages.gate import load_gate

if "fuzzing" not in sys.modules:
    SPEC = importlib.util.spec_from_file_location("fuzzing", Path(__file__).with_name("fuzzing.py"))
    sys.modules["fuzzing"] = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(sys.modules["fuzzing"])
fuzzing = sys.modules["fuzzing"]

EXTREMES = (
    0, -1, 1, 2, 1e308, -1e308, 1e-300, 0.9999999999999999, math.nan, math.inf, -math.inf, 10**9, 2**31, 2**63, 10**30, -(10**30), True, "1", "1/3",
    None, [], "1e999",
)  # fmt: skip
KEYS = {"margins": "refusal_rate", "floors": "refusal_rate", "quants": "FP16", "values": "Q8_0"}
"""A right key of each mapping to numbers."""
SECONDS = 30
"""Of processor time that a command may take; over little data each takes one or two."""


def kinds(annotation, step=()):
    """The types in an annotation, each with the way into it: 0 into a sequence, `*` into a mapping."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from kinds(arguments[0], step)
    elif origin in (Union, types.UnionType):
        for one in arguments:
            yield from kinds(one, step)
    elif origin in (tuple, list):
        yield from kinds(arguments[0], (*step, 0))
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        yield from kinds(arguments[1], (*step, "*"))
    else:
        yield annotation, step


def numbers(model, path=()):
    """The path of every numeric key of a model."""
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        for kind, step in kinds(field.annotation):
            here = (*path, name, *(KEYS.get(name, "*") if part == "*" else part for part in step))
            if kind in (int, float, Fraction):
                # The inner mapping of `values` is of metrics.
                yield tuple(
                    "tokens_per_second" if at == len(here) - 1 and name == "values" else part
                    for at, part in enumerate(here)
                )
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, here)


def with_value(document, path, value):
    """The document with a value at a path; what is missing on the way is taken from the full one."""
    document = copy.deepcopy(document)
    at, full = document, fuzzing.FULL_STUDY
    for part, following in itertools.pairwise(path):
        full = step_into(full, part)
        if isinstance(at, list):
            if isinstance(at[part], str):
                at[part] = {"task" if "tasks" in path else "quant": at[part]}
            at = at[part]
            continue
        if at.get(part) is None or isinstance(at[part], str):
            at[part] = copy.deepcopy(full) if isinstance(full, dict | list) else ([{}] if following == 0 else {})
        at = at[part]
    at[path[-1]] = value
    return document


def step_into(full, part):
    try:
        return full[part]
    except (KeyError, IndexError, TypeError):
        return None


READ = {
    "study": (Study, load_study, fuzzing.FULL_STUDY),
    "sources": (Sources, read_sources, fuzzing.SOURCES),
    "gate": (GatePolicy, lambda path: load_gate(str(path)), {}),
    "policy": (Policy, lambda path: load_policy(str(path)), {"base": "quantverdict"}),
}


@pytest.mark.parametrize("kind", READ)
def test_every_number_is_read_or_refused_in_one_line(kind, tmp_path, figures):
    model, read, document = READ[kind]
    paths = sorted(set(numbers(model)), key=str)
    assert paths, "the walk finds the numbers of a model"
    bad, refused = [], 0
    for path in paths:
        for value in EXTREMES:
            file = tmp_path / f"{kind}.yaml"
            file.write_text(yaml.safe_dump(with_value(document, path, value)))
            try:
                read(file)
            except QuantverdictError as error:
                refused += 1
                if not str(error).strip() or "\n" in str(error).strip() or len(str(error)) > 2000:
                    bad.append(f"{path} = {value!r}: says {str(error)[:200]!r}")
            except Exception as error:  # noqa: BLE001 - the finding
                bad.append(f"{path} = {value!r}: {type(error).__name__}: {error}")
    n = len(paths) * len(EXTREMES)
    figures(
        f"extremes read, {kind}: {len(paths)} numbers, {n} values, {refused} refused in one line, {len(bad)} failed"
    )
    assert not bad, "\n".join(bad)


COMMANDS = {
    "run": (["run", "study.yaml", "--out", "new"], Study, "study.yaml"),
    "run with rounds": (["run", "sequential.yaml", "--out", "new"], Study, "sequential.yaml"),
    "plan": (["plan", "study.yaml", "--no-measure"], Study, "study.yaml"),
    "ingest": (["ingest", "sources.yaml", "--out", "new"], Sources, "sources.yaml"),
    "gate": (["gate", "b", "--policy", "gate.yaml"], GatePolicy, "gate.yaml"),
    "analyze": (["analyze", "b", "--policy", "other.yaml"], Policy, "other.yaml"),
}
ELSEWHERE = ("semantic", "quantize", "judges", "checkpoint", "source")
"""What a study over recorded answers does not run."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_runs_or_is_refused_in_one_line(command, finished, fresh, warm, wrong, draw, rounds, figures):
    args, model, name = COMMANDS[command]
    paths = [path for path in sorted(set(numbers(model)), key=str) if not set(ELSEWHERE) & set(path)]
    cases = [(path, value) for path in paths for value in EXTREMES]
    cases = draw.sample(cases, min(len(cases), rounds(3, 10_000)))
    bad, refused = [], 0
    here = fresh(finished)
    document = yaml.safe_load((here / name).read_text())
    for path, value in cases:
        here = fresh(finished)
        (here / name).write_text(yaml.safe_dump(with_value(document, path, value)))
        result = warm(args, here, cpu=SECONDS, limit=900)
        refused += result["code"] == 2
        if told := wrong(result):
            bad.append(f"{'.'.join(map(str, path))} = {value!r}: {told}")
    figures(
        f"extremes in {command}: {len(paths)} numbers, {len(cases)} values, {refused} refused in one line, {len(bad)} failed"
    )
    assert not bad, "\n".join(bad)
