"""A bundle through a gate: decided again where the gate has margins of its own, and never changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

from quantverdict.bundle.files import saving, sha256_of, write_whole
from quantverdict.bundle.integrity import known_entries
from quantverdict.bundle.manifest import RENDERED, Bundle, is_made
from quantverdict.config import Study
from quantverdict.errors import BundleError, StudyError
from quantverdict.policy import POLICIES
from quantverdict.protocol.document import check_schema
from quantverdict.protocol.gate import Gate, GatePolicy, gate
from quantverdict.registry.listing import one_of
from quantverdict.stages.decide import decide, decided_policy, samples_of
from quantverdict.stages.facts import artefacts_of, rate_judges, stored_matrix
from quantverdict.stages.verify import DryRunBundle
from quantverdict.yaml_file import load_yaml

READ = ("decision.json", "matrix.csv", "scores.parquet", "judgements.parquet")
"""What a gate rests on; one with rules of its own rests on all that a decision is made from."""


def load_gate(name_or_file: str | None, build: str | None = None) -> GatePolicy:
    """A gate's policy: from a YAML file, or a policy by its name; the one that asks for nothing more where not given.

    Args:
        name_or_file: a YAML file of `GatePolicy`, or one of the policies of a decision.
        build: BASE/QUANT, in place of the builds that it names.

    Raises:
        StudyError: with file, line and key.
    """
    if name_or_file is None:
        asked = GatePolicy()
    elif name_or_file in POLICIES:
        asked = GatePolicy(policy=POLICIES[name_or_file])
    else:
        asked = load_yaml(Path(name_or_file), GatePolicy)
    return asked if build is None else asked.model_copy(update={"builds": (build,)})


def check_policy_names(asked: GatePolicy, study: Study) -> None:
    """Refuse, before anything runs, a gate that asks about builds that the study has not.

    Raises:
        StudyError: naming the first.
    """
    cells = [f"{model.name}/{variant.quant}" for model in study.models for variant in model.variants]
    named = [("builds", name) for name in asked.builds or ()] + [("waivers", one.cell) for one in asked.waivers]
    for where, name in named:
        if name not in cells:
            raise StudyError(f"no build {name}", field=where, expected=one_of(name, cells))
    asked.rules(study.policy)


def gate_bundle(root: Path, asked: GatePolicy, today: date) -> Gate:
    """The gate over a finished bundle.

    Raises:
        StudyError: the gate's policy does not fit the bundle.
        BundleError: the bundle is not finished, or was changed since.
    """
    bundle = DryRunBundle(root)
    require_sealed(bundle, READ)
    document = bundle.read_json("decision.json")
    decided_by = decided_policy(bundle)
    rules = asked.rules(decided_by)
    if rules != decided_by:
        bundle.check_meta_equal((*RENDERED, "timings/"))
        decide(bundle, rules, samples_of(bundle))
        document = {**bundle.documents["decision.json"], "study": document["study"]}
    found = gate(document, stored_matrix(bundle), asked, today)
    return replace(found, judges=rate_judges(bundle, artefacts_of(bundle)))


def require_sealed(bundle: Bundle, names: Iterable[str]) -> None:
    """Refuse a bundle without a decision, or with one of another version, or changed since it was finished.

    Raises:
        BundleError: so it is.
    """
    if not bundle.path("decision.json").exists() or bundle.get_meta("run").get("finished") is None:
        raise BundleError(
            f"{bundle.root}: holds no finished decision; the run is unfinished; run the same command again to finish it"
        )
    entries = known_entries({"run": bundle.get_meta("run"), "artefacts": bundle.get_meta("artefacts") or {}})
    for name in names:
        path = bundle.path(name)
        if name not in entries and not path.exists():
            continue
        if not path.is_file() or name not in entries or entries[name]["sha256"] != sha256_of(path):
            remedy = "analyze the bundle again" if is_made(name, entries) else "put it back"
            raise BundleError(f"{path}: changed since the bundle was finished; {remedy}")
    check_schema(bundle.read_json("decision.json"), bundle.path("decision.json"))


def write_reports(found: Gate, junit: Path | None, summary: Path | None, inconclusive: str = "skipped") -> None:
    """JUnit XML, written anew; and the summary, added to its file as GitHub wants it.

    Args:
        inconclusive: what JUnit counts a verdict as that cannot be told or was not measured: `skipped` or `failure`.

    Raises:
        BundleError: a file cannot be written.
    """
    from quantverdict.reporting.summary import junit_xml, summary_markdown

    if junit is not None:
        write_whole(junit, junit_xml(found, inconclusive).encode())
    if summary is not None:
        with saving(summary):
            summary.parent.mkdir(parents=True, exist_ok=True)
            with summary.open("a", encoding="utf-8") as file:
                file.write(summary_markdown(found))
