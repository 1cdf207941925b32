"""The command line: parse, call one function, print, exit.

Results go to stdout (`--json`: exactly one JSON document), progress and messages to stderr; the exit codes are those
of errors.ExitCode.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from quantverdict.errors import ExitCode, QuantverdictError
from quantverdict.output import Outlet, escaped_json, harmless, is_utf8, json_text, one_line

if TYPE_CHECKING:
    from quantverdict.protocol.gate import Gate

Existing = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")

gate_reports = (
    click.option("--build", help="Gate this build alone: BASE_MODEL/QUANT."),
    click.option("--junit", type=Existing, help="Write the verdicts to this file as JUnit XML."),
    click.option("--summary", type=Existing, help="Add a summary in Markdown to this file ($GITHUB_STEP_SUMMARY)."),
)
gate_options = (
    click.option(
        "--gate", "wanted", is_flag=True, help="Exit 0 accepted, 3 rejected, 4 not measured, 5 not resolvable."
    ),
    click.option("--gate-policy", "gate_policy", help="The gate's policy (YAML): margins, floors, waivers."),
    *gate_reports,
)


@dataclass(frozen=True, slots=True)
class Gating:
    """The options of a gate."""

    wanted: bool
    gate_policy: str | None
    build: str | None
    junit: Path | None
    summary: Path | None

    def read(self, study: Path | None = None) -> None:
        """Refuse a gate that cannot be asked, before anything runs; `study` is what will run."""
        from quantverdict import pipeline

        if self.wanted:
            pipeline.read_gate(self.gate_policy, self.build, study)
        elif any((self.gate_policy, self.build, self.junit, self.summary)):
            raise click.UsageError("--gate-policy, --build, --junit and --summary go with --gate")


def gated(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a gate, as one argument `gating`."""

    @wraps(command)
    def call(**options: Any) -> None:  # noqa: ANN401 - whatever click parsed
        gating = Gating(*(options.pop(name) for name in Gating.__slots__))
        command(**options, gating=gating)

    for option in reversed(gate_options):
        call = option(call)
    return call


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="quantverdict")
def commands() -> None:
    """Which quantized build of this language model can we ship?"""


@commands.command()
@click.argument("study", type=Existing)
@click.option("--out", type=Existing, help="The bundle to write or to resume; bundles/STUDY if not given.")
@click.option("--task-dir", help="Where the study's task files are, instead of its own task_dir.")
@gated
@json_option
def run(study: Path, out: Path | None, *, task_dir: str | None, gating: Gating, as_json: bool) -> None:
    """Run a study: the whole pipeline. Run it again to resume."""
    from quantverdict import pipeline

    gating.read(study)
    bundle = pipeline.run(study, out, task_dir=task_dir)
    show_decision(bundle, as_json, gating)


@commands.command()
@click.argument("study", type=Existing)
@click.option("--bundle", type=Existing, help="Take tokens, speed and differing pairs from this earlier run.")
@click.option("--task-dir", help="Where the study's task files are, instead of its own task_dir.")
@click.option("--measure/--no-measure", default=True, help="Time a short batch where there is no earlier run.")
@json_option
def plan(study: Path, bundle: Path | None, task_dir: str | None, measure: bool, as_json: bool) -> None:
    """Say what a study would ask, take and be able to show, before it runs."""
    from quantverdict import pipeline

    planned = pipeline.plan(study, bundle, task_dir=task_dir, measure=measure)
    show(planned.as_json(), planned.lines, as_json)


@commands.command()
@click.argument("sources", type=Existing)
@click.option("--out", type=Existing, required=True, help="The bundle to write.")
@click.option("--quarantine", is_flag=True, help="Set broken rows aside in the bundle instead of refusing the first.")
@json_option
def ingest(sources: Path, out: Path, quarantine: bool, as_json: bool) -> None:
    """Decide from scored samples and judgements in files, each checked by its hash first."""
    from quantverdict import ingestion, pipeline

    bundle = pipeline.ingest(sources, out, quarantine=quarantine)
    for line in ingestion.source_lines(bundle):
        print(one_line(line), file=sys.stderr)
    show_decision(bundle, as_json)


