"""`init`: what it takes for builds, which of them for the baseline and why, and a study that loads, plans and runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.config import load_study
from quantverdict.errors import ArtifactError, BundleError, QuantverdictError
from quantverdict.reporting.formats import size
from quantverdict.stages.init import SCHEMA, study_schema
from quantverdict.tasks.catalog import load_task

gguf = pytest.importorskip("gguf")
WIDTH = 256
ITEMS = sum(len(load_task(name).items) for name in (
    "starter_harmful", "starter_jailbreak", "starter_misconceptions", "starter_bias", "starter_benign",
    "starter_choice", "starter_classification", "starter_qa", "starter_summarization",
))  # fmt: skip


def byte_tokens() -> list[str]:
    """A token for each byte, as GPT-2 writes it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + at) for at in range(len(others))]


def write_model(path: Path, *, layers: int = 1, seed: int = 7, **strings: str) -> Path:
    """A Llama of random weights that reads every text, in F16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, draw = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(seed)
    tokens = [*byte_tokens(), "<s>", "</s>"]
    writer.add_name("Tiny")
    writer.add_file_type(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(8)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    for key, value in strings.items():
        writer.add_string(key.replace("__", "."), value)
    shapes = {"token_embd": len(tokens), "output": len(tokens)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}": rows for name, rows in (
            ("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", 256), ("ffn_gate", 256),
            ("ffn_up", 256), ("ffn_down", 256),
        )}  # fmt: skip
    for name, rows in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.05, (rows, WIDTH)).astype(np.float16))
    for name in (
        "output_norm",
        *(f"blk.{layer}.{norm}" for layer in range(layers) for norm in ("attn_norm", "ffn_norm")),
    ):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def ladder(tmp_path_factory) -> Path:
    """A folder with a model in F16 and two levels of it."""
    pytest.importorskip("xllamacpp")
    folder = tmp_path_factory.mktemp("init") / "models"
    qv.quantize(write_model(folder / "Tiny-F16.gguf"), ["Q8_0", "Q4_K_M"], folder)
    for level in ("Q8_0", "Q4_K_M"):
        (folder / f"Tiny-F16-{level}.gguf").rename(folder / f"Tiny-{level}.gguf")
    return folder


@pytest.fixture
def draft(ladder, tmp_path, monkeypatch):
    """Writes a study of what it is given, beside nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))
    return lambda *places, **options: qv.init(
        [str(one) for one in places], options.pop("out", "study.yaml"), measure=False, **options
    )


def test_a_folder_becomes_a_study_with_the_most_bits_as_its_baseline(draft, ladder, tmp_path):
    """Names of files are kept, sizes and bits are those of the files, and the reason stands beside the guess."""
    made = draft(ladder)
    text, study = (tmp_path / "study.yaml").read_text(), load_study(tmp_path / "study.yaml")
    [model] = study.models
    assert (model.name, model.family, model.baseline) == ("Tiny", "llama", "Tiny-F16")
    assert [(one.quant, one.level) for one in model.variants] == [
        ("Tiny-F16", "FP16"), ("Tiny-Q8_0", "Q8_0"), ("Tiny-Q4_K_M", "Q4_K_M"),
    ]  # fmt: skip
    assert [study.folder / one.source.path for one in model.variants] == [
        tmp_path / os.path.relpath(ladder / f"Tiny-{name}.gguf", tmp_path) for name in ("F16", "Q8_0", "Q4_K_M")
    ]
    assert "FP16 by its header, 16.0" in " ".join(text.split())
    assert "the most bits of 3 builds" in " ".join(text.replace("#", "").split())
    nbytes = [(ladder / f"Tiny-{name}.gguf").stat().st_size for name in ("F16", "Q8_0", "Q4_K_M")]
    assert [one["bytes"] for one in made.as_json()["models"][0]["builds"]] == nbytes
    assert f"{size(nbytes[0])}, 16.0" in text
    assert (made.cells, made.prompts) == (3, 3 * ITEMS)
    assert f"3 builds x {ITEMS} prompts = {3 * ITEMS} prompts" in " ".join(text.replace("#", "").split())


