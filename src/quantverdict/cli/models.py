"""Commands on models themselves, without a study: make builds, look at them, trace them, compare them along a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantverdict.cli.options import DocumentedCommand, Existing, json_option
from quantverdict.cli.output import progress, show
from quantverdict.errors import QuantverdictError
from quantverdict.records import CHECKPOINT_LEVELS, GGUF_LEVELS


@click.command(cls=DocumentedCommand)
@click.argument("model", type=Existing)
@click.option(
    "--to",
    "levels",
    required=True,
    help=f"Levels to make, separated by commas, of {', '.join(GGUF_LEVELS + CHECKPOINT_LEVELS)}.",
)
@click.option("--out", type=Existing, required=True, help="The folder to write to.")
@click.option("--imatrix", type=Existing, help="GGUF: an importance matrix of the model; IQ1 to IQ3 need one.")
@click.option("--imatrix-text", type=Existing, help="GGUF: a text to compute the importance matrix on, kept in --out.")
@click.option("--tensor-type", "types", multiple=True, metavar="PATTERN=TYPE", help="GGUF: a type by tensor name.")
@click.option("--group-size", type=int, help="AWQ, GPTQ: weights that share a scale. Default: the most that fit.")
@click.option("--calibration", default="default", help="AWQ, GPTQ: default, safety, or a text file.")
@click.option("--samples", type=int, default=128, help="AWQ, GPTQ: number of calibration texts.")
@json_option
def quantize(
    model: Path, levels: str, out: Path, *, types: tuple[str, ...], as_json: bool, **how: Path | str | int | None
) -> None:
    """Make GGUF levels, AWQ, GPTQ, FP8 and FP4 builds from a model."""
    from quantverdict import api

    wanted = [level.strip() for level in levels.split(",")]
    given = {name: str(value) if isinstance(value, Path) else value for name, value in how.items() if value is not None}
    named = {"tensor_types": dict(_pattern_and_type(one) for one in types)} if types else {}
    made = api.quantize(model, wanted, out, progress=progress(), **given, **named)
    show({level: str(path) for level, path in made.items()}, lambda: [str(path) for path in made.values()], as_json)


def _pattern_and_type(given: str) -> tuple[str, str]:
    pattern, _, kind = given.rpartition("=")
    if not pattern or not kind:
        raise QuantverdictError(f"--tensor-type: {given!r}; expected PATTERN=TYPE, such as ffn_down=Q6_K")
    return pattern, kind


@click.command("list", cls=DocumentedCommand)
@click.argument("places", nargs=-1, required=True, metavar="PLACE...")
@json_option
def list_(places: tuple[str, ...], as_json: bool) -> None:
    """List the builds in each PLACE: level, bits, size, parts; of the hub nothing is fetched.

    A PLACE is a GGUF file, a folder of them, a checkpoint, owner/name of the hub, or ollama:TAG.
    """
    from quantverdict.artifacts.discovery import build_lines, build_rows, discover

    found, left = discover(places)
    show(build_rows(found, left), lambda: build_lines(found, left), as_json)


@click.command(cls=DocumentedCommand)
@click.argument("artifact", type=Existing)
@json_option
def inspect(artifact: Path, as_json: bool) -> None:
    """Show what a GGUF file or a checkpoint is.

    Its hash, true bits per weight, tensor types and chat template.
    """
    from quantverdict.artifacts.builds import artifact_json
    from quantverdict.artifacts.gguf import describe
    from quantverdict.artifacts.inspect import inspect_artifact

    found = inspect_artifact(artifact)
    show(artifact_json(found), lambda: describe(found), as_json)


@click.command(cls=DocumentedCommand)
@click.argument("baseline", type=Existing)
@click.argument("variants", type=Existing, nargs=-1, required=True)
@click.option("--imatrix", type=Existing, help="GGUF: what the variants were made with, if it is not beside them.")
@click.option("--remake", is_flag=True, help="GGUF: encode every weight again, whole, and compare the bytes.")
@json_option
def lineage(baseline: Path, variants: tuple[Path, ...], *, imatrix: Path | None, remake: bool, as_json: bool) -> None:
    """Say whether each VARIANT comes from the BASELINE.

    With the weights and settings that say so.
    """
    from quantverdict.artifacts import lineage as lineages

    found = [lineages.compare(baseline, variant, imatrix, remake=remake) for variant in variants]
    lines = [line for one in found for line in lineages.lineage_lines(one)]
    show([lineages.as_json(one) for one in found], lambda: lines, as_json)


@click.command(cls=DocumentedCommand)
@click.argument("baseline", type=Existing)
@click.argument("builds", type=Existing, nargs=-1, required=True)
@click.option("--text", type=Existing, help="A UTF-8 text file. Default: the text that ships.")
@click.option("--context", type=int, default=512, help="Tokens of a window; the second half of each is predicted.")
@click.option("--windows", type=int, help="Read at most so many windows. Default: all of the text.")
@click.option("--backend", help="What runs them. Default: llamacpp for GGUF files, transformers for checkpoints.")
@json_option
def kld(baseline: Path, builds: tuple[Path, ...], as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Say how far each of the BUILDS is from the BASELINE along a text.

    KL divergence, same top token and perplexity, as publishers print them.
    """
    from quantverdict.reporting.terminal import progress_view
    from quantverdict.stages import kld as texts

    rows = texts.kld(baseline, *builds, progress=progress_view().say, **how)
    show(rows, lambda: texts.kld_lines(rows), as_json)


MODEL_COMMANDS = (quantize, list_, inspect, lineage, kld)