@commands.command()
@click.argument("bundle", type=Existing, required=False)
@click.option("--matrix", type=Existing, help="Start from a finished matrix (CSV) instead of a bundle.")
@click.option("--out", type=Existing, help="With --matrix: the bundle to write.")
@click.option("--policy", help="A policy by name, or its YAML file; the bundle's own if not given.")
@gated
@json_option
def analyze(
    bundle: Path | None, matrix: Path | None, out: Path | None, *, policy: str | None, gating: Gating, as_json: bool
) -> None:
    """Decide from stored scores, or from a finished matrix."""
    from quantverdict import pipeline

    if (bundle is None) == (matrix is None) or (matrix is not None and out is None):
        raise click.UsageError("give a BUNDLE, or --matrix FILE with --out BUNDLE")
    gating.read()
    if matrix is not None and out is not None:
        done = pipeline.analyze_matrix(matrix, out, policy or "quantverdict")
    elif bundle is not None:
        done = pipeline.analyze(bundle, policy)
    show_decision(done, as_json, gating)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--judge", "name", required=True, help="A judge of the study by name, or a YAML file with its keys.")
@json_option
def judge(bundle: Path, name: str, as_json: bool) -> None:
    """Judge stored answers, and decide again; what is labelled already is not asked."""
    from quantverdict import pipeline

    rows = pipeline.judge(bundle, name)
    show(rows, lambda: [", ".join(f"{key} {value}" for key, value in row.items() if value) for row in rows], as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--profile", type=click.Choice(["default", "study"]), help="The short report, or the whole study.")
@json_option
def report(bundle: Path, profile: str | None, as_json: bool) -> None:
    """Render a bundle's report again."""
    from quantverdict import pipeline

    paths = pipeline.report(bundle, profile)
    show({"files": [str(path) for path in paths]}, lambda: [str(path) for path in paths], as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--policy", help="The gate's policy (YAML): margins, floors, waivers; or a policy by name.")
@click.option("--verify", "verified", is_flag=True, help="First recompute every hash, table and claim, as verify does.")
@gate_reports[0]
@gate_reports[1]
@gate_reports[2]
@json_option
def gate(  # noqa: PLR0913 - one argument an option
    bundle: Path,
    policy: str | None,
    build: str | None,
    *,
    verified: bool,
    junit: Path | None,
    summary: Path | None,
    as_json: bool,
) -> None:
    """Exit 0 where every build of a bundle is accepted, 3 rejected, 4 not measured, 5 not resolvable."""
    from quantverdict.report.summary import gate_json, gate_lines

    if verified:
        refuse_problems(bundle, as_json)
    found = through_gate(bundle, Gating(True, policy, build, junit, summary))
    show(gate_json(found), lambda: gate_lines(found), as_json)
    raise click.exceptions.Exit(found.exit_code)


@commands.command()
@click.argument("one", type=Existing)
@click.argument("two", type=Existing)
@click.option("--exit-code", is_flag=True, help="Exit 3 where a verdict changed.")
@json_option
def diff(one: Path, two: Path, exit_code: bool, as_json: bool) -> None:
    """Say what changed from bundle ONE to bundle TWO of the same study: verdicts, deltas, answers, engines."""
    from quantverdict import pipeline
    from quantverdict.report import differences

    found = pipeline.diff(one, two)
    show(differences.as_json(found), lambda: differences.lines(found), as_json)
    if exit_code and found.verdicts:
        raise click.exceptions.Exit(ExitCode.REJECTED)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--out", type=Existing, help="The sheet (CSV) to write: answers without the names of models or builds.")
@click.option("--read", "filled", type=Existing, help="The sheet to read back, with labels.")
@click.option("--n", "rows", type=click.IntRange(1, 1_000_000), default=200, help="With --out: rows drawn at random.")
@json_option
def label(bundle: Path, out: Path | None, filled: Path | None, rows: int, as_json: bool) -> None:
    """Have people label answers, and correct the rates by their labels."""
    from quantverdict import pipeline

    if (out is None) == (filled is None):
        raise click.UsageError("give --out SHEET.csv to write a sheet, or --read SHEET.csv to read it back")
    sheet = pipeline.label(bundle, out, rows) if out is not None else pipeline.read_labels(bundle, filled or bundle)
    show(sheet.as_json(), lambda: sheet.lines, as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Recompute every hash, table, claim and report of a bundle."""
    refuse_problems(bundle, as_json)
    show({"ok": True, "problems": []}, lambda: [f"{bundle}: every hash, table and claim holds"], as_json)


@commands.command()
@click.argument("model", type=Existing)
@click.option("--to", "levels", required=True, help="Levels to make, separated by commas: Q8_0,Q4_K_M,AWQ,GPTQ")
@click.option("--out", type=Existing, required=True, help="The folder to write to.")
@click.option("--group-size", type=int, help="AWQ, GPTQ: weights a scale; the largest that fits if not given.")
@click.option("--calibration", default="default", help="AWQ, GPTQ: default, safety, or a text file of yours.")
@click.option("--samples", type=int, default=128, help="AWQ, GPTQ: calibration texts.")
@json_option
def quantize(  # noqa: PLR0913 - one argument an option
    model: Path, levels: str, out: Path, *, group_size: int | None, calibration: str, samples: int, as_json: bool
) -> None:
    """Make GGUF levels, AWQ and GPTQ builds from a model."""
    from quantverdict import pipeline

    how = {"group_size": group_size, "calibration": calibration, "samples": samples}
    made = pipeline.quantize(model, [level.strip() for level in levels.split(",")], out, how)
    show({level: str(path) for level, path in made.items()}, lambda: [str(path) for path in made.values()], as_json)


@commands.command()
@click.argument("artifact", type=Existing)
@json_option
def inspect(artifact: Path, as_json: bool) -> None:
    """Show what a model is, GGUF file or checkpoint: hash, true bits per weight, tensor types, chat template."""
    from quantverdict.artifacts.builds import artifact_json
    from quantverdict.artifacts.gguf import describe
    from quantverdict.artifacts.inspect import inspect_artifact

    found = inspect_artifact(artifact)
    show(artifact_json(found), lambda: describe(found), as_json)


@commands.command()
@click.argument("baseline", type=Existing)
@click.argument("variants", type=Existing, nargs=-1, required=True)
@json_option
def lineage(baseline: Path, variants: tuple[Path, ...], as_json: bool) -> None:
    """Say whether each VARIANT comes from the BASELINE, and the weights that say so."""
    from quantverdict.artifacts import lineage as lineages

    found = [lineages.compare(baseline, variant) for variant in variants]
    lines = [line for one in found for line in lineages.lineage_lines(one)]
    show([lineages.as_json(one) for one in found], lambda: lines, as_json)


@commands.group()
def tasks() -> None:
    """The task catalogue."""


@tasks.command("list")
@json_option
def tasks_list(as_json: bool) -> None:
    """List the built-in tasks."""
    from quantverdict.tasks.catalog import task_summaries

    rows = task_summaries()
    lines = [f"{row.name:24}{row.items:>4}  {row.task_type:22}{', '.join(row.metrics)}" for row in rows]
    show([row._asdict() for row in rows], lambda: lines, as_json)


@tasks.command("show")
@click.argument("task")
@json_option
def tasks_show(task: str, as_json: bool) -> None:
    """Show a task, by name or file: its template and its first item as asked."""
    from quantverdict.tasks import catalog

    loaded = catalog.load_task(task)
    first = catalog.render_prompt(loaded, loaded.items[0])
    shown = {"name": loaded.name, "task_type": loaded.task_type, "items": len(loaded.items), "first_prompt": first}
    show(shown, lambda: [f"{key}: {value}" for key, value in shown.items()], as_json)


def refuse_problems(bundle: Path, as_json: bool) -> None:
    """Print what of a bundle does not hold, a line each, and exit; nothing where all holds."""
    from quantverdict import pipeline

    if problems := pipeline.verify(bundle):
        show({"ok": False, "problems": problems}, lambda: problems, as_json)
        raise click.exceptions.Exit(ExitCode.CANNOT_RUN)


def show(document: object, lines: Callable[[], list[str]], as_json: bool) -> None:
    """Print a result for a program or for a person."""
    print(json_text(document, sys.stdout) if as_json else "\n".join(map(harmless, lines())))


def show_decision(bundle: Path, as_json: bool, gating: Gating | None = None) -> None:
    """Print a bundle's decision: the document, or the table and where the report is; then the gate, where wanted."""
    found = through_gate(bundle, gating) if gating is not None and gating.wanted else None
    if as_json:
        print_document(bundle, found)
    else:
        from quantverdict.report.terminal import print_decision

        print_decision(bundle)
    if found is not None:
        from quantverdict.report.summary import gate_lines

        if not as_json:
            print("\n".join(map(harmless, gate_lines(found))))
        raise click.exceptions.Exit(found.exit_code)


def print_document(bundle: Path, found: Gate | None) -> None:
    """`decision.json` as it is, with the gate under the key `gate` where there is one."""
    text = (bundle / "decision.json").read_text(encoding="utf-8")
    if found is None and is_utf8(sys.stdout):
        print(escaped_json(text))
        return
    from quantverdict.report.summary import gate_json

    gated = {} if found is None else {"gate": gate_json(found)}
    print(json_text({**json.loads(text), **gated}, sys.stdout))


def through_gate(bundle: Path, gating: Gating) -> Gate:
    """The verdicts on a bundle as of today, in UTC; JUnit and summary are written."""
    from quantverdict import pipeline

    asked = pipeline.read_gate(gating.gate_policy, gating.build)
    today = datetime.now(UTC).date()
    return pipeline.gate(bundle, asked, today, junit=gating.junit, summary=gating.summary)


def execute(arguments: list[str]) -> int:
    """Run one command.

    A command makes many values and few cycles of them, so these are looked for a thousandth as often.

    Returns:
        The exit code (errors.ExitCode; 130 where the user interrupted): that of the work, whether or not what it says
        could be written.
    """
    gc.set_threshold(700_000, 10, 10)
    streams = sys.stdout, sys.stderr
    out = Outlet(sys.stdout or io.StringIO())
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", Outlet(sys.stderr or io.StringIO()))
    try:
        code = attempt(arguments)
        out.flush()
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError):  # who left wants no more
            reason = getattr(out.failure, "strerror", None) or out.failure
            say(f"the output could not be written ({reason}); the exit code is that of the command", code)
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = streams
    return code


def attempt(arguments: list[str]) -> int:
    """Run one command, and say in one line why it cannot be done."""
    try:
        result = commands.main(arguments, prog_name="quantverdict", standalone_mode=False)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        print(harmless(told.getvalue().rstrip("\n")), file=sys.stderr)
        return ExitCode.CANNOT_RUN
    except (KeyboardInterrupt, click.Abort):
        return say("interrupted; the same command goes on where it stopped", 130)
    except QuantverdictError as error:
        return say(f"error: {error}", error.exit_code)
    except Exception as error:
        if os.environ.get("QUANTVERDICT_TRACEBACK"):
            raise
        if isinstance(error, OSError) and isinstance(error.filename, str | Path):
            # Before it is opened a file is looked for, and a system refuses that too: a name too long, links in a ring.
            name = Path(error.filename)
            shown = name.with_name(f"{name.name[:40]}...") if len(name.name) > 80 else name
            return say(f"error: {shown}: cannot be used ({error.strerror or error})", ExitCode.CANNOT_RUN)
        return say(
            f"internal error: {type(error).__name__}: {error} (QUANTVERDICT_TRACEBACK=1 shows where)",
            ExitCode.CANNOT_RUN,
        )
    return result if isinstance(result, int) else ExitCode.OK


def say(message: str, code: int) -> int:
    """Print one line to stderr and pass the exit code on."""
    print(one_line(message), file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the `quantverdict` command."""
    # The products are small and many: threads of the linear algebra would wait for each other. No result depends on it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = execute(sys.argv[1:])
    # What is left ends with the process; looking through it for cycles first would take a tenth of a short command.
    gc.freeze()
    sys.exit(code)
