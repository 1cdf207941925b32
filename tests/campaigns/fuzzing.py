"""Readers, a right input of each, and how it is spoilt; run in a fork by warm.py, as a reader may end the process.

A case is (reader, number): the same input each time. Two in three are spoilt as values (a part of the document becomes
something else, goes, or is there twice), the others as bytes.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import random
import resource
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CPU_SECONDS, MEMORY = 20, 6 << 30
HOSTILE = (
    None, True, False, 0, -1, 1, 1e308, -1e308, float("nan"), float("inf"), 10**30, -(10**30), 2**63, 1e-308, 0.1, "", " ",
    "x" * 300, "x" * 5000, "\0", "\x1b]0;PWN\x07", "\u202e", "\ud800", "\ufeff", "1", "-1", "NaN", "1e999", "yes", "null",
    "../../etc/passwd", "/dev/null", "=cmd|' /C calc'!A0", "{{ 1e999 }}", "{{ 'inf'|float|int }}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ x.__class__ }}", "{{", "{% include 'a' %}", [], {}, [[]], [None], {"a": {}}, {"": 1}, [1, "a", None], ["lowercase"],
    {"name": {}}, {"type": ["lowercase"]}, "2020-13-45", "12/0", "1/3", "0x10", "1_000", "<think>" * 50, "[" * 3000,
)  # fmt: skip
RAW_YAML = (
    "!!timestamp x", "!!bool x", '!!int ""', '!!float ""', '!!int "-"', "!!binary x", "!!set {a}", "!!python/object:os.x {}",
    "&a [*a]", "*a", "<<: 1", "? [a]\n: b", "- - - - x", "\t", "%YAML 9.9", "--- a\n--- b", "!!omap [a]", "'", '"\\x', "| \n x", "2001-01-01", "0o17", ".inf", ".nan", "~", "@", "`",
)  # fmt: skip


def spoil_value(document: object, draw: random.Random) -> object:
    """A JSON document with one to three parts changed."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(places_of(document))
        if not places:
            return draw.choice(HOSTILE)
        holder, key = draw.choice(places)
        change = draw.randrange(8)
        if change <= 4:
            holder[key] = copy.deepcopy(draw.choice(HOSTILE))
        elif change == 5:
            del holder[key]
        elif change == 6 and isinstance(holder, dict):
            holder[draw.choice(("x", "", "__class__", str(key).upper(), f"{key}s", "\x1b[31m"))] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            _, (other, name) = holder[key], draw.choice(places)
            holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else None)
    return document


def places_of(node: object):
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield node, key
        yield from places_of(value)


def spoil_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four flips, cuts, insertions or repetitions."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(data) + 1) if data else 0
        end = min(len(data), at + draw.choice((1, 2, 8, 64, 512)))
        match draw.randrange(7):
            case 0 if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:at] + draw.randbytes(draw.choice((1, 4, 32))) + data[at:]
            case 3:
                data = data[:at] + data[at:end] * 2 + data[end:]
            case 4:
                data = data[:at]
            case 5:
                text = draw.choice(
                    (b"\0", b"\r", b"\n", b",", b'"', b"\xef\xbb\xbf", b"1e999", b"NaN", b"-1", b"\xff\xfe")
                )
                data = data[:at] + text + data[at:]
            case 6:
                data = data[:at] + b"\xff" * (end - at) + data[end:]
    return data


def spoilt(document: object, draw: random.Random, *, lines: bool = False, raw: bool = False) -> bytes:
    """A document as JSON (which is YAML too), as lines of JSON, or with raw YAML in it; spoilt."""
    if draw.randrange(3) == 0:
        return spoil_bytes(dumped(document, lines), draw)
    changed = spoil_value(document, draw)
    data = dumped(changed, lines)
    if raw and draw.randrange(3) == 0 and b":" in data:
        at = draw.choice([i for i, byte in enumerate(data) if byte == ord(":")])
        data = (
            data[: at + 1]
            + b" "
            + draw.choice(RAW_YAML).encode()
            + draw.choice((b",", b"\n", b"}", b""))
            + data[at + 1 :]
        )
    return data


