"""A model card of a finished bundle: what the hub's client reads, what a publisher keeps, what is not written over."""

import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.errors import BundleError, DataError, QuantverdictError
from quantverdict.reporting.card import BEGIN, END, merged_card
from quantverdict.tasks.catalog import load_task

GOLDEN = Path(__file__).parents[1] / "data" / "card.md"
LOST = {"FP16": 0, "Q6_K": 1, "Q4_K_M": 3, "Q2_K": 150}
BITS = {"FP16": 16.0, "Q6_K": 6.56, "Q4_K_M": 4.85, "Q2_K": 2.96}
STUDY = """\
study: door
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q6_K, Q4_K_M, Q2_K]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [{task: starter_harmful, limit: 200}]
policy: {criteria: {refusal: {demanded: true}}, quality_metric: refusal_rate,
         instruments: {refusal: pattern}}
statistics: {bootstrap_samples: 100}
"""


def of_file(quant, **changed):
    """What a bundle holds of a build's file."""
    known = {
        "path": f"/builds/tiny-{quant}.gguf", "format": "gguf", "sha256": "0" * 64, "weights_sha256": "0" * 64,
        "file_bytes": int(BITS[quant] * 1e8), "n_params": 800_000_000, "bpw": BITS[quant], "bpw_quantized": BITS[quant],
        "tensor_types": {}, "fallbacks": {}, "architecture": "llama", "name": "tiny", "chat_template": None,
        "tokenizer_sha256": "0" * 64, "dequantized_from": None, "special_tokens": {},
    }  # fmt: skip
    return known | changed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of recorded answers, with what a run of files holds besides: files, sizes, distances on a text."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "recorded").mkdir()
    items = load_task("starter_harmful").items
    for quant, lost in LOST.items():
        texts = (
            "Sure, here is how." if at < lost else "I'm sorry, but I can't help with that." for at in range(len(items))
        )
        rows = [{"task": "starter_harmful", "sample_id": item.id, "text": text}
                for item, text in zip(items, texts, strict=True)]  # fmt: skip
        (folder / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "door.yaml").write_text(STUDY)
    root = qv.run(folder / "door.yaml", folder / "bundle", cache=False).path
    artifacts = json.loads((root / "artifacts.json").read_text())
    (root / "artifacts.json").write_text(json.dumps([one | of_file(one["quant"]) for one in artifacts]))
    decision = json.loads((root / "decision.json").read_text())
    for cell in decision["cells"]:
        speed = None if cell["quant"] == "Q2_K" else 400 / BITS[cell["quant"]]
        cell |= {
            "bpw": BITS[cell["quant"]],
            "file_bytes": of_file(cell["quant"])["file_bytes"],
            "tokens_per_second": speed,
        }
    (root / "decision.json").write_text(json.dumps(decision))
    head, *rows = (root / "matrix.csv").read_text().splitlines()
    added = {
        "FP16": ",,,",
        "Q6_K": "0.0042,0.081,0.982,1.0011",
        "Q4_K_M": "0.0313,0.62,0.931,1.012",
        "Q2_K": "0.31,4.1,0.77,1.31",
    }
    lines = [f"{head},text_kl_mean,text_kl_p999,text_same_top,text_ppl_ratio"]
    lines += [f"{row},{added[row.split(',')[3]]}" for row in rows]
    (root / "matrix.csv").write_text("\n".join(lines) + "\n")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["run"]["finished"] = "2026-01-02T03:04:05+00:00"
    manifest["hardware"] |= {"cpu": "a processor", "cores": 2}
    del manifest["provenance_sha256"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture
def bundle(made, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def tables_of(text):
    """Each pipe table as (columns, rows)."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    cells = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()] for table in found]
    return [([one.strip() for one in head], [[one.strip() for one in row] for row in rows]) for head, _, *rows in cells]


def test_the_card_of_a_small_study_is_the_one_kept(made, tmp_path):
    """Every word and figure of it; QUANTVERDICT_GOLDEN=write writes it anew."""
    qv.card(made, tmp_path / "out", base_model="org/tiny", quantized_by="me", repo="me/tiny-GGUF")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    if os.environ.get("QUANTVERDICT_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_client_of_the_hub_reads_the_front_matter(made, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    qv.card(made, tmp_path, base_model="org/tiny", quantized_by="me")
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.base_model_relation, data.quantized_by) == ("org/tiny", "quantized", "me")
    assert data.tags == ["quantized", "quantverdict", "gguf"]


def test_the_client_of_the_hub_reads_the_results_of_each_build(bundle, tmp_path):
    """An entry is of the data set of the hub that its task was made from, at its commit, with figures of the matrix."""
    hub = pytest.importorskip("huggingface_hub")
    record = {"source": "hub:org/harm/default/test", "revision": "a" * 40, "sha256": "0" * 64, "items": 200}
    edit(bundle / "manifest.json", lambda found: found.update(data={"starter_harmful": record}))
    qv.card(bundle, tmp_path / "out", repo="me/tiny-GGUF")
    files = {path.stem: path for path in (tmp_path / "out" / ".eval_results").iterdir()}
    assert set(files) == {f"quantverdict-{quant}" for quant in LOST}
    (entry,) = hub.parse_eval_result_entries(yaml.safe_load(files["quantverdict-Q4_K_M"].read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("org/harm", "starter_harmful", "a" * 40)
    assert entry.value == 99.0
    assert (entry.source_url, entry.date) == ("https://huggingface.co/me/tiny-GGUF", "2026-01-02T03:04:05+00:00")
    assert re.fullmatch(
        r"build Q4_K_M, tiny-Q4_K_M\.gguf, refusal rate by pattern in %, n 200 interval \[.+\]", entry.notes
    )
    written = hub.eval_result_entries_to_yaml([entry])
    assert written == yaml.safe_load(files["quantverdict-Q4_K_M"].read_text())


def test_a_result_of_no_data_set_of_the_hub_is_not_claimed_to_be_of_one(made, tmp_path):
    """Nobody's benchmark is made up; the publisher's own is named by --dataset."""
    written = qv.card(made, tmp_path / "one")
    assert not (tmp_path / "one" / ".eval_results").exists()
    assert any(note.startswith(".eval_results is left out") for note in written.notes)
    qv.card(made, tmp_path / "two", dataset="me/harm")
    (entry,) = yaml.safe_load((tmp_path / "two" / ".eval_results" / "quantverdict-FP16.yaml").read_text())
    assert entry["dataset"] == {"id": "me/harm", "task_id": "starter_harmful"}


def test_every_table_names_the_file_of_each_row_and_links_it(made, tmp_path):
    qv.card(made, tmp_path, repo="me/tiny-GGUF", files={"Q4_K_M": "sub dir/tiny Q4.gguf"})
    tables = tables_of((tmp_path / "README.md").read_text())
    assert len(tables) == 4
    place = "https://huggingface.co/me/tiny-GGUF/blob/main"
    links = {"FP16": f"[tiny-FP16.gguf]({place}/tiny-FP16.gguf)",
             "Q4_K_M": f"[sub dir/tiny Q4.gguf]({place}/sub%20dir/tiny%20Q4.gguf)"}  # fmt: skip
    for columns, rows in tables:
        file, build = columns.index("file"), columns.index("build")
        assert rows
        for row in rows:
            assert row[file] == links.get(row[build], f"[tiny-{row[build]}.gguf]({place}/tiny-{row[build]}.gguf)")


def test_figures_are_those_of_the_bundle(made, tmp_path):
    qv.card(made, tmp_path)
    merged = {}
    for columns, rows in tables_of((tmp_path / "README.md").read_text()):
        for row in rows:
            merged.setdefault(row[columns.index("build")], {}).update(zip(columns, row, strict=True))
    assert merged["Q2_K"]["refusals, lost / gained"] == "99 / 0 of 200"
    assert merged["Q2_K"]["over-refusals, lost / gained"] == "not measured"
    one = merged["Q4_K_M"]
    assert (one["size"], one["bits per weight"], one["tokens/s"]) == ("485 MB", "4.85", "82.5")
    assert (one["KL divergence, mean"], one["KL divergence, 99.9 %"]) == ("0.0313", "0.620")
    assert (one["same top token"], one["perplexity ratio"]) == ("93.10 %", "1.012")
    assert one["refusal, pp (margin 5 pp)"].startswith("−1.00 \\[−")


def test_who_should_take_which_file_goes_by_memory_where_every_file_is_here(bundle, tmp_path):
    """A build is listed from the memory it needs on; one that needs more and has fewer bits is not."""
    gguf = pytest.importorskip("gguf")

    def change(builds):
        for build in builds:
            path = tmp_path / f"tiny-{build['quant']}.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            for key, value in (("block_count", 2), ("embedding_length", 64), ("attention.head_count", 4)):
                writer.add_uint32(f"llama.{key}", value)
            writer.add_string("general.base_model.0.repo_url", "https://huggingface.co/org/tiny")
            writer.add_tensor("token_embd.weight", np.zeros((int(BITS[build["quant"]] * 1000), 64), np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            build["path"] = str(path)

    edit(bundle / "artifacts.json", change)
    qv.card(bundle, tmp_path / "out", context=4096)
    text = (tmp_path / "out" / "README.md").read_text()
    columns, rows = tables_of(text)[0]
    assert columns == ["memory, 4,096 tokens of context", "file", "build", "verdict"]
    assert [row[2:] for row in rows] == [["Q4_K_M", "accepted"], ["Q6_K", "accepted"], ["FP16", "baseline"]]
    needs = [float(row[0].removeprefix("from ").removesuffix(" MB")) for row in rows]
    assert needs == sorted(needs)
    files = dict(
        zip(("file", "build", "verdict"), zip(*[row[:3] for row in tables_of(text)[1][1]], strict=True), strict=True)
    )
    assert files["build"] == tuple(LOST)
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "org/tiny"  # as the files say of themselves


def test_what_was_not_measured_is_said(made, tmp_path):
    qv.card(made, tmp_path)
    part = (tmp_path / "README.md").read_text().split("### Not measured")[1]
    assert re.findall(r"^- (.+)$", part, re.MULTILINE) == [
        "over-refusals prompt by prompt",
        "memory",
        "how many answers change when nothing does: no A/A replicate was run",
    ]


def test_charts_are_well_formed_light_and_dark_and_name_every_build(made, tmp_path):
    written = qv.card(made, tmp_path)
    names = {path.name for path in written.files if path.suffix == ".svg"}
    assert names == {
        f"{chart}-{theme}.svg" for chart in ("intervals", "quality", "divergence") for theme in ("light", "dark")
    }
    for name in names:
        svg = (tmp_path / "quantverdict" / name).read_text(encoding="utf-8")
        root = ET.fromstring(svg)
        text = " ".join(root.itertext())
        wanted = [quant for quant in LOST if quant != "FP16" or "intervals" not in name]
        wanted = [quant for quant in wanted if quant != "FP16" or "divergence" not in name]
        assert all(quant in text for quant in wanted)
        assert not re.search("http|<script", svg.replace("http://www.w3.org/2000/svg", ""))
    assert "#ffffff" in (tmp_path / "quantverdict" / "quality-light.svg").read_text()
    assert "#14171b" in (tmp_path / "quantverdict" / "quality-dark.svg").read_text()


def test_png_is_drawn_by_resvg_and_shown(made, tmp_path):
    pytest.importorskip("resvg_py")
    qv.card(made, tmp_path, png=True)
    assert (tmp_path / "quantverdict" / "intervals-dark.png").read_bytes().startswith(b"\x89PNG")
    assert 'src="quantverdict/intervals-light.png"' in (tmp_path / "README.md").read_text()


def test_png_without_its_text_is_not_drawn(made, tmp_path, monkeypatch):
    """resvg leaves out text that it finds no font for."""
    resvg = pytest.importorskip("resvg_py")
    own = resvg.svg_to_bytes
    monkeypatch.setattr(resvg, "svg_to_bytes", lambda **how: own(**how, skip_system_fonts=True))
    with pytest.raises(QuantverdictError, match="no font is found"):
        qv.card(made, tmp_path / "out", png=True)
    assert not (tmp_path / "out").exists()


def test_png_without_its_extra_writes_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(QuantverdictError, match=r"pip install 'quantverdict\[png\]'"):
        qv.card(made, tmp_path / "out", png=True)
    assert not (tmp_path / "out").exists()


# What is there already

MINE = """\
---
license: apache-2.0  # of the original
tags:
- mine
- gguf
base_model: org/older
---
# My builds

Hello.

{}
The end.
"""


def test_a_card_that_is_there_keeps_every_line_that_is_not_ours(made, tmp_path):
    """Keys are replaced where they stand, tags are added to, the section stands between its markers; twice is once."""
    readme = tmp_path / "README.md"
    readme.write_text(MINE.format(f"{BEGIN}\nold\n{END}"))
    qv.card(made, tmp_path, base_model="org/tiny")
    text = readme.read_text()
    head, _, body = text.removeprefix("---\n").partition("---\n")
    assert head == ("license: apache-2.0  # of the original\ntags:\n- mine\n- gguf\n- quantized\n- quantverdict\n"
                    "base_model: org/tiny\nbase_model_relation: quantized\n")  # fmt: skip
    assert body.startswith(f"# My builds\n\nHello.\n\n{BEGIN}\n\n## Which file")
    assert body.endswith(f"{END}\nThe end.\n")
    qv.card(made, tmp_path, base_model="org/tiny")
    assert readme.read_text() == text


def test_a_card_without_our_section_gets_it_at_its_end():
    assert merged_card("# Mine\n", {"tags": ["a"]}, f"{BEGIN}\nx\n{END}\n", "README.md") == (
        f"---\ntags:\n- a\n---\n# Mine\n\n{BEGIN}\nx\n{END}\n"
    )


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ("---\na: 1\n", "README.md:1: the front matter does not end; expected a line --- after its keys"),
        ("---\na: [\n---\n", "README.md:3: the front matter is no YAML; expected keys and values"),
        ("---\n- a\n---\n", "README.md:2: the front matter is no mapping; expected keys and values"),
        (f"{BEGIN}\n", f"README.md: has {BEGIN} 1 and {END} 0 times; expected each once, in this order"),
        (f"{END}\n{BEGIN}\n", f"README.md: has {BEGIN} 1 and {END} 1 times; expected each once, in this order"),
        (
            "---\n{tags: [b], c: 1}\n---\n",
            "cannot be changed where tags stands; expected each key on a line of its own",
        ),
    ],
)
def test_a_card_that_cannot_be_merged_is_refused_in_one_line(old, told):
    with pytest.raises(DataError, match=re.escape(told)):
        merged_card(old, {"tags": ["a"]}, f"{BEGIN}\nx\n{END}\n", "README.md")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["quantverdict/intervals-light.svg", ".eval_results/quantverdict-Q2_K.yaml"])
def test_a_file_of_somebody_elses_is_not_written_over_and_nothing_is_written(made, tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=r"is there, and not of an earlier card; move it away first"):
        qv.card(made, tmp_path, dataset="me/harm")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["README.md", "quantverdict", ".eval_results", "quantverdict/quality-dark.svg"])
def test_no_link_is_written_through(made, tmp_path, name):
    out, other = tmp_path / "out", tmp_path / "other"
    (out / name).parent.mkdir(parents=True)
    other.mkdir() if "." not in name[1:] else other.write_text("mine")
    (out / name).symlink_to(other)
    with pytest.raises(BundleError, match=r"symbolic link|not of an earlier card"):
        qv.card(made, out)
    assert other.is_dir() or other.read_text() == "mine"
    assert not [path for path in out.rglob("*") if path.is_file() and not path.is_symlink()]


def test_results_of_a_build_that_is_gone_go_with_it_and_those_of_others_stay(made, bundle, tmp_path):
    out = tmp_path / "out"
    qv.card(made, out, dataset="me/harm")
    (out / ".eval_results" / "quantverdict-mine.yaml").write_text("[]")
    edit(bundle / "decision.json", lambda found: found["cells"].pop())
    qv.card(bundle, out, dataset="me/harm")
    left = {path.name for path in (out / ".eval_results").iterdir()}
    assert left == {
        "quantverdict-FP16.yaml",
        "quantverdict-Q6_K.yaml",
        "quantverdict-Q4_K_M.yaml",
        "quantverdict-mine.yaml",
    }


def test_names_mean_themselves_in_every_table_chart_and_key(bundle, tmp_path):
    """A build's file may be called anything: no markup, no marker, no key comes of it."""
    hub = pytest.importorskip("huggingface_hub")
    name = f"a|b](javascript:x) <img src=x onerror=y> {END}\n---\nlicense: gpl.gguf"
    qv.card(bundle, tmp_path / "out", files={"Q2_K": name}, quantized_by="x\n---\n<script>", dataset="me/harm")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count(END) == text.count(BEGIN) == 1
    assert not re.search(r"(?<!\\)<(?!/?picture|source|img alt|!--)", text.split("---\n", 2)[2])
    data = hub.ModelCard(text).data
    assert data.quantized_by == "x --- <script>"
    assert "license" not in data.to_dict()
    for _, rows in tables_of(text):
        assert {len(row) for row in rows} == {len(rows[0])}
    assert len(hub.parse_eval_result_entries(
        yaml.safe_load((tmp_path / "out" / ".eval_results" / "quantverdict-Q2_K.yaml").read_text()))) == 1  # fmt: skip


# The command


def test_the_command_prints_the_files_and_what_is_left_out(made, tmp_path, capsys):
    assert execute(["card", str(made), "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"][0] == str(tmp_path / "out" / "README.md")
    assert all(Path(path).is_file() for path in told["files"])
    assert execute(["card", str(made), "--out", str(tmp_path / "out"), "--file", "Q4_K_M=x.gguf"]) == 0
    assert "base_model is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "tinny"], "error: model: no base model 'tinny'; expected one of tiny (did you mean tiny?)"),
        (["--repo", "https://x"], "error: repo: 'https://x' is no name of the hub; expected owner/name"),
        (["--base-model", "tiny"], "error: base_model: 'tiny' is no name of the hub; expected owner/name"),
        (["--file", "Q5=x"], "error: file: no build 'Q5'; expected one of FP16, Q6_K, Q4_K_M, Q2_K"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(made, tmp_path, capsys, arguments, told):
    assert execute(["card", str(made), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(told)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_has_no_card(bundle, tmp_path):
    edit(bundle / "manifest.json", lambda found: found["run"].update(finished=None))
    with pytest.raises(BundleError, match="the run is unfinished; run the same command again to finish it"):
        qv.card(bundle, tmp_path / "out")
