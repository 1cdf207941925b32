"""Run by another interpreter: settings as a JSON file in, a result as a JSON file out.

Imports nothing of quantverdict, so that it works in an environment that holds a quantiser alone. What it raises ends
up in the result as one line, {"error": "TYPE: text"}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

# ruff: noqa: ANN401 - models, tokenizers and dtypes of packages that have no types


Settings = dict[str, Any]
_PACKAGES = ("llmcompressor", "gptqmodel", "compressed-tensors", "transformers", "torch")


def dequantize(settings: Settings) -> Settings:
    """Write the GGUF file `source` as a checkpoint to `out`: matrices in `dtype`, all else in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = Path(settings["source"])
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    exact = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(**place, **exact, trust_remote_code=False)
    _store_matrices_in(model, getattr(torch, settings["dtype"]))
    model.save_pretrained(settings["out"])
    AutoTokenizer.from_pretrained(**place, trust_remote_code=False).save_pretrained(settings["out"])
    return {"dtype": settings["dtype"]}


def quantize(settings: Settings) -> Settings:
    """Write the checkpoint `source` with weights of few bits to `out`, by `tool`."""
    import torch
    from transformers import AutoTokenizer

    started = time.monotonic()
    torch.manual_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["source"], trust_remote_code=False)
    samples = [_token_ids(tokenizer, sample, settings["sequence_length"]) for sample in settings["samples"]]
    made = {"llmcompressor": _by_llmcompressor, "gptqmodel": _by_gptqmodel}[settings["tool"]](settings, samples)
    tokenizer.save_pretrained(settings["out"])
    return made | {"tokens": sum(map(len, samples)), "seconds": round(time.monotonic() - started, 1)}