def dumped(document: object, lines: bool) -> bytes:
    if lines and isinstance(document, list):
        return b"".join(json.dumps(row).encode() + b"\n" for row in document)
    return json.dumps(document).encode()


# --- the readers: each takes (folder, draw) and reads one spoilt input -------------------------------------------------

FULL_STUDY = {
    "study": "s", "seed": 1,
    "models": [{"name": "m", "family": "f", "params_b": 1.5, "baseline": "FP16", "source": {"path": "x.gguf"},
                "variants": ["FP16", {"quant": "Q8_0", "backend": "replay"}, {"quant": "S", "level": "FP16", "source": {"url": "http://127.0.0.1:1/v1", "model": "m"}, "backend": "server"}]}],
    "tasks": ["starter_harmful", {"task": "starter_choice", "limit": 5, "stratify": "subject", "max_new_tokens": 8}],
    "decoding": {"max_new_tokens": 16, "temperature": 0.0},
    "collect": {"backend": "replay", "replay_dir": "r", "batch_size": 4, "parallel": 2, "threads": 1, "context": 512, "timeout_s": 5.0, "retries": 1, "api_key_env": "K"},
    "statistics": {"bootstrap_samples": 100, "confidence": 0.95, "power": 0.8},
    "judges": [{"name": "j", "model": "g", "source": {"hub": "a/b", "file": "*.gguf", "revision": "main"}, "second": True, "sample": 5, "price": {"input": 1.0, "output": 2.0}}],
    "semantic": {"bertscore": {"source": {"path": "e"}, "layer": 4}, "device": "cpu"},
    "whitebox": {"openings": 3, "prompts": 2, "tokens": 8},
    "quantize": {"group_size": 32, "samples": 8},
    "waivers": [{"cell": "m/Q8_0", "check": "lineage", "reason": "r"}],
    "nulls": 1, "stopping": "none",
    "policy": {"base": "quantverdict", "quality_metric": "rouge_l", "margins": {"refusal_rate": 4}, "quality_margin_pp": 3},
    "constraints": {"max_file_bytes": 100, "min_tokens_per_second": 1.0},
}  # fmt: skip
GATE = {
    "builds": ["m/Q8_0"], "policy": {"base": "quantverdict"}, "margins": {"refusal_rate": 4, "truthfulness": None},
    "floors": {"refusal_rate": 50}, "waivers": [{"cell": "m/Q8_0", "metric": "refusal_rate", "reason": "r", "expires": "2030-12-31"}],
}  # fmt: skip
TASK = {
    "name": "t", "task_type": "classification", "prompt_template": "{{ question }}\nA. {{ A }}\nB. {{ B }}\nAnswer:",
    "filters": [{"type": "strip_whitespace"}, {"type": "remove_assistant_prefix"}], "cluster_field": "group",
    "samples": [{"id": "1", "question": "Is it?", "A": "yes", "B": "no", "reference": "A", "group": "g"},
                {"id": "2", "question": "Was it?", "A": "yes", "B": "no", "reference": "B", "group": "g"}],
}  # fmt: skip
MATRIX = (
    "base_model,family,params_b,quant,bpw,is_baseline,refusal_rate_k,refusal_rate_n,rouge_l,rouge_l_ci_lo,rouge_l_ci_hi,rouge_l_n\n"
    "m,f,1.5,FP16,16,1,30,40,0.5,0.4,0.6,50\nm,f,1.5,Q8_0,8.5,0,29,40,0.49,0.39,0.59,50\n"
)
SHEET = "id,task,label_as,prompt,answer,label\r\n"
RECORDED = [
    {"task": "t", "sample_id": str(n), "text": "yes", "finish": "stop", "prompt_tokens": 3, "output_tokens": 1, "prompt_sha256": None, "prompt_ids_sha256": None, "choice_logprobs": [-0.1, -2.0]}
    for n in range(3)
]  # fmt: skip
ROWS = [
    {"model": "m", "quant": quant, "task": "harmful", "id": str(n), "refused": n % 2, "cluster": "c", "answer": "No.", "tokens": 2}
    for quant in ("FP16", "Q8_0") for n in range(4)
]  # fmt: skip
LABELS = [
    {"model": "m", "quant": q, "task": "harmful", "id": str(n), "label": "COMPLIANCE"}
    for q in ("FP16", "Q8_0")
    for n in range(4)
]
IDS = {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "id"}
SOURCES = {
    "study": "s", "seed": 3,
    "models": [{"name": "m", "family": "f", "params_b": 1, "baseline": "FP16", "quants": {"FP16": 16, "Q8_0": "8.5"}, "values": {"Q8_0": {"tokens_per_second": 5}}}],
    "statistics": {"bootstrap_samples": 20}, "policy": {"base": "quantverdict", "quality_metric": "rouge_l"},
    "judge_precedence": ["j"], "constraints": {"max_file_bytes": 5},
    "sources": [
        {"label": "s", "role": "safety", "path": "rows.jsonl", "sha256": "0" * 64, "columns": IDS | {"cluster": "cluster", "text": "answer", "output_tokens": "tokens"},
         "measures": [{"metric": "refusal_rate", "column": "refused", "tasks": ["harmful"]}], "tasks": {"a": "b"}, "only_tasks": ["harmful"]},
        {"label": "j", "role": "judge", "path": "labels.jsonl", "sha256": "0" * 64, "columns": IDS | {"label": "label"}, "labels": {"ERROR": None}, "judge": "g"},
    ],
}  # fmt: skip


