"""A third-party package of one of each thing: installed, used to a verdict, and its bundle read without it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
SRC = Path(__file__).parents[1] / "src"
CLI = "import sys; from quantverdict.cli import execute; sys.exit(execute(sys.argv[1:]))"
JUDGED = """
import sys
from quantverdict.cli import execute
from quantverdict.records import Completion
from quantverdict.stages import judge
class Polite:
    identity = {"engine": "fake"}
    def choose(self, prompts):
        rude = ["You should know" in one.text[one.text.index(" ANSWER"):] for one in prompts]
        assert all("label whether an answer is polite" in one.text for one in prompts)
        return [Completion("RUDE" if it else "POLITE", "stop", 1, 1) for it in rude]
    def close(self): pass
judge.open_judge_model = lambda *_: judge.LoadedJudge(Polite(), Polite.identity)
sys.exit(execute(sys.argv[1:]))
"""
STUDY = """\
study: plugged
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q2_K]}]
collect: {backend: csv_replay, replay_dir: recorded}
tasks: [capitals_as_json, {path: more.yaml}]
judges: [{name: one, model: a model, source: {path: judge.gguf}}]
policy:
  {base: quantverdict, quality_metric: json_validity, required: [json_validity], margins: {json_validity: default}}
"""
ITEMS = [f"i{at:03d}" for at in range(300)]


def install(folder: Path, source: Path, name: str, version: str, entry: str) -> Path:
    """A package as pip leaves it: its modules, and a dist-info that says its entry point."""
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[quantverdict.plugins]\nit = {entry}\n")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["quantverdict.plugins"].values()
    folder = tmp_path_factory.mktemp("site")
    return install(folder, PLUGIN / "quantverdict_example", project["name"], project["version"], entry)


def start(cwd, *args, site=None, code=CLI):
    """The command line in a process of its own, with a folder of packages or none."""
    path = os.pathsep.join(str(one) for one in (SRC, site) if one is not None)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def write_study(folder):
    (folder / "recorded").mkdir()
    for quant, broken in (("FP16", 9), ("Q8_0", 9), ("Q2_K", 150)):
        with (folder / "recorded" / f"tiny__{quant}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("task", "sample_id", "text"))
            writer.writerows([("capitals_as_json", name, '{"capital": "it"}') for name in ("fr", "de")])
            for at, name in enumerate(ITEMS):
                writer.writerow(("more", name, "You should know it." if at < broken else '{"capital": "it"}'))
    items = [{"id": name, "what": f"Item {name}"} for name in ITEMS]
    more = {"name": "more", "task_type": "json_answer", "prompt_template": "{{ what }}", "samples": items}
    (folder / "more.yaml").write_text(json.dumps(more))
    (folder / "judge.gguf").touch()
    (folder / "study.yaml").write_text(STUDY)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, site):
    folder = tmp_path_factory.mktemp("ran")
    write_study(folder)
    done = start(folder, "run", "study.yaml", "--out", "b", site=site, code=JUDGED)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_package_is_short():
    files = [path for path in PLUGIN.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(len(path.read_text().splitlines()) for path in files) < 120


def test_a_run_by_a_plugin_comes_to_a_verdict(ran):
    decision = json.loads((ran / "b" / "decision.json").read_text())
    cells = {cell["quant"]: cell for cell in decision["cells"]}
    outcomes = {
        quant: {one["metric"]: one["outcome"] for one in cells[quant]["outcomes"]} for quant in ("Q8_0", "Q2_K")
    }
    assert outcomes["Q8_0"]["json_validity"] == "non_inferior"
    assert outcomes["Q2_K"]["json_validity"] == "inferior"
    rows = {row["quant"]: row for row in csv.DictReader((ran / "b" / "matrix.csv").read_text().splitlines())}
    assert rows["FP16"]["json_validity_k"] == "293"
    assert rows["FP16"]["json_validity_n"] == "302"
    assert rows["Q2_K"]["judge_politeness_k"] == "152"
    assert "valid JSON" in (ran / "b" / "report.md").read_text()


def test_the_manifest_holds_what_the_bundle_names_of_the_plugin(ran):
    manifest = json.loads((ran / "b" / "manifest.json").read_text())
    assert manifest["plugin_packages"] == {"quantverdict-example": "1.0"}
    parts = manifest["plugins"]
    named = {kind: [one["name"] for one in ones] for kind, ones in parts.items()}
    assert named == {
        "metrics": ["json_validity", "judge_politeness"], "scorers": ["json"], "task_types": ["json_answer"],
        "rubrics": ["politeness"], "backends": ["csv_replay"],
    }  # fmt: skip
    assert "You label whether an answer is polite." in parts["rubrics"][0]["text"]


def test_a_bundle_reads_reports_decides_and_verifies_without_the_plugin(ran, tmp_path):
    shutil.copytree(ran / "b", tmp_path / "b")
    before = {name: (tmp_path / "b" / name).read_bytes() for name in ("decision.json", "matrix.csv", "report.md")}
    for args in (("verify", "b"), ("report", "b"), ("analyze", "b"), ("verify", "b"), ("diff", "b", ran / "b")):
        done = start(tmp_path, *args)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
    assert {name: (tmp_path / "b" / name).read_bytes() for name in before} == before
    done = start(tmp_path, "gate", "b", "--build", "tiny/Q2_K")
    assert done.returncode == 3, done.stderr


def test_a_run_again_goes_on_from_the_bundle(ran, tmp_path, site):
    shutil.copytree(ran, tmp_path / "again")
    done = start(tmp_path / "again", "run", "study.yaml", "--out", "b", site=site, code=JUDGED)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "b" / "decision.json").read_bytes() == (ran / "b" / "decision.json").read_bytes()


def test_a_gate_asks_by_the_plugins_rule(ran, tmp_path, site):
    (tmp_path / "gate.yaml").write_text("builds: [tiny/Q8_0]\nchecks: {max_build_gb: {gb: 4}}\n")
    done = start(tmp_path, "gate", ran / "b", "--policy", "gate.yaml", site=site)
    assert done.returncode == 4, done.stderr
    assert "the size of the build is not known" in done.stdout
    done = start(tmp_path, "gate", ran / "b", "--policy", "gate.yaml")
    assert done.returncode == 2
    assert "max_build_gb" in done.stderr


def test_samples_are_read_by_the_plugins_importer(tmp_path, site):
    lines = ["model;quant;id;value"]
    for quant, wrong in (("FP16", 5), ("Q4", 60)):
        lines += [f"m;{quant};i{at};{int(at >= wrong)}" for at in range(200)]
    data = "\n".join(lines) + "\n"
    (tmp_path / "scores.ssv").write_text(data)
    digest = subprocess.run(
        [sys.executable, "-c", "import hashlib,sys;print(hashlib.sha256(open(sys.argv[1],'rb').read()).hexdigest())",
         tmp_path / "scores.ssv"], capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (tmp_path / "sources.yaml").write_text(f"""\
