"""What a file is that is no language model by itself: an adapter, a projector, an embedding model, a vocabulary.

Such a file opens like a model, and what an engine makes of it is garbage or an error from deep inside. It is refused
by what it is, from what it says of itself and from the names of its tensors. A decoder is never refused: tied
embeddings, experts, a vision language model's text side, heads for several tokens beside the layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, Gguf
from quantverdict.errors import ArtifactError, os_reason
from quantverdict.records import BackendSpec

EXPECTED = "a model that generates text"
_LORA, _HEAD = "a LoRA adapter", "a draft head, which drafts tokens for another model"
_EMBEDDING, _RERANKER = "an embedding model", "a reranker or classifier"
_VISION = "a vision model without a language model"
_TYPES: Mapping[str, str] = {
    "adapter": _LORA,
    "imatrix": "an importance matrix",
    "mmproj": "a multimodal projector",
    "clip-vision": "a multimodal projector",
    "vocab": "a vocabulary without weights",
}
"""`general.type` of llama.cpp's tools; what else stands there is named as it is."""
_ARCHITECTURES: Mapping[str, str] = {
    **dict.fromkeys(("clip", "mmproj"), "a multimodal projector"),
    **dict.fromkeys(("controlvector", "control-vector"), "a control vector"),
    "imatrix": "an importance matrix",
    **dict.fromkeys(
        ("bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "modern-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
         "t5encoder", "gemma-embedding", "gemma-embedding2", "llama-embed"),
        _EMBEDDING,
    ),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), "a diffusion language model, which has no next token"),
    **dict.fromkeys(
        ("flux", "sd1", "sd2", "sd3", "sdxl", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2",
         "qwen_image", "pixart"),
        "a diffusion model for images or video",
    ),
    **dict.fromkeys(("wavtokenizer-dec", "whisper"), "a model of sound"),
    **dict.fromkeys(("eagle", "eagle3", "medusa", "dflash", "gemma4-assistant"), _HEAD),
}  # fmt: skip
"""`general.architecture` of files that are no decoders."""
_POOLING = {1: _EMBEDDING, 2: _EMBEDDING, 3: _EMBEDDING, 4: _RERANKER}
"""`pooling_type` of llama.cpp: mean, first token, last token, rank; 0 and less say that nothing is pooled."""
_FOLDER_FILES: Mapping[str, str] = {
    "model_index.json": "a diffusion pipeline",
    "modules.json": _EMBEDDING,
    "config_sentence_transformers.json": _EMBEDDING,
    "1_Pooling/config.json": _EMBEDDING,
}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.gguf", "*.bin", "*.pt", "*.pth")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_CLASSES: tuple[tuple[str, str], ...] = (
    (r"Eagle|Medusa|Speculator|MTP(Model)?$|NextN", _HEAD),
    (r"For(Causal|Conditional)|LMHead", ""),
    (r"ForMaskedLM|ForPreTraining|ForNextSentencePrediction", "an encoder"),
    (r"For\w*(Classification|Reward\w*|Ranking|MultipleChoice|QuestionAnswering|Detection|Segmentation)", _RERANKER),
    (r"RewardModel", _RERANKER),
    (r"EncoderModel", _EMBEDDING),
    (r"(CLIP|Siglip|Vision|ViT)\w*(Model|Tower|Transformer)", _VISION),
    (r"(LLaDA|Dream|SDAR)\w*", _ARCHITECTURES["dream"]),
)
"""Class names of `architectures` in config.json, the first that is found in a name; empty for a decoder."""
_ENCODERS = (
    "bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "mpnet", "camembert",
    "nomic_bert", "modernbert", "eurobert", "longformer", "big_bird", "ernie", "funnel", "layoutlm", "xlm",
    "t5_encoder",
)  # fmt: skip
"""`model_type` of config.json of encoders, unless their class is that of a decoder."""
_OTHER_MODELS: Mapping[str, str] = {
    **dict.fromkeys(
        ("clip", "clip_vision_model", "clip_text_model", "siglip", "siglip_vision_model", "siglip2", "vit", "deit",
         "dinov2", "dinov3_vit", "swin", "beit", "convnext", "resnet", "detr", "sam"),
        _VISION,
    ),
    **dict.fromkeys(("whisper", "wav2vec2", "hubert", "encodec", "wavlm", "mimi", "snac"), "a model of sound"),
    **dict.fromkeys(("llada", "llada_moe", "dream", "Dream"), _ARCHITECTURES["dream"]),
    **dict.fromkeys(("eagle", "medusa", "mlp_speculator", "speculators"), _HEAD),
}  # fmt: skip
"""`model_type` of config.json that no decoder has."""
_HEADLESS = re.compile(r"(Llama|Mistral|Mixtral|Qwen\d\w*|Gemma\w*|GPT\w+|Phi\d?|OPT|Bloom|Falcon|New)Model")
"""Classes of decoders without their output layer: what they give are hidden states."""