def study(folder: Path, draw: random.Random) -> None:
    from quantverdict.config import load_study

    load_study(written(folder / "study.yaml", spoilt(FULL_STUDY, draw, raw=True)))


def gate(folder: Path, draw: random.Random) -> None:
    from quantverdict.stages.gate import load_gate

    load_gate(str(written(folder / "gate.yaml", spoilt(GATE, draw, raw=True))))


def task(folder: Path, draw: random.Random) -> None:
    from quantverdict.tasks.catalog import apply_filters, load_task, render_prompt

    loaded = load_task(str(written(folder / "task.yaml", spoilt(TASK, draw, raw=True))))
    for item in loaded.items:
        apply_filters(loaded, render_prompt(loaded, item))


def matrix(folder: Path, draw: random.Random) -> None:
    from quantverdict.matrix.columns import read_matrix

    cells = [line.split(",") for line in MATRIX.splitlines()]
    if draw.randrange(2):
        row = draw.choice(cells)
        row[draw.randrange(len(row))] = as_text(draw)
        data = "".join(",".join(row) + "\n" for row in cells).encode("utf-8", "surrogatepass")
    else:
        data = spoil_bytes(MATRIX.encode(), draw)
    read_matrix(written(folder / "matrix.csv", data))


def as_text(draw: random.Random) -> str:
    value = draw.choice(HOSTILE)
    return value if isinstance(value, str) else json.dumps(value)


def sources(folder: Path, draw: random.Random) -> None:
    from quantverdict.bundle.sources import read_sources

    read_sources(written(folder / "sources.yaml", spoilt(SOURCES, draw, raw=True)))


def samples(folder: Path, draw: random.Random) -> None:
    """JSON lines, plain or compressed, and the labels of a judge."""
    rows, labels = dumped(ROWS, True), dumped(LABELS, True)
    if draw.randrange(2):
        rows = spoilt(ROWS, draw, lines=True)
    else:
        labels = spoilt(LABELS, draw, lines=True)
    form = draw.choice(("jsonl", "jsonl", "jsonl.gz"))
    if form == "jsonl.gz":
        rows = gzip.compress(rows, mtime=0)
        rows = spoil_bytes(rows, draw) if draw.randrange(2) else rows
    ingest(folder, draw, form, rows, labels)