def test_what_it_writes_is_planned_and_run(draft, ladder, tmp_path, monkeypatch):
    """By llama.cpp, with the study as it is but for shorter answers: a decision comes out, without an encoder."""
    draft(ladder)
    path = tmp_path / "study.yaml"
    path.write_text(path.read_text() + "decoding: {max_new_tokens: 2}\ncollect: {context: 4096}\n")
    assert qv.plan(path, measure=False).prompts == 3 * ITEMS
    bundle = qv.run(path, tmp_path / "bundle")
    assert set(bundle.decision) == {"Tiny/Tiny-F16", "Tiny/Tiny-Q8_0", "Tiny/Tiny-Q4_K_M"}
    assert bundle.decision["Tiny/Tiny-F16"].is_baseline
    assert {cell["status"] for cell in bundle.decision.document["cells"]} == {"ok"}


@pytest.mark.usefixtures("small_battery")
def test_what_it_writes_is_run_with_recorded_answers(draft, ladder, tmp_path):
    """Three builds that answer alike, by replay."""
    draft(ladder)
    path, study = tmp_path / "study.yaml", load_study(tmp_path / "study.yaml")
    (tmp_path / "answers").mkdir()
    rows = []
    for use in study.tasks:
        harmful = use.task in ("starter_harmful", "starter_jailbreak")
        for item in load_task(use.task).items:
            text = "I'm sorry, but I can't help with that." if harmful else item.reference or "Yes."
            rows.append(json.dumps({"task": use.task, "sample_id": item.id, "text": text}))
    for variant in study.models[0].variants:
        (tmp_path / "answers" / f"Tiny__{variant.quant}.jsonl").write_text("\n".join(rows) + "\n")
    path.write_text(path.read_text() + "collect: {backend: replay, replay_dir: answers}\n")
    bundle = qv.run(path, tmp_path / "bundle")
    refused = {row["quant"]: row["refusal_rate_k"] for row in bundle.matrix.to_dicts()}
    assert refused == dict.fromkeys(("Tiny-F16", "Tiny-Q8_0", "Tiny-Q4_K_M"), 100)


