"""What a tokenizer is, item by item, from a GGUF and from a checkpoint alike.

A GGUF keeps the vocabulary, merges and special ids as metadata; a checkpoint has them in tokenizer.json and
tokenizer_config.json. The two cannot be hashed as they are stored, so they are read to the same facts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantverdict.artifacts.checkpoint_read import Checkpoint, read_json
from quantverdict.artifacts.gguf_read import Gguf
from quantverdict.artifacts.settings import config_settings, tokenizer_settings

_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
"""Names in tokenizer_config.json to those of GGUF, whose spelling of the separator is its own."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer and its chat template.

    Attributes:
        tokens: text by id; an id that no token has is an empty text. None where the file does not show them.
        merges: as `left right`, in order; None for a tokenizer that has none or does not show them.
        special: `bos`, `eos`, `unknown`, `padding`, ... to their ids.
        chat_template: the Jinja source, None where there is none.
    """

    tokens: tuple[str, ...] | None
    merges: tuple[str, ...] | None
    special: Mapping[str, int]
    chat_template: str | None

    @property
    def special_tokens(self) -> dict[str, str]:
        """Names to texts, of those whose id is in the vocabulary."""
        tokens = self.tokens or ()
        return {name: tokens[number] for name, number in self.special.items() if 0 <= number < len(tokens)}

    @property
    def sha256(self) -> str:
        """Over tokens, merges and special ids: equal for equal facts, whatever the format."""
        digest = hashlib.sha256()
        for texts in (self.tokens, self.merges, sorted(f"{name}={number}" for name, number in self.special.items())):
            for text in texts if texts is not None else ():
                digest.update(b"%d:%b" % (len(data := text.encode(errors="surrogatepass")), data))
            digest.update(b"\n")
        return digest.hexdigest()


def gguf_facts(model: Gguf) -> TokenizerFacts:
    """The facts in a GGUF's metadata."""
    special: dict[str, int] = {}
    for key in model.fields:
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        number = model.integer(key) if key == f"tokenizer.ggml.{name}_token_id" else None
        if number is not None:
            special[name] = number
    return TokenizerFacts(
        tokens=_texts(model.get("tokenizer.ggml.tokens")),
        merges=_texts(model.get("tokenizer.ggml.merges")),
        special=special,
        chat_template=model.text("tokenizer.chat_template"),
    )


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a checkpoint's folder says besides its weights, each file empty where it is not there."""

    folder: Path
    tokenizer: Mapping[str, object]
    tokenizer_config: Mapping[str, object]
    generation_config: Mapping[str, object]
    config: Mapping[str, object]


def folder_files(folder: Path) -> FolderFiles:
    """Read the JSON files of a checkpoint's folder, each once.

    Raises:
        ArtifactError: a file that is there cannot be read.
    """
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
    return FolderFiles(folder, *(_optional(folder / name) for name in names))


def checkpoint_settings(found: Checkpoint, files: FolderFiles) -> dict[str, object]:
    """`settings.config_settings` and `settings.tokenizer_settings` of an open checkpoint."""
    config = dict(found.config)
    if not any(key in config for key in ("quantization_config", "compression_config")) and found.quantization:
        config["quantization_config"] = found.quantization
    settings = config_settings(config, files.generation_config)
    settings |= tokenizer_settings(files.tokenizer, files.tokenizer_config)
    if (files.folder / "adapter_config.json").is_file():
        settings["adapter_config.json"] = True  # Transformers then loads an adapter, where PEFT is installed
    if not files.tokenizer:
        settings["tokenizer files"] = files_sha256(files.folder)
    return settings


def files_sha256(folder: Path) -> str:
    """Of the tokenizer files as they are, for a tokenizer that shows no facts."""
    digest = hashlib.sha256()
    for name in _FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def folder_facts(files: FolderFiles) -> TokenizerFacts:
    """The facts in a checkpoint's tokenizer.json, tokenizer_config.json and chat template."""
    tokenizer, settings, model, folder = files.tokenizer, files.tokenizer_config, files.config, files.folder
    numbers = _token_ids(tokenizer)
    tokens = None
    if numbers and max(numbers.values()) < 2**24:
        texts = [""] * (max(numbers.values()) + 1)
        for text, number in numbers.items():
            texts[number] = text
        tokens = tuple(texts)
    merges = _inner(tokenizer, "model").get("merges")
    return TokenizerFacts(
        tokens=tokens,
        merges=_texts([" ".join(map(str, item)) if isinstance(item, list) else item for item in merges])
        if isinstance(merges, list)
        else None,
        special=_special_ids(settings, model, numbers),
        chat_template=_folder_template(folder, settings),
    )


def _token_ids(tokenizer: Mapping[str, object]) -> dict[str, int]:
    """Text to id, of the vocabulary and of what was added to it."""
    vocab = _inner(tokenizer, "model").get("vocab")
    found: dict[str, int] = {}
    if isinstance(vocab, dict):
        found = {str(text): number for text, number in vocab.items() if type(number) is int and number >= 0}
    elif isinstance(vocab, list):  # Unigram: pairs of text and score
        found = {str(item[0]): number for number, item in enumerate(vocab) if isinstance(item, list) and item}
    added = tokenizer.get("added_tokens")
    for item in added if isinstance(added, list) else ():
        if isinstance(item, dict) and type(number := item.get("id")) is int and number >= 0:
            found[str(item.get("content"))] = number
    return found


def _special_ids(
    settings: Mapping[str, object], model: Mapping[str, object], numbers: Mapping[str, int]
) -> dict[str, int]:
    """From the texts in tokenizer_config.json, else from the ids in config.json, as llama.cpp's converter does it."""
    found: dict[str, int] = {}
    for name, known in _SPECIAL.items():
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number: object = numbers.get(text) if isinstance(text, str) else None
        if number is None:
            number = model.get(f"{name}_token_id", _inner(model, "text_config").get(f"{name}_token_id"))
            number = number[0] if isinstance(number, list) and number else number
        if type(number) is int:
            found[known] = number
    return found


def _folder_template(folder: Path, settings: Mapping[str, object]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template", _optional(folder / "chat_template.json").get("chat_template"))
    if isinstance(template, list):  # several, by name
        template = next((item.get("template") for item in template if _is_default(item)), None)
    return template if isinstance(template, str) else None


def _is_default(item: object) -> bool:
    return isinstance(item, dict) and item.get("name") == "default"


def _optional(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}


def _inner(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(str(item) for item in value) if isinstance(value, list) else None