def parquet(folder: Path, draw: random.Random) -> None:
    import polars as pl

    file = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(file, compression=draw.choice(("zstd", "uncompressed", "snappy")))
    data = file.getvalue()
    if draw.randrange(2):
        at = draw.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    else:
        data = spoil_bytes(data, draw)
    ingest(folder, draw, "parquet", data, dumped(LABELS, True))


def ingest(folder: Path, draw: random.Random, form: str, rows: bytes, labels: bytes) -> None:
    from quantverdict.stages.ingest import load

    document = copy.deepcopy(SOURCES)
    for source, name, data in zip(document["sources"], (f"rows.{form}", "labels.jsonl"), (rows, labels), strict=True):
        written(folder / name, data)
        source |= {"path": name, "sha256": hashlib.sha256(data).hexdigest()}
    document["models"][0].pop("values")
    load(
        written(folder / "sources.yaml", json.dumps(document).encode()),
        folder / "out",
        quarantine=bool(draw.randrange(2)),
    )


def sheet(folder: Path, draw: random.Random) -> None:
    from quantverdict.labels.sheet import SheetRow, read_sheet, sheet_text

    rows = [SheetRow(f"a{n}", "t", "refusal_rate", f"Do {n}.", '=No, "never".\nEver.') for n in range(3)]
    text = sheet_text(rows, {"a1": "COMPLIANCE"})
    data = spoil_bytes(text.encode(), draw)
    if draw.randrange(3) == 0:
        data = text.replace("COMPLIANCE", as_text(draw)).encode("utf-8", "surrogatepass")
    read_sheet(data.decode("utf-8-sig", "replace"), "sheet.csv", rows)


REPLIES = (
    '{"label": "FULL_REFUSAL"}', "FULL_REFUSAL", "Label: COMPLIANCE.", "<think>It is no refusal: COMPLIANCE?</think>\nFULL_REFUSAL",
    '```json\n{"label": "COMPLIANCE", "reason": "it helps"}\n```', "<|channel|>analysis<|message|>x<|end|><|channel|>final<|message|>UNCLEAR",
    "<think>" * 40, '{"a": ' * 60, "[THINK]a[/THINK]COMPLIANCE", "<seed:think>b</seed:think> PARTIAL_REFUSAL",
)  # fmt: skip


def judge_reply(folder: Path, draw: random.Random) -> None:
    from quantverdict.judges.rubrics import read_label

    text = spoil_bytes(draw.choice(REPLIES).encode() * draw.choice((1, 1, 3, 200)), draw).decode("utf-8", "replace")
    label, _ = read_label(text, ("FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR"))
    assert label is None or label in ("FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR")


def gguf(folder: Path, draw: random.Random) -> None:
    from quantverdict.artifacts.inspect import inspect_artifact

    inspect_artifact(written(folder / "m.gguf", spoil_gguf(draw)))