def prove(settings: Settings) -> Settings:
    """Load the checkpoint `source` and generate one token: what loads may still fail on its first one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

    tokenizer = AutoTokenizer.from_pretrained(settings["source"], trust_remote_code=False)
    config = AutoConfig.from_pretrained(settings["source"], trust_remote_code=False)
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    options = {}
    if method == "compressed-tensors":
        # Decoded while they are loaded: some releases of Transformers expect packed zero points in another shape else.
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        settings["source"], dtype=_compute_dtype(), trust_remote_code=False, weights_only=True, **options
    ).to(_device())
    if _device() == "cpu":
        model = model.float()  # 4-bit floats are decoded to bfloat16, whatever was asked for
    inputs = tokenizer("The capital of France is", return_tensors="pt", return_token_type_ids=False).to(model.device)
    with torch.no_grad():
        logits = model(**inputs).logits
        made = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    if not logits.isfinite().all():
        raise ValueError("the build's first logits are not finite")
    new = made[0, inputs["input_ids"].shape[1] :].tolist()
    if len(new) != 1:
        raise ValueError(f"the build generated {len(new)} tokens where one was asked for")
    return {"token": new[0], "text": tokenizer.decode(new)}


def _by_llmcompressor(settings: Settings, samples: list[list[int]]) -> Settings:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from torch.utils.data import DataLoader
    from transformers import AutoConfig, AutoModelForCausalLM

    if not torch.accelerator.is_available():
        # It pins memory for transfers to an accelerator, which fails where there is none.
        IntermediatesCache.pin_memory = lambda *_arguments, **_named: None
    stored = AutoConfig.from_pretrained(settings["source"], trust_remote_code=False).dtype or torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        settings["source"], dtype=_compute_dtype(), trust_remote_code=False, weights_only=True
    )
    ignored = sorted(set(_output_layers(model)))
    _refuse_rows(model, ignored, settings["group_size"] or 1)
    level, rule = settings["level"], _rule(settings, ignored)
    recipe = {"GPTQ": lambda: [GPTQModifier(**rule)], "AWQ": lambda: [AWQModifier(), QuantizationModifier(**rule)]}.get(
        level, lambda: [QuantizationModifier(**rule)]
    )()
    batches = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))} for ids in samples]
    data = {"dataset": DataLoader(batches, batch_size=None), "num_calibration_samples": len(batches)} if batches else {}
    oneshot(model=model, recipe=recipe, **data)
    _store_matrices_in(model, stored)
    model.save_pretrained(settings["out"], save_compressed=True)
    return {
        "symmetric": level != "AWQ",
        "unquantized": ignored,
        "compute_dtype": _name(_compute_dtype()),
        "stored_dtype": _name(stored),
    }


def _rule(settings: Settings, ignored: list[str]) -> Settings:
    """Which layers get which numbers: integers in groups of the size that was chosen, else a scheme by its name."""
    if settings["level"] not in ("AWQ", "GPTQ", "W4A16"):
        return {"targets": ["Linear"], "scheme": settings["level"], "ignore": ignored}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": settings["level"] != "AWQ"}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": settings["group_size"]}}
    return {"config_groups": {"group_0": group}, "ignore": ignored}


def _by_gptqmodel(settings: Settings, samples: list[list[int]]) -> Settings:
    if (os.cpu_count() or 1) <= 2:
        # Its pool for loading wants two workers, and takes fewer than that on so small a machine.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    gptqmodel = importlib.import_module("gptqmodel")
    # The tool's own choice on a CPU, bfloat16, takes four times as long.
    dtype = _compute_dtype()
    how = gptqmodel.QuantizeConfig(bits=4, group_size=settings["group_size"])
    options = {} if dtype == "auto" else {"dtype": dtype}
    model = gptqmodel.GPTQModel.load(settings["source"], how, trust_remote_code=False, **options)
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples], batch_size=1)
    model.save(settings["out"])
    return {"symmetric": True, "unquantized": ["lm_head"], "compute_dtype": _name(dtype), "stored_dtype": _name(dtype)}


def _refuse_rows(model: Any, ignored: list[str], group_size: int) -> None:
    """Name the layers whose rows the groups do not divide, before hours are spent on them."""
    import torch

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    if all(name in ignored for name, _layer in layers):
        raise ValueError("the model has no linear layers that could be quantised")
    wrong = {
        name: layer.in_features for name, layer in layers if name not in ignored and layer.in_features % group_size
    }
    if wrong:
        shown = ", ".join(f"{name} ({length})" for name, length in list(wrong.items())[:4])
        raise ValueError(f"groups of {group_size} do not divide the rows of {len(wrong)} layers: {shown}")


def _output_layers(model: Any) -> Iterator[str]:
    """What stays unquantised beside the embeddings: the output layer, and the routers of experts."""
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if layer is head or name.endswith((".gate", ".router", ".shared_expert_gate")):
            yield name


def _store_matrices_in(model: Any, dtype: Any) -> None:
    """Embeddings and scales as the source keeps its matrices; norms and biases stay exact, they weigh nothing."""
    for layer in model.modules():
        low_bit = hasattr(layer, "quantization_scheme")
        for name, weight in layer.named_parameters(recurse=False):
            if weight.ndim > 1 and weight.is_floating_point() and not (low_bit and name == "weight"):
                weight.data = weight.data.to(dtype)


def _token_ids(tokenizer: Any, sample: str | list[list[str]], length: int) -> list[int]:
    """A text, or conversations of one request and one answer each, one after the other."""
    if isinstance(sample, str):
        return list(tokenizer(sample, truncation=True, max_length=length)["input_ids"])
    if not tokenizer.chat_template:
        return _token_ids(tokenizer, "\n\n".join(part for turn in sample for part in turn), length)
    texts = (_conversation(tokenizer, request, answer) for request, answer in sample)
    return list(tokenizer("".join(texts), add_special_tokens=False, truncation=True, max_length=length)["input_ids"])


def _conversation(tokenizer: Any, request: str, answer: str) -> str:
    """In the model's chat template, given as parts where it leaves texts out; plain where it shows neither."""
    from jinja2 import TemplateError

    for in_parts in (False, True):
        said = [[{"type": "text", "text": text}] if in_parts else text for text in (request, answer)]
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
        try:
            text: str = tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            continue
        if request.strip() in text and answer.strip() in text:
            return text
    return f"{request}\n\n{answer}\n\n"


def _compute_dtype() -> Any:
    """The source's own on an accelerator; float32 on a CPU, where half precision is slow and changes answers."""
    import torch

    return "auto" if torch.accelerator.is_available() else torch.float32


def _device() -> str:
    import torch

    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


ACTIONS: dict[str, Callable[[Settings], Settings]] = {"dequantize": dequantize, "quantize": quantize, "prove": prove}


def main(settings_file: str, result_file: str) -> None:
    """Do what the settings say under `action`; write what came of it, or why nothing did."""
    result = Path(result_file)

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            text = "its files name code of their own, which is never run"
        result.write_text(
            json.dumps({"error": f"{kind.__name__}: {text}" if text else kind.__name__}), encoding="utf-8"
        )
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
    settings = json.loads(Path(settings_file).read_text(encoding="utf-8"))
    outcome = ACTIONS[settings["action"]](settings)
    result.write_text(json.dumps(outcome | {"versions": _versions(), "device": _device()}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