def is_folder(path: Path) -> bool:
    """`Path.is_dir`, for a path that somebody typed.

    Raises:
        ArtifactError: no file can have that name, or it may not be looked at.
    """
    try:
        return path.is_dir()
    except OSError as error:
        shown = path.with_name(f"{path.name[:40]}...") if len(path.name) > 80 else path
        raise ArtifactError(f"cannot be read ({os_reason(error)})", file=shown, expected="a model") from error


_OTHER_ENGINES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "EXL2": ("ExLlamaV2", ("transformers", "vllm")),
    "EXL3": ("ExLlamaV3", ("transformers", "vllm")),
    "MLX": ("MLX", ("transformers", "vllm")),
}
"""What a type's name begins with, what reads it, and the engines that do not."""


def unrunnable(form: str, types: Collection[str], backend: BackendSpec) -> str | None:
    """Why no release of an engine loads a build, None where one may; a program that holds its own models is not judged.

    The engine is the one of the study; a server that can load the file may be asked instead.

    Args:
        form, types: `Artifact.format`, and the names of the types that the build's weights are stored in.
    """
    if backend.remote or backend.reads == "recordings":
        return None
    if form == "gguf":
        others = sorted({name for name in types if name not in TYPE_BY_NAME})
        if backend.capabilities.wheels and others:
            return f"has tensors of type {', '.join(others)}, which llama.cpp does not load; {_SERVER}"
        return None
    for name in types:
        for begin, (engine, not_by) in _OTHER_ENGINES.items():
            if name.startswith(begin) and backend.name in not_by:
                return f"is stored as {name}, which {engine} reads and {backend.name} does not; {_SERVER}"
    return None


_SERVER = "expected a server that has it loaded (backend: server)"


def require_model_gguf(model: Gguf) -> None:
    """Refuse a GGUF file that is no whole language model.

    Raises:
        ArtifactError: saying what it is.
    """
    kind = _gguf_kind(model)
    if kind is not None:
        raise ArtifactError(f"is {kind}", file=model.path, expected=EXPECTED)


def require_model_folder(folder: Path) -> None:
    """Refuse a folder whose files say that it holds no language model: an adapter, a pipeline, a tokenizer.

    Raises:
        ArtifactError: saying what it is.
    """
    for name, kind in _FOLDER_FILES.items():
        if (folder / name).is_file():
            raise ArtifactError(f"is {kind}: it has {name}", file=folder, expected=EXPECTED)
    weights = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    alone = all(path.name.startswith("adapter") for path in weights) or not (folder / "config.json").is_file()
    if alone and (folder / "adapter_config.json").is_file():
        raise ArtifactError(f"is {_adapter(folder)}", file=folder, expected=EXPECTED)
    if not weights and any((folder / name).is_file() for name in _TOKENIZER):
        raise ArtifactError("is a tokenizer without weights", file=folder, expected=EXPECTED)


def _adapter(folder: Path) -> str:
    try:
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = said.get("peft_type") if isinstance(said, dict) else None
    except (OSError, ValueError, RecursionError):
        kind = None
    return f"an adapter ({kind[:40]})" if isinstance(kind, str) and kind.upper() != "LORA" else _LORA


def require_model_checkpoint(path: Path, config: Mapping[str, object], names: Collection[str]) -> None:
    """Refuse a checkpoint that is no decoder, by its config.json and the names of its tensors.

    Raises:
        ArtifactError: saying what it is.
    """
    kind = _checkpoint_kind(config, names)
    if kind is not None:
        raise ArtifactError(f"is {kind}", file=path, expected=EXPECTED)