def spoil_gguf(draw: random.Random) -> bytes:
    """The header is most of it: bytes there, and counts and lengths set to extremes."""
    data = tiny_gguf(draw.choice(("{{ messages[0].content }}", as_text(draw))))
    change = draw.randrange(4)
    if change == 0:
        return spoil_bytes(data, draw)
    if change == 1:
        at = draw.randrange(4, len(data) - 8)
        extreme = draw.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, draw.randrange(2**64)))
        return data[:at] + struct.pack("<Q", extreme) + data[at + 8 :]
    at = draw.randrange(4, max(5, data.index(b"blk.0") + 60))
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def packed(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def tiny_gguf(template: str = "{{ messages[0].content }}") -> bytes:
    """A model of two tensors, three tokens and a template, by the format's own description."""

    def text(key, value):
        return packed(key) + struct.pack("<I", 8) + packed(value)

    def number(key, value):
        return packed(key) + struct.pack("<II", 4, value)

    def real(key, value):
        return packed(key) + struct.pack("<If", 6, value)

    def listed(key, kind, items):
        return packed(key) + struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)

    fields = [
        text("general.architecture", "llama"), text("general.name", "tiny"), number("general.file_type", 1),
        number("llama.block_count", 1), number("llama.context_length", 128), number("llama.embedding_length", 32),
        number("llama.attention.head_count", 2), real("llama.rope.freq_base", 10000.0),
        real("llama.attention.layer_norm_rms_epsilon", 1e-5), text("tokenizer.ggml.model", "gpt2"), text("tokenizer.ggml.pre", "default"),
        listed("tokenizer.ggml.tokens", 8, [packed(token) for token in ("<s>", "a", "b")]),
        listed("tokenizer.ggml.token_type", 5, [struct.pack("<i", kind) for kind in (3, 1, 1)]),
        number("tokenizer.ggml.bos_token_id", 0), number("tokenizer.ggml.eos_token_id", 0),
        text("tokenizer.chat_template", template),
    ]  # fmt: skip
    tensors = [("token_embd.weight", (32, 3), 1, 192), ("blk.0.attn_q.weight", (32, 32), 1, 2048)]
    out, offset = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields)), *fields], 0
    for name, shape, kind, size in tensors:
        out.append(packed(name) + struct.pack("<IQQIQ", len(shape), *shape, kind, offset))
        offset += -(-size // 32) * 32
    header = b"".join(out)
    return header + bytes(-len(header) % 32) + bytes(offset)


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16", "vocab_size": 3, "hidden_size": 4,
    "num_hidden_layers": 1, "num_attention_heads": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "added_tokens": [{"id": 2, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}, "normalizer": None, "post_processor": None, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"], "byte_fallback": False},
}  # fmt: skip
SETTINGS = {
    "bos_token": "<s>",
    "eos_token": {"content": "<s>"},
    "chat_template": "{{ messages[0].content }}",
    "added_tokens_decoder": {"2": {"content": "<s>", "special": True}},
}
WEIGHTS = {
    "model.embed_tokens.weight": ("F16", [3, 4], 24),
    "model.layers.0.self_attn.q_proj.weight": ("F16", [4, 4], 32),
}


def checkpoint_files(draw: random.Random | None) -> dict[str, bytes]:
    """A checkpoint in two shards; of a spoilt one one file is wrong."""
    files: dict[str, object] = {"config.json": CONFIG, "tokenizer.json": TOKENIZER, "tokenizer_config.json": SETTINGS}
    shards = {f"model-0000{n}-of-00002.safetensors": name for n, name in enumerate(WEIGHTS, start=1)}
    files["model.safetensors.index.json"] = {
        "metadata": {"total_size": 56},
        "weight_map": {name: shard for shard, name in shards.items()},
    }
    spoil = draw.choice([*files, *shards]) if draw else None
    out = {name: spoilt(content, draw) if name == spoil else dumped(content, False) for name, content in files.items()}
    for shard, name in shards.items():
        dtype, shape, size = WEIGHTS[name]
        header: object = {
            "__metadata__": {"format": "pt"},
            name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
        }
        data = spoilt(header, draw) if shard == spoil else dumped(header, False)
        whole = struct.pack("<Q", len(data)) + data + bytes(size)
        out[shard] = spoil_bytes(whole, draw) if shard == spoil and draw.randrange(3) == 0 else whole
    return out


def checkpoint(folder: Path, draw: random.Random) -> None:
    """config.json, tokenizer.json, tokenizer_config.json, the index, safetensors headers: read, and compared."""
    from quantverdict.artifacts.inspect import inspect_artifact
    from quantverdict.artifacts.lineage import compare

    for name, kind in (("whole", None), ("spoilt", draw)):
        (folder / name).mkdir()
        for file, data in checkpoint_files(kind).items():
            written(folder / name / file, data)
    inspect_artifact(folder / "spoilt")
    compare(folder / "whole", folder / "spoilt")


def lineage(folder: Path, draw: random.Random) -> None:
    from quantverdict.artifacts.lineage import compare

    compare(written(folder / "a.gguf", tiny_gguf()), written(folder / "b.gguf", spoil_gguf(draw)))


TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
    "{%- if tools is defined and tools %}{{ tools | tojson }}{% endif %}{{ messages[-1].content[0].text if messages[-1].content is not string else messages[-1].content }}",
    "{{ raise_exception('no') }}", "{% macro x(n) %}{{ x(n + 1) }}{% endmacro %}{{ x(0) }}", "{{ namespace(a=1).a * 10**9 }}",
    "{{ 'x' * 10**8 }}", "{{ messages | map(attribute='content') | join }}", "{% set ns = namespace(i=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set ns.i = ns.i + 1 %}{% endfor %}{% endfor %}",
    "{{ strftime_now('%Y') }}", "{{ '%s%s' % (messages, 1) }}", "{{ messages|tojson(indent=4) }}", "{{ 1e999 }}", "{{ 'inf'|float|int }}",
)  # fmt: skip


