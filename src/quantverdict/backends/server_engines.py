"""Which program serves the OpenAI API, and what differs between those that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from quantverdict.backends.http import HttpClient
from quantverdict.backends.remote import Reply, is_loaded, read_reply

LLAMACPP = "llama.cpp server"
_GREEDY = {"presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True, slots=True)
class Engine:
    """The program behind an address.

    Attributes:
        name, version: of the program.
        model: the name it knows the model by.
        root: path of what it has beside the OpenAI API.
        settings: goes into every request: no penalty of a model's own defaults, no state of earlier requests.
        counts_end: whether its count of generated tokens holds the end token; None where that is not known.
        context: tokens a sequence may have there, None where it does not say.
        facts: what else it says that can change an answer.
    """

    name: str
    version: str
    model: str
    root: str
    settings: Mapping[str, float | bool]
    counts_end: bool | None = None
    context: int | None = None
    facts: Mapping[str, str | int | bool] = field(default_factory=dict)


class _Model(Reply):
    id: str
    owned_by: str = ""
    aliases: Annotated[tuple[str, ...], Field(strict=False)] = ()
    max_model_len: int | None = None


class _Models(Reply):
    data: list[_Model]


class _Generation(Reply):
    n_ctx: int


class _Props(Reply):
    build_info: str = "unknown"
    model_ftype: str | None = None
    total_slots: int
    default_generation_settings: _Generation


def identify(client: HttpClient, wanted: str) -> Engine:
    """Ask an address what it is.

    Args:
        client: open on it.
        wanted: the model's name; empty where it serves only one.

    Raises:
        EngineError: it does not answer, or has no such model.
    """
    where = client.base + "/models"
    models = read_reply(_Models, client.get(where), client.host + where).data
    by_name = {name: model for model in models for name in (model.id, *model.aliases)}
    only = models[0].id if len(models) == 1 else ""
    name = is_loaded(list(by_name), wanted or only, client.host + where)
    model = by_name[name]
    known = _KNOWN.get(model.owned_by, _other)
    return known(client, name, model, client.base.removesuffix("/v1"))


def _llamacpp(
    client: HttpClient,
    name: str,
    model: _Model,  # noqa: ARG001 - /props says more
    root: str,
) -> Engine:
    props = read_reply(_Props, client.get(root + "/props"), client.host + root + "/props")
    facts: dict[str, str | int | bool] = {"slots": props.total_slots}
    if props.model_ftype is not None:
        facts["model_type"] = props.model_ftype
    settings = _GREEDY | {"repeat_penalty": 1.0, "cache_prompt": False}
    context = props.default_generation_settings.n_ctx
    return Engine(LLAMACPP, props.build_info, name, root, settings, counts_end=True, context=context, facts=facts)


def _vllm(client: HttpClient, name: str, model: _Model, root: str) -> Engine:
    version = _version(client, root + "/version")
    settings = _GREEDY | {"repetition_penalty": 1.0}
    return Engine("vLLM server", version, name, root, settings, counts_end=True, context=model.max_model_len)


def _sglang(client: HttpClient, name: str, model: _Model, root: str) -> Engine:
    version = _version(client, root + "/server_info", root + "/get_server_info")
    settings = _GREEDY | {"repetition_penalty": 1.0}
    return Engine("SGLang server", version, name, root, settings, counts_end=True, context=model.max_model_len)


def _other(client: HttpClient, name: str, model: _Model, root: str) -> Engine:
    """LM Studio has a list of its own, with each model's quantization."""
    listed = (client.find(root + "/api/v0/models") or {}).get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    entry = next((entry for entry in entries if entry.get("id") == name), None)
    if entry is None:
        return Engine(model.owned_by or "OpenAI-compatible server", "unknown", name, root, _GREEDY)
    facts: dict[str, str | int | bool] = {
        key: entry[key] for key in ("quantization", "compatibility_type", "arch") if isinstance(entry.get(key), str)
    }
    context = entry.get("loaded_context_length")
    return Engine(
        "LM Studio", "unknown", name, root, _GREEDY, context=context if isinstance(context, int) else None, facts=facts
    )


def _version(client: HttpClient, *paths: str) -> str:
    found: Any = next((reply["version"] for path in paths if "version" in (reply := client.find(path) or {})), None)
    return found if isinstance(found, str) else "unknown"


_KNOWN: Mapping[str, Callable[[HttpClient, str, _Model, str], Engine]] = {
    "llamacpp": _llamacpp,
    "vllm": _vllm,
    "sglang": _sglang,
}
"""By what a server calls itself in its list of models."""
