"""Encoders whose files are broken or hostile: one line each, and none of their code ever runs."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest

from quantverdict.config import BertScoreConfig, CoherenceConfig, Model, SemanticConfig, Source, Study, Variant
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError
from quantverdict.grading import encoders
from quantverdict.grading.encoders import EncoderFiles, find_encoders

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "mat", "."]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.fixture
def encoder(tmp_path):
    """A folder with a BERT of two small layers, as sentence-transformers saves it."""
    folder = tmp_path / "encoder"
    (folder / "1_Pooling").mkdir(parents=True)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertModel(config).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    write(folder / "modules.json", MODULES)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    return folder


def write(file: Path, content: object) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def change(file: Path, **keys: object) -> None:
    write(file, {**json.loads(file.read_text()), **keys})


def a_study(folder: Path) -> Study:
    source = Source(path=str(folder))
    semantic = SemanticConfig(
        bertscore=BertScoreConfig(source=source, layer=2), coherence=CoherenceConfig(source=source), device="cpu"
    )
    model = Model(name="m", family="m", baseline="FP16", variants=(Variant(quant="FP16", backend="replay"),))
    return Study(study="s", models=(model,), tasks=("starter_qa",), semantic=semantic)


def load_all(folder: Path) -> None:
    """As a run does it: the files are found, then loaded, then used once."""
    from quantverdict.grading.encoders import SentenceEncoder, TokenEncoder, place

    found = find_encoders(a_study(folder))
    for kind, files in ((TokenEncoder, found.bertscore), (SentenceEncoder, found.coherence)):
        encoder = kind(files, place(found.settings))
        texts = ["the cat sat", "the mat."]
        assert encoder.lengths(texts) == [5, 5]
        encoder.embed(texts)


def test_a_whole_encoder_is_loaded(encoder, capfd):
    load_all(encoder)
    assert capfd.readouterr() == ("", "")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Path}))


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _scrambled(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 100 + file.read_bytes()[100:])


def _folder_for_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def _other_shapes(folder: Path) -> None:
    change(folder / "config.json", hidden_size=64)


def _other_names(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    save_file({f"other.{name}": value for name, value in found.items()}, folder / "model.safetensors", {"format": "pt"})


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


FAULTS = {
    "pickle": _pickled,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "cut weights": _cut,
    "scrambled weights": _scrambled,
    "folder for weights": _folder_for_file,
    "weights of other shapes": _other_shapes,
    "weights of other names": _other_names,
    "no tokenizer": _no_tokenizer,
    "tokenizer of another kind": lambda folder: write(folder / "tokenizer.json", {"version": "1.0"}),
    "cut tokenizer": lambda folder: write(folder / "tokenizer.json", '{"version": "1.'),
    "tokenizer a list": lambda folder: write(folder / "tokenizer.json", [1]),
    "tokenizer config a list": lambda folder: write(folder / "tokenizer_config.json", [1]),
    "tokenizer limit a text": lambda folder: change(folder / "tokenizer_config.json", model_max_length="long"),
    "config empty": lambda folder: write(folder / "config.json", ""),
    "config a list": lambda folder: write(folder / "config.json", []),
    "config a number": lambda folder: write(folder / "config.json", 1),
    "config deep": lambda folder: write(folder / "config.json", "[" * 100_000),
    "config not text": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "layers a text": lambda folder: change(folder / "config.json", num_hidden_layers="two"),
    "layers a list": lambda folder: change(folder / "config.json", num_hidden_layers=[2]),
    "layers infinite": lambda folder: change(folder / "config.json", num_hidden_layers=float("inf")),
    "width a text": lambda folder: change(folder / "config.json", hidden_size="wide"),
    "width null": lambda folder: change(folder / "config.json", hidden_size=None),
    "width 0": lambda folder: change(folder / "config.json", hidden_size=0),
    "heads 0": lambda folder: change(folder / "config.json", num_attention_heads=0),
    "type unknown": lambda folder: change(folder / "config.json", model_type="nothing-of-the-kind"),
    "type a list": lambda folder: change(folder / "config.json", model_type=["bert"]),
    "activation unknown": lambda folder: change(folder / "config.json", hidden_act="boom"),
    "dtype unknown": lambda folder: change(folder / "config.json", dtype="float99"),
    "modules empty": lambda folder: write(folder / "modules.json", ""),
    "modules a mapping": lambda folder: write(folder / "modules.json", {"a": 1}),
    "modules none": lambda folder: write(folder / "modules.json", []),
    "modules of numbers": lambda folder: write(folder / "modules.json", [1]),
    "module without a type": lambda folder: write(folder / "modules.json", [{"path": ""}]),
    "module of a list": lambda folder: write(folder / "modules.json", [{**MODULES[0], "type": ["a"]}]),
    "module unknown": lambda folder: write(
        folder / "modules.json", [{**MODULES[0], "type": "sentence_transformers.models.Nothing"}]
    ),
    "module no module": lambda folder: write(
        folder / "modules.json", [{**MODULES[0], "type": "sentence_transformers.util.cos_sim"}]
    ),
    "module elsewhere": lambda folder: write(folder / "modules.json", [MODULES[0], {**MODULES[1], "path": "../x"}]),
    "modules in another order": lambda folder: write(folder / "modules.json", MODULES[::-1]),
    "no pooling": lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
    "pooling a list": lambda folder: write(folder / "1_Pooling" / "config.json", [1]),
    "pooling of another width": lambda folder: write(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": "x", "pooling_mode": "nothing"}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_encoder_is_said_in_one_line_with_its_name(encoder, fault):
    """Errors of pickle, safetensors, dataclasses and tokenizers went through as internal ones."""
    FAULTS[fault](encoder)
    with pytest.raises((EngineError, ArtifactError)) as told:
        load_all(encoder)
    assert str(encoder) in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 700


def _evil_module(folder: Path) -> None:
    write(folder / "modules.json", [{**MODULES[0], "type": "evil.Evil"}, MODULES[1]])


def _evil_package(folder: Path) -> None:
    write(folder / "modules.json", [{**MODULES[0], "type": "os.system"}])


def _evil_config(folder: Path) -> None:
    names = {"AutoConfig": "evil.Evil", "AutoModel": "evil.EvilModel"}
    change(folder / "config.json", model_type="evil", auto_map=names, architectures=["EvilModel"])


def _evil_tokenizer(folder: Path) -> None:
    names = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    change(folder / "tokenizer_config.json", auto_map=names, tokenizer_class="EvilTokenizer")


def _evil_arguments(folder: Path) -> None:
    _evil_config(folder)
    trust = {"trust_remote_code": True}
    write(folder / "sentence_bert_config.json", {"model_args": trust, "config_args": trust, "tokenizer_args": trust})


def _evil_pickle(folder: Path) -> None:
    class Run:
        def __reduce__(self) -> object:
            return Path.write_text, (folder / "mark", "ran")

    (folder / "model.safetensors").unlink()
    torch.save({"x": Run()}, folder / "pytorch_model.bin")


EVILS = [_evil_module, _evil_package, _evil_config, _evil_tokenizer, _evil_arguments, _evil_pickle]


@pytest.mark.parametrize("evil", EVILS)
def test_an_encoders_own_code_never_runs(encoder, evil, plant_code, monkeypatch, capfd):
    """Nor is anybody asked, on a terminal or before the one document of --json."""
    mark = plant_code(encoder)
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    evil(encoder)
    expected = pytest.raises((EngineError, ArtifactError), match=re.escape(str(encoder)))
    with nullcontext() if evil is _evil_tokenizer else expected as told:  # that one has a class that is built in
        load_all(encoder)
    assert "trust_remote_code" not in str(told and told.value)
    assert not mark.exists()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("found", "refused"), [("5.2.0", True), ("6.1.9", True), ("6.2.0", False), ("10.0", False)])
def test_releases_that_run_an_encoders_code_are_refused(monkeypatch, found, refused):
    monkeypatch.setattr(encoders, "version", lambda package: found)
    if refused:
        with pytest.raises(
            QuantverdictError, match=f"sentence-transformers {found} runs code .* expected 6.2 or newer"
        ):
            encoders.installed("sentence-transformers")
    else:
        assert encoders.installed("sentence-transformers") == {"sentence-transformers": found}


def test_files_are_named_by_their_encoder(encoder):
    assert isinstance(find_encoders(a_study(encoder)).bertscore, EncoderFiles)


def test_what_an_embedding_takes_is_counted_in_bytes(encoder):
    """32 numbers of four bytes a token (with `[CLS]` and `[SEP]`) and one weight each; one such vector a sentence."""
    found = find_encoders(a_study(encoder))
    placed = encoders.place(found.settings)
    token, sentence = encoders.TokenEncoder(found.bertscore, placed), encoders.SentenceEncoder(found.coherence, placed)
    assert [token.size(one) for one in token.embed(["the cat sat", "the"])] == [5 * 33 * 4, 3 * 33 * 4]
    assert [sentence.size(one) for one in sentence.embed(["the cat sat", "the"])] == [32 * 4] * 2


@pytest.mark.parametrize(
    ("settings", "gpu", "placed"),
    [
        ({"device": "auto"}, False, ("cpu", "float32", "cpu", 1024)),
        ({"device": "auto"}, True, ("cuda", "bfloat16", "card of cuda", 16384)),
        ({"device": "cpu"}, True, ("cpu", "float32", "cpu", 1024)),
        ({"device": "cuda:1"}, True, ("cuda:1", "bfloat16", "card of cuda:1", 16384)),
        ({"device": "cuda", "dtype": "float32", "batch_tokens": 2048}, True, ("cuda", "float32", "card of cuda", 2048)),
        ({"device": "cpu", "dtype": "bfloat16", "batch_tokens": 512}, False, ("cpu", "bfloat16", "cpu", 512)),
    ],
)
def test_encoders_are_placed_on_what_the_machine_has(monkeypatch, settings, gpu, placed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    source = Source(path="x")
    assert encoders.place(SemanticConfig(coherence=CoherenceConfig(source=source), **settings)) == placed


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = SemanticConfig(coherence=CoherenceConfig(source=Source(path="x")), device="cuda")
    with pytest.raises(EngineError, match=r"semantic\.device is cuda, and torch finds no GPU; expected auto or cpu"):
        encoders.place(settings)


def test_a_score_depends_on_files_libraries_and_where_there_is_one_the_layer():
    whole = EncoderFiles("x", Path("x"), 2, {"a": "1"}, {"torch": "2"})
    assert whole.identity == {"files": {"a": "1"}, "libraries": {"torch": "2"}, "layer": 2}
    assert EncoderFiles("x", Path("y"), None, {"a": "1"}, {"torch": "2"}).identity == {
        "files": {"a": "1"}, "libraries": {"torch": "2"},
    }  # fmt: skip


def test_only_a_pooler_may_be_missing_from_an_encoders_weights():
    encoders.refuse_missing(["pooler.dense.weight", "pooler.dense.bias"], "e")
    with pytest.raises(EngineError, match=r"e: its weights lack b\.1, b\.2, b\.3, 4 in all"):
        encoders.refuse_missing(["b.4", "b.3", "pooler.x", "b.2", "b.1"], "e")
    with pytest.raises(EngineError, match=r"lack b\.1, 1 in all"):
        encoders.refuse_missing(["b.1"], "e")


def test_tokens_are_matched_greedily_and_weighted_on_both_sides(encoder):
    """F1 of (best of each answer's token, weighted) and (best of each reference's token, weighted), by hand."""
    found = find_encoders(a_study(encoder))
    token = encoders.TokenEncoder(found.bertscore, encoders.place(found.settings))

    def embedding(vectors, weights):
        return encoders.TokenEmbedding(torch.tensor(vectors), torch.tensor(weights))

    one, two = embedding([[1.0, 0.0], [0.6, 0.8]], [0.25, 0.75]), embedding([[0.0, 1.0]], [1.0])
    none = embedding([[0.6, 0.8]], [0.0])
    reference = embedding([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]], [0.5, 0.25, 0.25])
    # Of `one`: best 1 and 0.96 forwards; 0.96, 0.8 and 1 backwards. Of `two`: best 1; 0.6, 1 and 0.
    precision, recall = 0.25 * 1 + 0.75 * 0.96, 0.5 * 0.96 + 0.25 * 0.8 + 0.25 * 1
    expected = [2 * precision * recall / (precision + recall), 2 * 1 * 0.55 / 1.55, 0.0]
    assert token.compare([one, two, none], reference) == pytest.approx(expected, rel=1e-6)
    assert token.compare([one], none) == [0.0]
    across = embedding([[1.0, 0.0]], [1.0])
    assert token.compare([across], embedding([[0.0, 1.0]], [1.0])) == [0.0], "nothing alike is 0 and no division by 0"
