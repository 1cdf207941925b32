"""Arms are compared on prompts that both were asked; what was asked in other words, or is missing, is counted."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml

from quantverdict.bundle.manifest import read_manifest
from quantverdict.bundle.sources import read_sources
from quantverdict.cli import execute
from quantverdict.errors import DataError, ExitCode
from quantverdict.ingestion.audit import load_sources
from quantverdict.stages import run as pipeline
from quantverdict.stages.ingest import source_lines

MODELS = [{"name": "m", "family": "f", "baseline": "FP16", "quants": {"FP16": 16, "Q4": 4.5, "Q2": 2.5}}]
MEASURE = {"metric": "choice_accuracy", "column": "right"}
HASHED = {"prompt_hash": "hash"}
TASK = {"task": "t"}


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def log(*samples, **more):
    """Rows of (id, what was asked), all right but the first."""
    return [
        {"id": name, "hash": sha(asked), "right": int(number > 0)} | more
        for number, (name, asked) in enumerate(samples)
    ]


class Logs:
    def __init__(self, folder):
        self.folder, self.sources = folder, []

    def add(self, quant, rows, columns=HASHED, fixed=TASK, **spec):
        path = self.folder / f"{len(self.sources)}.jsonl"
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(data)
        source = {
            "label": path.stem,
            "role": "quality",
            "path": path.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "columns": {"sample_id": "id"} | columns,
            "fixed": {"base_model": "m", "quant": quant} | fixed,
            "measures": [MEASURE],
        }
        self.sources.append(source | spec)
        return self

    @property
    def file(self):
        policy = {"base": "quantverdict", "quality_metric": "choice_accuracy", "required": ["choice_accuracy"]}
        content = {"study": "s", "models": MODELS, "sources": self.sources, "policy": policy}
        (self.folder / "sources.yaml").write_text(yaml.safe_dump(content))
        return self.folder / "sources.yaml"

    def load(self):
        return load_sources(read_sources(self.file))

    def pairing(self):
        (only,) = self.load().pairings
        return only

    def ids(self, quant="Q4"):
        scores = self.load().scores
        return scores.filter(scores["quant"] == quant)["sample_id"].to_list()


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "logs").mkdir()
    return Logs(tmp_path / "logs")


ABC = (("a", "one"), ("b", "two"), ("c", "three"))


def test_the_same_prompts_are_shown_to_be_the_same(logs):
    one = logs.add("FP16", log(*ABC)).add("Q4", log(*ABC)).pairing()
    assert (one.prompts, one.shared, one.shown, one.missing, one.extra, one.other_words, one.moved) == (
        3,
        3,
        3,
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("write", [str.upper, "sha256:{}".format, "SHA-256:{}".format, " {} ".format])
def test_a_hash_is_the_same_however_it_is_written(logs, write):
    other = [row | {"hash": write(row["hash"])} for row in log(*ABC)]
    assert logs.add("FP16", log(*ABC)).add("Q4", other).pairing().shown == 3


def test_the_prompt_itself_may_stand_for_its_hash(logs):
    """Where the column holds the words, capitals are other words."""
    for quant, said in (("FP16", "[Say] hi"), ("Q4", "[SAY] hi")):
        logs.add(quant, [{"id": "a", "hash": said, "right": 1}, {"id": "b", "hash": "{}", "right": 1}])
    assert (logs.pairing().shown, logs.pairing().other_words) == (1, 1)


def test_what_was_asked_in_other_words_is_set_aside_and_counted(logs):
    changed = (("a", "one"), ("b", "TWO"), ("c", "three"))
    logs.add("FP16", log(*ABC)).add("Q4", log(*changed))
    found = logs.load()
    (one,) = found.pairings
    assert (one.shared, one.other_words, one.other_first, one.missing) == (2, 1, ["t/b"], 0)
    assert logs.ids() == ["a", "c"]
    assert (found.audits[1].raw, found.audits[1].loaded) == (3, 2)
    assert found.audits[1].unmatched == {"asked in other words than the baseline's": 1}


def test_another_item_under_the_same_id_is_told_from_other_words(logs):
    columns = {"prompt_hash": "hash", "item_hash": "doc"}
    base = [row | {"doc": row["id"] * 8} for row in log(*ABC)]
    other = [base[0], base[1] | {"doc": "x", "hash": "f" * 64}, base[2] | {"hash": "e" * 64}]
    logs.add("FP16", base, columns).add("Q4", other, columns)
    assert (logs.pairing().other_items, logs.pairing().other_words) == (1, 1)
    assert logs.ids() == ["a"]


def test_an_item_hash_alone_pairs_items_and_shows_no_words(logs):
    columns = {"item_hash": "hash"}
    logs.add("FP16", log(*ABC), columns).add("Q4", log(("b", "one"), ("a", "two"), ("c", "x")), columns)
    one = logs.pairing()
    assert (one.moved, one.other_items, one.shown, one.shared) == (2, 1, 0, 2)
    assert logs.ids() == ["a", "b"]


def test_reordered_ids_are_paired_by_hash(logs):
    """lm-eval numbers documents; with another order or a limit the numbers are other documents'."""
    logs.add("FP16", log(*ABC)).add("Q4", log(("a", "three"), ("b", "one"), ("z", "two")))
    assert logs.ids() == ["c", "a", "b"]
    one = logs.pairing()
    assert (one.moved, one.shared, one.shown, one.extra, one.missing) == (3, 3, 3, 0, 0)