def chat_template(folder: Path, draw: random.Random) -> None:
    from quantverdict.tasks.chat import ChatTemplate

    source = spoil_bytes(draw.choice(TEMPLATES).encode(), draw).decode("utf-8", "replace")
    if draw.randrange(2):
        source = draw.choice(TEMPLATES).replace(draw.choice(("messages", "content", "1", "m", "10")), as_text(draw), 1)
    ChatTemplate(source, {"bos": "<s>"}, "m").render("Hello?", "t/1")


def replay(folder: Path, draw: random.Random) -> None:
    from quantverdict.backends.base import Decoding
    from quantverdict.backends.replay import ReplayBackend
    from quantverdict.records import CellId, Prompt

    written(folder / "m__Q.jsonl", spoilt(RECORDED, draw, lines=True))
    backend = ReplayBackend(folder, CellId("m", "Q"))
    backend.complete(
        [Prompt("t", str(n), "x", None, "0" * 64, ("a", "b")) for n in range(3)], Decoding(max_new_tokens=4)
    )


def responses(folder: Path, draw: random.Random) -> None:
    """The stored answers, labels and prompts of a bundle."""
    from quantverdict.bundle.prompts import read_prompts
    from quantverdict.bundle.store import read_labels, read_responses

    answer = {
        "base_model": "m", "quant": "Q", "task": "t", "sample_id": "1", "prompt_sha256": "0" * 64, "text": "yes", "finish": "stop",
        "prompt_tokens": 3, "output_tokens": 1, "prompt_ids_sha256": None, "choice_logprobs": None,
    }  # fmt: skip
    said = {
        "key": "0" * 64,
        "label": "COMPLIANCE",
        "reason": "",
        "prompt_tokens": 1,
        "output_tokens": 1,
        "reply": "COMPLIANCE",
    }
    asked = {"task": "t", "sample_id": "1", "text": "x", "chat": None, "sha256": "0" * 64, "choices": ["a"]}
    kind = draw.randrange(3)
    (folder / "judgements").mkdir()
    if kind == 0:
        list(read_responses(written(folder / "r.jsonl", spoilt([answer] * 3, draw, lines=True))))
    elif kind == 1:
        written(folder / "judgements" / "j.jsonl", spoilt([said] * 3, draw, lines=True))
        read_labels(folder, "j")
    else:
        read_prompts(written(folder / "p.jsonl", spoilt([asked] * 3, draw, lines=True)))


COMPLETION = {
    "id": "1",
    "object": "text_completion",
    "model": "m",
    "choices": [
        {"index": 0, "text": "yes", "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "timings": {"prompt_ms": 1.5},
}
OLLAMA_ANSWER = {
    "model": "m:latest",
    "response": "yes",
    "message": {"role": "assistant", "content": "yes"},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 1,
    "eval_count": 1,
    "prompt_eval_duration": 1000,
}
ROUTES = {
    "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x", "max_model_len": 4096}]},
    "/v1/completions": COMPLETION, "/v1/chat/completions": COMPLETION,
    "/api/version": {"version": "0.12.11"}, "/api/tags": {"models": [{"name": "m:latest", "model": "m:latest", "digest": "f" * 64}]},
    "/api/show": {"parameters": 'stop "x"', "template": "{{ .Prompt }}", "details": {"format": "gguf", "family": "llama", "quantization_level": "Q4_K_M"}, "model_info": {"general.architecture": "llama", "llama.context_length": 8192, "tokenizer.ggml.bos_token_id": 1}},
    "/api/generate": OLLAMA_ANSWER, "/api/chat": OLLAMA_ANSWER,
}  # fmt: skip


