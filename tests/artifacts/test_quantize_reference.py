"""Every level against llama.cpp's own quantiser, tensor by tensor and byte by byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantverdict.artifacts.gguf_mix import LEVELS
from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, Gguf, open_gguf
from quantverdict.artifacts.imatrix import IMATRIX_KEY, IMATRIX_SHA256_KEY, ImportanceMatrix
from quantverdict.artifacts.quantize import DEQUANTIZED_KEY, SOURCE_KEY, TENSOR_TYPES_KEY, make_level
from quantverdict.errors import ArtifactError

OURS = {
    SOURCE_KEY,
    DEQUANTIZED_KEY,
    IMATRIX_SHA256_KEY,
    TENSOR_TYPES_KEY,
    *(f"{IMATRIX_KEY}{name}" for name in ("file", "dataset", "entries_count", "chunks_count")),
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads, untied": {"layers": 9, "kv_heads": 2},
    "plain heads, tied": {"layers": 3, "kv_heads": 8, "tied": True},
    "rows that K-quants do not fit": {"width": 96, "heads": 3, "kv_heads": 1, "ffn": 320, "tied": True},
    "only ffn_down fits": {"width": 288, "heads": 9, "kv_heads": 3, "ffn": 768, "layers": 30, "vocab": 32},
    "16 and more layers": {"layers": 17, "kv_heads": 4},
    "8 experts": {"experts": 8, "layers": 8},
    "4 experts": {"experts": 4, "kv_heads": 8},
    "70B by its layers": {"layers": 80, "ffn": 256, "kv_heads": 4, "vocab": 32},
    "65B by its layers": {"layers": 80, "ffn": 256, "kv_heads": 8, "vocab": 32},
    "qwen2": {"arch": "qwen2", "layers": 6, "kv_heads": 2},
    "qwen2 of 72B": {"arch": "qwen2", "layers": 80, "ffn": 256, "kv_heads": 4, "vocab": 32},
    "falcon": {"arch": "falcon", "layers": 17, "fused": True, "kv_heads": 1, "tied": True},
    "falcon, untied": {"arch": "falcon", "layers": 5, "fused": True, "kv_heads": 1},
    "fused attention": {
        "arch": "phi3", "layers": 5, "fused": True, "kv_heads": 8, "extra": {"phi3.attention.sliding_window": 64},
    },
    "heads per layer": {"layers": 2, "kv_heads": [2, 4]},
    "bfloat16 source": {"wide": "BF16"},
    "float32 source": {"wide": "F32"},
}  # fmt: skip


def differences(ours: Gguf, theirs: Gguf) -> list[str]:
    """Everything in which a made level is not llama.cpp's, but for the fields that this package adds."""
    found = []
    if [key for key in ours.fields if key not in OURS] != [key for key in theirs.fields if key not in OURS]:
        found.append("metadata keys")
    for key in set(theirs.fields) - OURS:
        spans = [file.data[file.fields[key].start : file.fields[key].end] for file in (ours, theirs)]
        found += [key] if spans[0] != spans[1] else []
    if [item.name for item in ours.tensors] != [item.name for item in theirs.tensors]:
        found.append("tensor order")
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        if (mine.shape, mine.type.name) != (other.shape, other.type.name):
            found.append(f"{mine.name} {mine.type.name} instead of {other.type.name}")
        elif ours.data[mine.start : mine.start + mine.nbytes] != theirs.data[other.start : other.start + other.nbytes]:
            found.append(f"{mine.name} data")
    if ours.tensors and len(ours.data) - ours.tensors[0].start != len(theirs.data) - theirs.tensors[0].start:
        found.append("length of the data")
    return found


FEW = ("Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ4_XS", "IQ3_XS", "IQ3_M", "IQ2_M", "IQ1_M")
"""Levels of a model of many layers."""


ALIKE = {
    "bfloat16 source",
    "float32 source",
    "65B by its layers",
    "70B by its layers",
    "qwen2 of 72B",
    "heads per layer",
}
"""Shapes whose levels an importance matrix changes as it does those of the others."""
CASES = [(name, weighted) for name in SHAPES for weighted in (False, True)
         if not (weighted and name in ALIKE) or os.environ.get("QUANTVERDICT_CAMPAIGN")]  # fmt: skip


@pytest.mark.parametrize(("name", "weighted"), CASES, ids=[f"{n}-{('plain', 'imatrix')[w]}" for n, w in CASES])
def test_every_level_of_a_small_model_is_llama_cpps(
    name: str,
    weighted: bool,
    write_model: Callable[..., Path],
    importance: Callable[..., Any],
    reference: Callable[..., set[Path]],
    tmp_path: Path,
) -> None:
    """All levels, with rows that fit K-quants, that do not, grouped heads, experts, and other architectures; what
    llama.cpp refuses is refused, and nothing else."""
    source = write_model(tmp_path / "source.gguf", **SHAPES[name])
    levels = [*(LEVELS if SHAPES[name].get("layers", 4) < 80 else FEW)]
    if name not in ("grouped heads, untied", "8 experts"):  # tables of the lowest take a quarter of a minute a process
        levels = [level for level in levels if level[:3] not in ("IQ1", "IQ2")]
    if weighted:  # what it changes
        levels = [level for level in levels if level[0] == "I" or level in ("Q4_0", "Q5_0", "Q4_K_M", "Q2_K", "Q2_K_S")]
    values = importance(source) if weighted else None
    imatrix = ImportanceMatrix(tmp_path / "i.gguf", "0" * 64, values, "text", 3) if values else None
    jobs = [(source, LEVELS[level].file_type, tmp_path / f"{level}.ref") for level in levels]
    refused = reference(jobs, imatrix=values)
    for level in levels:
        if tmp_path / f"{level}.ref" in refused:
            with pytest.raises(ArtifactError, match=r"needs an importance matrix|cannot be stored"):
                make_level(source, level, tmp_path / f"{level}.gguf", imatrix=imatrix)
            continue
        made = make_level(source, level, tmp_path / f"{level}.gguf", imatrix=imatrix)
        assert (level, differences(open_gguf(made), open_gguf(tmp_path / f"{level}.ref"))) == (level, [])