def _gguf_kind(model: Gguf) -> str | None:
    said = model.text("general.type")
    if said not in (None, "", "model"):
        assert said is not None
        adapter = model.text("adapter.type")
        if said == "adapter" and adapter not in (None, "lora"):
            return f"an adapter ({adapter:.40})"
        return _TYPES.get(said, f"of type {said[:40]!r}")
    architecture = model.text("general.architecture") or ""
    return (
        _ARCHITECTURES.get(architecture)
        or _named([tensor.name for tensor in model.tensors])
        or _pooled(model, architecture)
        or _vocabulary(model)
    )


def _named(names: Collection[str]) -> str | None:
    """What the names of a GGUF's tensors say, where its metadata say nothing."""
    for pattern, kind in _ALL_NAMES:
        if names and all(re.search(pattern, name) for name in names):
            return kind
    for pattern, kind in _ANY_NAME:
        if any(re.search(pattern, name) for name in names):
            return kind
    draft = any(".nextn." in name for name in names) and not any(name.startswith("blk.0.") for name in names)
    return _HEAD if draft else None


_ALL_NAMES = (
    (r"\.(in_sum2|counts)$", _TYPES["imatrix"]),
    (r"^direction\.\d+$", _ARCHITECTURES["controlvector"]),
    (r"^((v|a)\.\w+\.|mm\.|resampler\.)", _TYPES["mmproj"]),
)
_ANY_NAME = (
    (r"\.lora_[ab]$", _LORA),
    (r"^cls(\.output|\.norm)?\.(weight|bias)$", _RERANKER),
    (r"^dense_\d+\.weight$", _EMBEDDING),
)


def _pooled(model: Gguf, architecture: str) -> str | None:
    """A model whose hidden states are pooled, labelled or read from both sides instead of giving a next token."""
    for key in ("pooling_type", "classifier.pooling_type"):
        pooling = model.integer(f"{architecture}.{key}")
        if pooling is not None and pooling > 0:
            return f"{_POOLING.get(pooling, _EMBEDDING)} ({architecture}.{key} is {pooling})"
    if f"{architecture}.classifier.output_labels" in model.fields:
        return f"{_RERANKER} (it has {architecture}.classifier.output_labels)"
    if model.get(f"{architecture}.attention.causal") is False:
        return f"an encoder ({architecture}.attention.causal is false)"
    return None


def _vocabulary(model: Gguf) -> str | None:
    return _TYPES["vocab"] if not model.tensors and "tokenizer.ggml.tokens" in model.fields else None


def _checkpoint_kind(config: Mapping[str, object], names: Collection[str]) -> str | None:
    if any(re.search(r"\.lora_(A|B|embedding_A|embedding_B)\b", name) for name in names):
        return _LORA
    if "_class_name" in config:  # diffusers name the class of a part so
        return f"a part of a diffusion pipeline ({str(config['_class_name'])[:40]})"
    said, model_type = config.get("architectures"), config.get("model_type")
    classes = [name[:60] for name in said if isinstance(name, str)] if isinstance(said, list) else []
    model_type = model_type if isinstance(model_type, str) else ""
    if model_type in _OTHER_MODELS:
        return f"{_OTHER_MODELS[model_type]} (model_type {model_type})"
    of_class = next((found for name in classes if (found := _class_kind(name, names)) is not None), None)
    if of_class is None and model_type in _ENCODERS:
        return f"an encoder (model_type {model_type})"
    return of_class or (_headless(classes, names) if of_class is None else None)


def _class_kind(name: str, names: Collection[str]) -> str | None:
    """What a class in `architectures` is; empty for a decoder, None where its name does not say."""
    kind = next((kind for pattern, kind in _CLASSES if re.search(pattern, name)), None)
    if kind == _VISION and any("embed_tokens" in tensor for tensor in names):
        return ""  # beside a language model
    return f"{kind} ({name})" if kind else kind


def _headless(classes: Collection[str], names: Collection[str]) -> str | None:
    if any(name.startswith("lm_head.") or name.endswith("output_layer.weight") for name in names):
        return None
    if "score.weight" in names:
        return f"{_RERANKER} (it has score.weight)"
    found = next((name for name in classes if _HEADLESS.fullmatch(name)), None)
    return f"{_EMBEDDING} ({found} has no output layer)" if found else None
