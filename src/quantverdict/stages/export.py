"""A finished bundle in the formats of others: Parquet tables, an MLflow store, Every Eval Ever.

Nothing is computed, and the bundle is not changed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantverdict.bundle.files import saving
from quantverdict.bundle.integrity import read_manifest
from quantverdict.errors import BundleError, DataError, QuantverdictError, one_of
from quantverdict.records import CellId, Metric, Row
from quantverdict.registry import METRICS
from quantverdict.stages.facts import stored_matrix, stored_prompts, stored_responses
from quantverdict.stages.verify import DryRunBundle
from quantverdict.stages.view import BundleView

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = "0.3.0"
"""Of Every Eval Ever."""
SAMPLES = ("scores.parquet", "judgements.parquet", "other_judgements.parquet", "answers.parquet")
"""Artefacts that are Parquet already."""


def export(path: Path, to: str, out: Path) -> list[Path]:
    """Write a finished bundle in another format.

    Args:
        to: one of `FORMATS`.
        out: the folder to write; for `mlflow` a store is kept in it, to which further exports add.

    Returns:
        The files, or the store.

    Raises:
        BundleError: the bundle is not finished, or `out` cannot be written.
        DataError: no such format.
        QuantverdictError: MLflow's client is not installed.
    """
    if to not in FORMATS:
        raise DataError(f"no format {to!r:.60}", field="to", expected=one_of(to, FORMATS))
    bundle = BundleView(path)
    if not bundle.finished:
        raise BundleError(f"{path}: the run is unfinished; run the same command again to finish it")
    DryRunBundle(path).config  # noqa: B018 - the metrics that it brings along are known from here on
    with saving(out):
        out.mkdir(parents=True, exist_ok=True)
        return FORMATS[to](bundle, out)


def to_parquet(bundle: BundleView, out: Path) -> list[Path]:
    """Every table and every sample, a file each."""
    found = []
    for name in bundle.tables:
        found.append(out / f"{name}.parquet")
        bundle.table(name).write_parquet(found[-1])
    for name in SAMPLES:
        if (bundle.path / name).is_file() and (out / name) not in found:
            found.append(out / name)
            found[-1].write_bytes((bundle.path / name).read_bytes())
    return found


# Every Eval Ever: a document a build, and an instance a sample and metric where the bundle has answers


def to_every_eval_ever(bundle: BundleView, out: Path) -> list[Path]:
    """A document a build with every metric of a direction; with answers its instances beside it."""
    reader, found = DryRunBundle(bundle.path), []
    manifest = read_manifest(bundle.path)
    begun = str(int(datetime.fromisoformat(manifest["run"]["finished"]).timestamp()))
    scores = bundle.scores if (bundle.path / "scores.parquet").is_file() else None
    for row in stored_matrix(reader):
        name = f"{row.base_model}__{row.quant}"
        document = _document(bundle, row, begun)
        found.append(out / f"{name}.json")
        found[-1].write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        instances = [] if scores is None else list(_instances(reader, row.cell, document, scores))
        if instances:
            found.append(out / f"{name}_samples.jsonl")
            lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in instances)
            found[-1].write_text("".join(lines), encoding="utf-8")
    return found


def _document(bundle: BundleView, row: Row, begun: str) -> dict[str, Any]:
    decided = bundle.decision.get(str(row.cell))
    decision = {"action": decided.action, "reason": decided.reason} if decided is not None else {}
    details = {
        "deployment_type": "self_deployed", "model_availability": "unknown", "base_model": row.base_model,
        "quant": row.quant, "is_baseline": str(row.is_baseline).lower(), **decision,
    }  # fmt: skip
    if row.bpw is not None:
        details["bits_per_weight"] = f"{float(row.bpw):g}"
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{bundle.path.resolve().name}/{row.base_model}/{row.quant}/{begun}",
        "retrieved_timestamp": begun,
        "source_metadata": {
            "source_type": "evaluation_run", "source_organization_name": "unknown", "evaluator_relationship": "other",
        },
        "model_info": {"name": str(row.cell), "id": str(row.cell), "additional_details": details},
        "eval_library": {"name": "quantverdict", "version": version("quantverdict")},
        "evaluation_results": list(_results(bundle, row)),
    }  # fmt: skip


def _results(bundle: BundleView, row: Row) -> Iterator[dict[str, Any]]:
    for name, estimate in row.metrics.items():
        metric = METRICS[name]
        if metric.higher_is_better is None:
            continue
        score: dict[str, Any] = {"score": float(estimate.value)}
        uncertainty: dict[str, Any] = {} if estimate.n is None else {"num_samples": estimate.n}
        if estimate.lo is not None and estimate.hi is not None and math.isfinite(estimate.lo + estimate.hi):
            kind = {"lower": estimate.lo, "upper": estimate.hi, "confidence_level": 0.95, "method": metric.interval}
            uncertainty["confidence_interval"] = kind
        yield {
            "evaluation_name": name,
            "source_data": {"dataset_name": bundle.path.resolve().name, "source_type": "other"},
            "metric_config": _metric(metric),
            "score_details": score | ({"uncertainty": uncertainty} if uncertainty else {}),
        }


def _metric(metric: Metric) -> dict[str, Any]:
    config: dict[str, Any] = {
        "metric_id": metric.name, "evaluation_description": metric.meaning,
        "metric_unit": "proportion" if metric.is_share else metric.unit,
        "lower_is_better": not metric.higher_is_better,
    }  # fmt: skip
    if metric.is_share:
        config |= {"score_type": "continuous", "min_score": metric.lowest, "max_score": 1}
    return config


def _instances(
    reader: DryRunBundle, cell: CellId, document: Mapping[str, Any], scores: pl.DataFrame
) -> Iterator[dict[str, Any]]:
    """An instance a graded sample and metric of a build whose answers are stored."""
    import polars as pl

    if not reader.path(f"prompts/{cell.base_model}.jsonl").is_file():
        return
    prompts = {(one.task, one.sample_id): one for one in stored_prompts(reader, cell.base_model)}
    answers = {(one.task, one.sample_id): one for one in stored_responses(reader, cell)}
    own = scores.filter((pl.col("base_model") == cell.base_model) & (pl.col("quant") == cell.quant))
    for task, sample, name, value in own.select("task", "sample_id", "metric", "value").iter_rows():
        answer, prompt = answers.get((task, sample)), prompts.get((task, sample))
        higher = METRICS[name].higher_is_better
        if answer is None or prompt is None or value is None or higher is None:
            continue
        yield {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": document["evaluation_id"],
            "model_id": str(cell),
            "evaluation_name": name,
            "sample_id": f"{task}/{sample}",
            "sample_hash": hashlib.sha256(prompt.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": prompt.text, "formatted": prompt.chat, "reference": [],
                      "choices": list(prompt.choices) or None},
            "output": {"raw": [answer.text]},
            "answer_attribution": [{"turn_idx": 0, "source": "output.raw", "extracted_value": answer.text,
                                    "extraction_method": "none", "is_terminal": True}],
            "evaluation": {"score": value, "is_correct": value == (1 if higher else 0)},
        }  # fmt: skip


# MLflow: a run a build, in a store of SQLite


def to_mlflow(bundle: BundleView, out: Path) -> list[Path]:
    """A run a build: metrics with their deltas, what the build is as parameters, the decision as tags."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        client_of = importlib.import_module("mlflow").MlflowClient
        importlib.import_module("sqlalchemy")
        importlib.import_module("alembic")
    except ImportError as error:
        raise QuantverdictError("MLflow's client is not installed; pip install 'quantverdict[mlflow]'") from error
    for name in ("mlflow", "alembic"):  # what they say of their tables is nobody's result
        logging.getLogger(name).setLevel(logging.WARNING)
    store = out / "mlflow.db"
    client = client_of(f"sqlite:///{store.resolve()}")
    name = bundle.path.resolve().name
    known = client.get_experiment_by_name(name)
    place = (out / "artifacts").resolve().as_uri()
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=place)
    deltas = _deltas(bundle)
    for row in stored_matrix(DryRunBundle(bundle.path)):
        decided = bundle.decision.get(str(row.cell))
        tags = {"base_model": row.base_model, "quant": row.quant, "is_baseline": str(row.is_baseline).lower()}
        tags |= {} if decided is None else {"action": decided.action, "reason": decided.reason[:5000]}
        run = client.create_run(experiment, tags=tags, run_name=str(row.cell)).info.run_id
        if row.bpw is not None:
            client.log_param(run, "bits_per_weight", float(row.bpw))
        for metric, estimate in row.metrics.items():
            client.log_metric(run, _key(metric), float(estimate.value))
        for metric, delta in deltas.get(str(row.cell), {}).items():
            client.log_metric(run, f"{_key(metric)}_delta", delta)
        client.set_terminated(run)
    return [store]


def _key(metric: str) -> str:
    """A name as MLflow allows it: letters, digits and `_ - . / : space`."""
    return "".join(one if one.isalnum() or one in "_-./: " else "_" for one in metric)


def _deltas(bundle: BundleView) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    if "deltas" in bundle.tables:
        for row in bundle.deltas.iter_rows(named=True):
            if row["delta"] is not None:
                found.setdefault(f"{row['base_model']}/{row['quant']}", {})[row["metric"]] = float(row["delta"])
    return found


FORMATS: Mapping[str, Callable[[BundleView, Path], list[Path]]] = {
    "parquet": to_parquet,
    "mlflow": to_mlflow,
    "every-eval-ever": to_every_eval_ever,
}
"""By the name that `--to` has."""