MIXES: dict[str, dict[str, str]] = {
    "by role": {"ffn_down": "q6_k", "attn_v": "Q8_0", "token_embd": "Q5_K"},
    "by layer, the first counts": {"blk\\.[01]\\.": "Q8_0", "ffn_(up|gate)": "Q3_K", "blk.1.ffn_up": "Q2_K"},
    "kept wide": {"attn_": "F16", "output": "BF16"},
    "iq": {"ffn_": "IQ4_XS", "attn_k": "IQ3_S"},
}


@pytest.mark.parametrize("level", ["Q4_K_M", "Q2_K", "IQ4_XS"])
@pytest.mark.parametrize("name", MIXES)
def test_types_by_name_are_llama_cpps(
    name: str, level: str, write_model: Callable[..., Path], reference: Callable[..., set[Path]], tmp_path: Path
) -> None:
    """As llama-quantize takes --tensor-type: what a pattern finds is not counted where the mix goes by its place."""
    source, mix = write_model(tmp_path / "source.gguf", layers=9, kv_heads=2), MIXES[name]
    numbers = {pattern: TYPE_BY_NAME[kind.upper()].number for pattern, kind in mix.items()}
    assert not reference([(source, LEVELS[level].file_type, tmp_path / "theirs.gguf")], tensor_types=numbers)
    made = make_level(source, level, tmp_path / "ours.gguf", tensor_types=mix)
    assert differences(open_gguf(made), open_gguf(tmp_path / "theirs.gguf")) == []
    said = open_gguf(made).text(TENSOR_TYPES_KEY)
    assert said is not None
    assert all(f"{pattern}={kind}" in said for pattern, kind in mix.items())


def test_types_of_rows_that_do_not_fit_fall_back_as_llama_cpps(
    write_model: Callable[..., Path], reference: Callable[..., set[Path]], tmp_path: Path
) -> None:
    source = write_model(tmp_path / "source.gguf", width=288, heads=9, kv_heads=3, ffn=768)
    reference([(source, 7, tmp_path / "theirs.gguf")], tensor_types={"ffn": TYPE_BY_NAME["Q4_K"].number})
    made = make_level(source, "Q8_0", tmp_path / "ours.gguf", tensor_types={"ffn": "Q4_K"})
    assert differences(open_gguf(made), open_gguf(tmp_path / "theirs.gguf")) == []


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"ffn": "Q4_Q"}, "no tensor type 'Q4_Q'"),
        ({"ffn(": "Q4_K"}, "is no regular expression"),
        ({"f": "NVFP4"}, "no"),
    ],
)
def test_a_type_or_pattern_that_is_none_is_one_line(
    mix: dict[str, str], words: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=words):
        make_level(tiny, "Q8_0", tmp_path / "ours.gguf", tensor_types=mix)
    assert not (tmp_path / "ours.gguf").exists()


@pytest.mark.parametrize(
    "level", ["Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_S", "Q2_K"]
)
def test_a_low_bit_source_is_decoded_as_llama_cpp_decodes_it(
    level: str, tiny: Path, reference: Callable[..., None], tmp_path: Path
) -> None:
    """From every type that a level can be stored in, to F16, to more and to fewer bits."""
    source = make_level(tiny, level, tmp_path / "source.gguf")
    targets = ("FP16", "F32", "Q8_0", "Q4_K_M", "Q2_K")
    reference([(source, LEVELS[target].file_type, tmp_path / f"{target}.ref") for target in targets])
    for target in targets:
        made = make_level(source, target, tmp_path / f"{target}.gguf")
        assert (target, differences(open_gguf(made), open_gguf(tmp_path / f"{target}.ref"))) == (target, [])


@pytest.mark.engine
def test_every_level_of_the_demo_model_is_llama_cpps(
    demo_gguf: Path, reference: Callable[..., None], tmp_path: Path
) -> None:
    """The package's 4-bit file to FP16, and the whole ladder of the demo from that."""
    base = make_level(demo_gguf, "FP16", tmp_path / "FP16.gguf")
    levels = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
    reference([(demo_gguf, LEVELS["FP16"].file_type, tmp_path / "FP16.ref")])
    assert differences(open_gguf(base), open_gguf(tmp_path / "FP16.ref")) == []
    (tmp_path / "FP16.ref").unlink()
    for level in levels:
        made, theirs = make_level(base, level, tmp_path / "made.gguf"), tmp_path / "theirs.gguf"
        reference([(base, LEVELS[level].file_type, theirs)])
        assert (level, differences(open_gguf(made), open_gguf(theirs))) == (level, [])