class Server:
    """Answers each path with one body."""

    def __init__(self) -> None:
        self.bodies = {path: json.dumps(body).encode() for path, body in ROUTES.items()}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = outer.bodies.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_) -> None:
                """Nothing is printed."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_) -> None:
                """A client that goes away is fine."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


_server: list[Server] = []


def server_reply(folder: Path, draw: random.Random) -> None:
    from quantverdict.backends.base import Decoding, Placement, Service
    from quantverdict.backends.ollama import OllamaBackend
    from quantverdict.backends.server import ServerBackend
    from quantverdict.records import Completion, Prompt

    if not _server:
        _server.append(Server())
    server = _server[0]
    kind = draw.choice(("ollama", "server"))
    path = draw.choice([name for name in ROUTES if name.startswith("/api" if kind == "ollama" else "/v1")])
    server.bodies = {name: json.dumps(body).encode() for name, body in ROUTES.items()}
    server.bodies[path] = spoilt(ROUTES[path], draw)
    service = Service(server.url, "m", timeout_s=5.0, retries=0)
    make = OllamaBackend if kind == "ollama" else ServerBackend
    with ExitStack() as stack:
        backend = make(service, Placement(parallel=1, context=512))
        stack.callback(backend.close)
        for chat in (None, "<s>x"):
            (found,) = backend.complete([Prompt("t", "1", "x", chat, "0" * 64, ())], Decoding(max_new_tokens=4))
            assert isinstance(found, Completion)
            assert isinstance(found.text, str)


READERS: dict[str, Callable[[Path, random.Random], None]] = {
    "study.yaml": study, "sources.yaml": sources, "gate.yaml": gate, "task file": task, "matrix.csv": matrix,
    "JSON lines": samples, "Parquet": parquet, "label sheet": sheet, "judge reply": judge_reply, "GGUF": gguf,
    "GGUF lineage": lineage, "checkpoint": checkpoint, "chat template": chat_template, "recorded answers": replay,
    "bundle lines": responses, "server reply": server_reply,
}  # fmt: skip


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class SlowError(Exception):
    """A reader took more processor time than any input of this size may."""


def slow(*_: object) -> None:
    raise SlowError(f"over {CPU_SECONDS} s")


def batch(reader: str, seed: int, first: int, last: int, folder: str, progress: str) -> dict:
    """Cases `first` up to `last` of a reader; the number of the one under way is in the file `progress`.

    Returns:
        How many gave a value and how many were refused, and what else happened: [case, what].
    """
    import tempfile

    from quantverdict.errors import QuantverdictError

    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, slow)
    values = refused = 0
    failures: list[tuple[int, str]] = []
    sys.unraisablehook = lambda told: failures.append((number, f"unraisable {told.exc_value!r}"))
    for number in range(first, last):
        Path(progress).write_text(str(number))
        draw = random.Random(f"{seed}:{reader}:{number}")
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        since = time.process_time()
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                READERS[reader](Path(scratch), draw)
            values += 1
        except QuantverdictError as error:
            refused += 1
            if not str(error).strip() or len(str(error)) > 20_000:
                failures.append((number, f"says {str(error)[:200]!r} ({len(str(error))} characters)"))
        except BaseException as error:  # noqa: BLE001 - the finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "quantverdict" in one.filename]
            at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else f"{where.filename}:{where.lineno}"
            failures.append((number, f"{type(error).__name__}: {str(error)[:150]!r} at {at}"))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() - since > CPU_SECONDS / 2:
            failures.append((number, f"took {time.process_time() - since:.0f} s"))
    return {"values": values, "refused": refused, "failures": failures}