def test_the_time_is_measured_where_the_baseline_is_here(ladder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    made = qv.init(ladder, progress=said.append)
    assert said == ["timing a short batch of Tiny-F16"]
    assert made.seconds > 0
    assert re.search(r"about \d+ min of generation \(from \d+ prompts timed just now\)",
                     " ".join((tmp_path / "study.yaml").read_text().replace("#", "").split()))  # fmt: skip


def test_a_file_that_is_there_is_written_over_by_force_alone(draft, ladder, tmp_path):
    (tmp_path / "study.yaml").write_text("mine")
    with pytest.raises(BundleError, match=r"study.yaml: is there already; --force writes over it, --out names another"):
        draft(ladder)
    assert (tmp_path / "study.yaml").read_text() == "mine"
    draft(ladder, force=True)
    assert load_study(tmp_path / "study.yaml").models[0].name == "Tiny"
    (tmp_path / SCHEMA).write_text("mine")
    with pytest.raises(BundleError, match=SCHEMA):
        draft(ladder, out="other.yaml", schema=True)
    assert not (tmp_path / "other.yaml").exists()


def test_what_is_no_build_is_left_out_and_named(draft, ladder, tmp_path):
    """An adapter, a projector, an importance matrix, a part of several files, junk: a line each."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in ladder.glob("*.gguf"):
        (folder / path.name).symlink_to(path)
    write_model(folder / "extra-lora.gguf", general__type="adapter")
    write_model(folder / "mmproj-F16.gguf", general__type="mmproj")
    (folder / "imatrix.dat").write_bytes(b"\0" * 16)
    (folder / "notes.txt").write_text("no model")
    (folder / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    for number in (1, 2, 3):
        (folder / f"Tiny-BF16-0000{number}-of-00003.gguf").write_bytes(b"")
    made = draft(folder)
    assert [(one.file, one.why) for one in made.left_out] == [
        ("Tiny-BF16-00001-of-00003.gguf",
         "is empty"),
        ("broken.gguf", "has GGUF version 4294967295"),
        ("extra-lora.gguf", "is a LoRA adapter"),
        ("imatrix.dat", "is an importance matrix"),
        ("mmproj-F16.gguf", "is a multimodal projector"),
    ]  # fmt: skip
    assert [one.name for one in made.models[0].builds] == ["Tiny-F16", "Tiny-Q8_0", "Tiny-Q4_K_M"]
    text = (tmp_path / "study.yaml").read_text()
    assert all(f"# left out: {one.file}" in text for one in made.left_out)
    assert load_study(tmp_path / "study.yaml")


def test_a_file_that_is_named_itself_and_is_no_build_is_refused(draft, ladder, tmp_path):
    write_model(tmp_path / "extra-lora.gguf", general__type="adapter")
    with pytest.raises(ArtifactError, match=r"extra-lora.gguf: is a LoRA adapter; expected a model that generates"):
        draft(ladder, tmp_path / "extra-lora.gguf")
    with pytest.raises(ArtifactError, match=r"none.gguf: does not exist; expected a GGUF file, a folder"):
        draft("none.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"empty: holds no model"):
        draft(tmp_path / "empty")
    assert not (tmp_path / "study.yaml").exists()


def test_a_model_that_is_named_alone_gets_levels_made_of_it(draft, ladder, tmp_path):
    draft(ladder / "Tiny-F16.gguf")
    study = load_study(tmp_path / "study.yaml")
    assert [one.quant for one in study.models[0].variants] == ["Tiny-F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
    assert qv.plan(study, measure=False).cells == 5


def test_a_quantized_build_that_is_named_alone_cannot_be_compared(draft, ladder):
    with pytest.raises(ArtifactError, match=r"nothing to compare: path:.*Tiny-Q4_K_M.gguf is the only build of its"):
        draft(ladder / "Tiny-Q4_K_M.gguf")


def test_without_an_unquantised_build_the_best_one_is_the_baseline_and_that_is_said(draft, ladder):
    made = draft(ladder / "Tiny-Q4_K_M.gguf", ladder / "Tiny-Q8_0.gguf")
    assert made.models[0].builds[0].name == "Tiny-Q8_0"
    assert "no F16, BF16 or F32 among them: what it lost itself cannot be seen" in made.models[0].why


def test_two_base_models_are_two_models_of_the_study(draft, ladder, tmp_path):
    """By the layers in their headers; names that would be equal are told apart."""
    other = tmp_path / "Deep-F16.gguf"
    qv.quantize(write_model(other, layers=2), ["Q8_0"], tmp_path)
    draft(ladder, other, tmp_path / "Deep-F16-Q8_0.gguf")
    study = load_study(tmp_path / "study.yaml")
    assert [(one.name, one.baseline) for one in study.models] == [("Tiny", "Tiny-F16"), ("Deep", "Deep-F16")]


def test_odd_names_are_brought_into_a_form_that_a_study_takes(draft, ladder, tmp_path):
    folder = tmp_path / "odd: #1 [x]"
    folder.mkdir()
    for name, source in (("my model (v2) F16.gguf", "F16"), ("my model (v2) Q8_0.gguf", "Q8_0")):
        (folder / name).symlink_to(ladder / f"Tiny-{source}.gguf")
    draft(folder)
    [model] = load_study(tmp_path / "study.yaml").models
    assert [one.quant for one in model.variants] == ["my-model-v2-F16", "my-model-v2-Q8_0"]
    assert qv.plan("study.yaml", measure=False).cells == 2


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint of one matrix, in BF16."""
    folder.mkdir()
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    entry = {"dtype": "BF16", "shape": [8, 8], "data_offsets": [0, 128]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 128)
    return folder


def test_a_checkpoint_is_run_by_transformers(draft, tmp_path):
    draft(write_checkpoint(tmp_path / "base"))
    [model] = load_study(tmp_path / "study.yaml").models
    assert [(one.quant, one.format, one.backend) for one in model.variants] == [
        ("base", "BF16", "transformers"), ("AWQ", "AWQ", "transformers"), ("GPTQ", "GPTQ", "transformers"),
    ]  # fmt: skip
    assert model.checkpoint.path == "base"


def test_a_tag_of_ollama_is_its_file_in_the_store(draft, ladder, tmp_path, monkeypatch):
    store = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    (store / "blobs").mkdir(parents=True)
    for number, (tag, name) in enumerate((("f16", "F16"), ("q8_0", "Q8_0"))):
        digest = f"{number}" * 64
        (store / "blobs" / f"sha256-{digest}").symlink_to(ladder / f"Tiny-{name}.gguf")
        manifest = store / "manifests" / "registry.ollama.ai" / "library" / "tiny" / tag
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
        manifest.write_text(json.dumps({"layers": [layer]}))
    draft("ollama:tiny:f16", "ollama:tiny:q8_0")
    [model] = load_study(tmp_path / "study.yaml").models
    assert [(one.quant, one.source.ollama) for one in model.variants] == [
        ("tiny-f16", "tiny:f16"), ("tiny-q8_0", "tiny:q8_0"),
    ]  # fmt: skip
    assert qv.plan("study.yaml", measure=False).cells == 2
    with pytest.raises(ArtifactError, match="ollama pull none:f16"):
        draft("ollama:none:f16", out="other.yaml")


REPOSITORY = {
    "id": "owner/Tiny-GGUF", "sha": "c0ffee" + "0" * 34, "private": False, "tags": [], "downloads": 0, "likes": 0,
    "gguf": {"total": 1_000_000, "architecture": "llama"},
    "siblings": [
        {"rfilename": "README.md", "size": 10}, {"rfilename": "Tiny-Q4_K_M.gguf", "size": 600_000},
        {"rfilename": "Tiny-F16.gguf", "size": 2_000_000}, {"rfilename": "mmproj-Tiny-F16.gguf", "size": 500_000},
        {"rfilename": "big/Tiny-F32-00001-of-00002.gguf", "size": 2_500_000},
        {"rfilename": "big/Tiny-F32-00002-of-00002.gguf", "size": 1_500_000},
        {"rfilename": "Tiny-Q8_0-00002-of-00002.gguf", "size": 9},
    ],
}  # fmt: skip


def ask_hub(url: str, *places: str) -> subprocess.CompletedProcess[str]:
    """`init` in a process whose hub is at `url`: the client reads that when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "quantverdict", "init", *places, "--json", "--no-measure"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_a_repository_of_the_hub_is_listed_and_not_fetched(scripted, tmp_path, monkeypatch):
    """Its files by name and size, at the commit that it has now."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    scripted.routes["/api/models/owner/Tiny-GGUF?blobs=True"] = lambda _: REPOSITORY
    scripted.routes["/api/models/owner/Tiny-GGUF?blobs=true"] = lambda _: REPOSITORY
    done = ask_hub(scripted.url, "owner/Tiny-GGUF")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {path.partition("?")[0] for path, _, _ in scripted.requests} == {"/api/models/owner/Tiny-GGUF"}
    assert [(one["file"], one["why"]) for one in told["left_out"]] == [
        ("Tiny-Q8_0-00002-of-00002.gguf", "is a part of a model whose part Tiny-Q8_0-00001-of-00002.gguf is missing"),
        ("mmproj-Tiny-F16.gguf", "is a multimodal projector, by its name"),
    ]
    assert [(one["quant"], one["bits_per_weight"]) for one in told["models"][0]["builds"]] == [
        ("Tiny-F32", 32.0), ("Tiny-F16", 16.0), ("Tiny-Q4_K_M", 4.8),
    ]  # fmt: skip
    [model] = load_study(tmp_path / "study.yaml").models
    assert (model.name, model.family, model.params_b) == ("Tiny", "llama", 0.001)
    assert model.variants[0].source.file == "big/Tiny-F32-00001-of-00002.gguf"
    assert model.variants[2].source.model_dump(exclude_none=True) == {
        "hub": "owner/Tiny-GGUF", "revision": REPOSITORY["sha"], "file": "Tiny-Q4_K_M.gguf",
    }  # fmt: skip


def test_a_repository_that_is_not_there_is_one_line(scripted, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    done = ask_hub(scripted.url, "owner/none")
    said = json.loads(done.stdout)["error"]
    assert (done.returncode, said["exit_code"], said["kind"]) == (2, 2, "ArtifactError")
    assert re.fullmatch(
        r"error: hub:owner/none: cannot be had from the hub \(.*\); expected a repository, .*\n", done.stderr
    )


def test_without_the_hubs_client_it_says_what_to_install(draft, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        QuantverdictError, match=r"hub:owner/name needs the hub's client; pip install 'quantverdict\[hub"
    ):
        draft("owner/name")


def test_the_command_prints_what_it_found(ladder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert execute(["init", str(ladder), "--no-measure", "--schema"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Tiny"
    assert shown[-1] == "next: quantverdict plan study.yaml"
    assert json.loads((tmp_path / SCHEMA).read_text()) == study_schema()
    assert (tmp_path / "study.yaml").read_text().startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    assert execute(["init", str(ladder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# The schema


KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
         "null": type(None)}  # fmt: skip


def fits(value: object, schema: dict, root: dict) -> bool:
    """Whether a value fits a JSON schema, by the keywords that ours has."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(fits(value, one, root) for one in schema["anyOf"])
    kind = schema.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or isinstance(value, bool) != (kind == "boolean")):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, dict):
        return set(schema.get("required", ())) <= set(value) and all(
            key_fits(one, schema, root) for one in value.items()
        )
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(
            fits(one, schema.get("items", {}), root) for one in value
        )
    return bool(re.search(schema.get("pattern", ""), value)) if isinstance(value, str) else within(value, schema)


def key_fits(item: tuple[str, object], schema: dict, root: dict) -> bool:
    key, value = item
    patterns = (one for rule, one in schema.get("patternProperties", {}).items() if re.search(rule, key))
    inner = schema.get("properties", {}).get(key) or next(patterns, schema.get("additionalProperties", True))
    return inner if isinstance(inner, bool) else fits(value, inner, root)


def within(value: object, schema: dict) -> bool:
    if value is None:
        return True
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and (above is None or value > above)
        and (below is None or value < below)
    )


@pytest.fixture(scope="module")
def schema():
    return study_schema()


STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_schema_takes_the_studies_of_the_repository(path, schema):
    found = yaml.safe_load(path.read_text())
    if "models" in found:
        assert fits(found, schema, schema)


def test_the_schema_takes_what_init_writes_and_refuses_what_a_study_refuses(draft, ladder, tmp_path, schema):
    draft(ladder)
    written = yaml.safe_load((tmp_path / "study.yaml").read_text())
    assert fits(written, schema, schema)
    changes = [
        ({"constraints": {"max_file_size": "2 GB"}}, True), ({"constraints": {"max_file_bytes": 7}}, True),
        ({"constraints": {"max_file_size": "big"}}, False),
        ({"policy": "tr125"}, True), ({"policy": {"base": "tr125", "margins": {"refusal_rate": "default"}}}, True),
        ({"seeed": 1}, False), ({"seed": -1}, False), ({"nulls": 21}, False), ({"tasks": []}, False),
        ({"policy": {"bass": "tr125"}}, False), ({"collect": {"batch_size": 0}}, False), ({"study": "-"}, False),
    ]  # fmt: skip
    for change, good in changes:
        assert fits(written | change, schema, schema) == good, change


def test_every_key_of_the_schema_says_what_it_does(schema):
    parts = [schema, *schema["$defs"].values()]
    assert not [
        key for part in parts for key, item in part.get("properties", {}).items() if not item.get("description")
    ]
    assert "file" not in schema["properties"]


def test_builds_are_listed_with_level_bits_size_and_what_is_none(ladder, capsys):
    assert execute(["list", str(ladder)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["build", "level", "bits", "size", "from"]
    assert [line.split()[:2] for line in lines] == [
        ["Tiny-F16", "FP16"],
        ["Tiny-Q8_0", "Q8_0"],
        ["Tiny-Q4_K_M", "Q4_K_M"],
    ]
    assert execute(["list", str(ladder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["level"], one["parts"], one["bits_counted"]) for one in found["builds"]] == [
        ("FP16", 1, True), ("Q8_0", 1, True), ("Q4_K_M", 1, True),
    ]  # fmt: skip
    assert found["builds"][0]["source"]["path"].endswith("Tiny-F16.gguf")
    assert execute(["list", "nowhere/at/all"]) == 2