def test_equal_prompts_under_two_ids_are_each_paired_once(logs):
    twice = (("a", "same"), ("b", "same"), ("c", "other"))
    logs.add("FP16", log(*twice)).add("Q4", log(("x", "same"), ("b", "same"), ("y", "same"), ("c", "other")))
    assert logs.ids() == ["a", "b", "y", "c"]
    assert (logs.pairing().moved, logs.pairing().extra) == (1, 1)


def test_scores_of_other_sources_and_judgements_follow_their_sample(logs):
    """A source that names no hashes has its samples' ids from the one that does."""
    own = log(("x", "one"), ("b", "TWO"))
    logs.add("FP16", log(*ABC)).add("Q4", own)
    rouge = [{"metric": "rouge_l", "column": "right"}]
    logs.add("Q4", own, {}, measures=rouge)
    judged = [{"id": row["id"], "label": "COMPLIANCE"} for row in own]
    logs.add("Q4", judged, {"label": "label"}, role="judge", measures=[])
    found = logs.load()
    assert found.judgements["sample_id"].to_list() == ["a"]
    assert logs.ids() == ["a", "a"]
    assert [sum(audit.unmatched.values()) for audit in found.audits] == [0, 1, 1, 1]


def test_a_half_log_is_counted(logs):
    logs.add("FP16", log(*ABC), {}).add("Q4", log(ABC[0], ("new", "x")), {})
    one = logs.pairing()
    assert (one.prompts, one.shared, one.missing, one.missing_first, one.extra) == (3, 1, 2, ["t/b", "t/c"], 1)


def test_a_task_that_a_build_has_none_of_is_missing_too(logs):
    logs.add("FP16", log(*ABC), {}).add("FP16", log(*ABC), {}, {"task": "u"}).add("Q4", log(*ABC), {})
    assert logs.pairing().missing_first == ["u/a", "u/b", "u/c"]


def test_an_ungraded_sample_was_asked(logs):
    rows = [row | {"right": None if row["id"] == "b" else 1} for row in log(*ABC)]
    assert logs.add("FP16", log(*ABC), {}).add("Q4", rows, {}).pairing().missing == 0


def test_a_sample_of_two_hashes_is_refused(logs):
    logs.add("FP16", log(*ABC)).add("FP16", log(("a", "ONE")), measures=[{"metric": "rouge_l", "column": "right"}])
    with pytest.raises(DataError, match=r"sample m/FP16/t/a has two values of prompt_hash; expected one"):
        logs.load()


def test_a_row_without_its_hash_is_broken(logs):
    rows = log(*ABC)
    rows[1]["hash"] = None
    with pytest.raises(DataError, match=r"0\.jsonl:2: hash: missing"):
        logs.add("FP16", rows).load()


def ingested(logs, tmp_path):
    out = tmp_path / "out"
    pipeline.ingest(logs.file, out)
    notes = json.loads((out / "decision.json").read_text())["notes"]
    return out, notes, (out / "taxonomy.csv").read_text()


def test_the_decision_names_other_words_as_a_mismatch_and_compares_the_rest(logs, tmp_path):
    many = [(f"s{number}", f"question {number}") for number in range(40)]
    logs.add("FP16", log(*many)).add("Q4", log(*many[:37], *((name, "else") for name, _ in many[37:])))
    out, notes, taxonomy = ingested(logs, tmp_path)
    told = "m/Q4: 3 of 40 prompts were asked in other words than the baseline's, and are not compared "
    told += "(t/s37, t/s38, t/s39)"
    assert any(note.startswith(told) for note in notes)
    assert told in source_lines(out)
    (row,) = [line for line in taxonomy.splitlines() if line.startswith("TAX_009")]
    assert "m/Q4" in row
    (pair,) = [line for line in (out / "paired.csv").read_text().splitlines() if ",choice_accuracy," in line]
    assert ",37," in pair
    assert not [note for note in notes if "Equal prompts were not shown" in note]


def test_arms_of_which_no_prompt_is_equal_are_not_decided(logs, tmp_path):
    many = [(f"s{number}", f"question {number}") for number in range(200)]
    logs.add("FP16", log(*many)).add("Q4", log(*((name, f"chat: {asked}") for name, asked in many)))
    out, notes, _ = ingested(logs, tmp_path)
    assert any(note.startswith("m/Q4: 200 of 200 prompts were asked in other words") for note in notes)
    assert "choice_accuracy" not in (out / "paired.csv").read_text()
    assert execute(["gate", str(out)]) == ExitCode.NOT_MEASURED


def test_without_hashes_the_bundle_says_what_was_not_shown(logs, tmp_path):
    logs.add("FP16", log(*ABC), {}).add("Q4", log(ABC[0]), {})
    out, notes, _ = ingested(logs, tmp_path)
    assert (
        "Equal prompts were not shown for any build: without a column prompt_hash, samples are paired by their ids."
        in notes
    )
    lacks = "m/Q4 lacks 2 of the 3 prompts of its baseline (t/b, t/c)."
    assert lacks in notes
    assert source_lines(out) == [lacks]
    assert read_manifest(out)["pairings"][0]["missing"] == 2