study: imported
models: [{{name: m, family: M, baseline: FP16, quants: {{FP16: 16, Q4: 4}}}}]
sources:
  - label: scores
    role: quality
    path: scores.ssv
    sha256: {digest}
    columns: {{base_model: model, quant: quant, sample_id: id}}
    fixed: {{task: capitals}}
    measures: [{{metric: json_validity, column: value}}]
policy: {{base: quantverdict, quality_metric: json_validity, required: [json_validity]}}
""")
    done = start(tmp_path, "ingest", "sources.yaml", "--out", "b", site=site)
    assert done.returncode == 0, done.stderr
    rows = {row["quant"]: row for row in csv.DictReader((tmp_path / "b" / "matrix.csv").read_text().splitlines())}
    assert (rows["Q4"]["json_validity_k"], rows["Q4"]["json_validity_n"]) == ("140", "200")
    assert start(tmp_path, "verify", "b").returncode == 0


def spy(folder, body):
    """A plugin whose import leaves a mark."""
    package = folder / "source" / "spy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"from pathlib import Path\nPath({str(folder / 'mark')!r}).touch()\n{body}")
    (folder / "site").mkdir()
    install(folder / "site", package, "spy-package", "0.3", "spy")
    return folder / "site"


def test_no_plugin_is_loaded_by_what_needs_none(ran, tmp_path):
    site, mark = spy(tmp_path, ""), tmp_path / "mark"
    for args in (("--help",), ("verify", ran / "b"), ("tasks", "list"), ("inspect", ran / "judge.gguf")):
        start(tmp_path, *args, site=site)
        assert not mark.exists(), args
    start(tmp_path, site=site, code="import quantverdict, quantverdict.registry, quantverdict.config")
    assert not mark.exists()
    shutil.copytree(ran / "b", tmp_path / "b")
    study = (tmp_path / "b" / "study.yaml").read_text()
    (tmp_path / "b" / "study.yaml").write_text(study.replace("csv_replay", "other_replay"))
    done = start(tmp_path, "verify", "b", site=site)
    assert done.returncode != 0
    assert not mark.exists()
    (tmp_path / "study.yaml").write_text(STUDY.replace("csv_replay", "other_replay"))
    assert start(tmp_path, "run", "study.yaml", site=site).returncode == 2
    assert mark.exists()


BROKEN = {
    "raise RuntimeError('no luck')": r"the plugin it of spy-package cannot be loaded \(RuntimeError: no luck\)",
    "import not_there_at_all": r"the plugin it of spy-package cannot be loaded \(ModuleNotFoundError: ",
    "from quantverdict import registry as r, records as s\n"
    "r.register_backend(s.BackendSpec('replay', 'spy:X'))": "spy-package: cannot register backend replay: quantverdict "
    "has it already",
}


@pytest.mark.parametrize("body", BROKEN)
def test_a_plugin_that_fails_is_one_line_that_names_its_package(tmp_path, body):
    write_study(tmp_path)
    done = start(tmp_path, "run", "study.yaml", site=spy(tmp_path, body))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1

    assert re.search(BROKEN[body], done.stderr), done.stderr


def test_a_misspelt_name_is_told_with_the_nearest_of_a_plugin(tmp_path, site):
    write_study(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY.replace("csv_replay", "csv_repaly"))
    done = start(tmp_path, "run", "study.yaml", site=site)
    assert done.returncode == 2
    assert "did you mean csv_replay?" in done.stderr
