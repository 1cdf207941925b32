"""The command line: parse, call one function, print, exit.

Results go to stdout (`--json`: exactly one JSON document), progress and messages to stderr; the exit codes are those
of errors.ExitCode.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import click

from quantverdict.cli.models import MODEL_COMMANDS
from quantverdict.cli.options import (
    DocumentedGroup,
    Existing,
    MessageOptions,
    asking,
    card_options,
    constraint_option,
    gate_reports,
    json_option,
    metric_listing,
    reading_logs,
)
from quantverdict.cli.output import (
    SIGNALLED,
    GateOptions,
    failed,
    gated,
    progress,
    require_verified,
    show,
    show_decision,
    through_gate,
)
from quantverdict.errors import ExitCode, QuantverdictError, count_of, os_reason
from quantverdict.reporting.formats import OutputStream, harmless, one_line


@click.group(cls=DocumentedGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="quantverdict")
def commands() -> None:
    """Decide which quantized build of a language model can ship.

    Results go to stdout, progress and messages to stderr.
    """


@commands.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--out", type=Existing, default=Path("study.yaml"), help="The study to write.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--schema", is_flag=True, help="Write study.schema.json beside it too: an editor then knows every key.")
@click.option("--measure/--no-measure", default=True, help="Time a short batch of the baseline.")
@json_option
def init(models: tuple[str, ...], out: Path, *, force: bool, schema: bool, measure: bool, as_json: bool) -> None:
    """Write a commented study of MODELS: files, folders, owner/name of the hub, ollama:TAG."""
    from quantverdict import api

    draft = api.init(models, out, force=force, schema=schema, measure=measure, progress=progress())
    show(draft.as_json(), draft.lines, as_json)


@commands.command()
@click.argument("study", type=Existing)
@click.option("--out", type=Existing, help="The bundle to write or to resume. Default: bundles/STUDY.")
@click.option("--task-dir", help="The folder of the study's task files, in place of its own task_dir.")
@asking
@gated
@json_option
def run(
    study: Path, out: Path | None, *, task_dir: str | None, options: dict[str, Any], gating: GateOptions, as_json: bool
) -> None:
    """Ask every build of a study, grade, decide, report. Run it again to resume.

    What the study decides by, its builds, tasks and limits may change in between: only what is missing is asked.
    """
    from quantverdict import api

    loaded = api.load_study(study, task_dir=task_dir)
    gating.read(loaded)
    show_decision(api.run(loaded, out, progress=progress(), **options).path, as_json, gating)


@commands.command()
@click.argument("study", type=Existing)
@click.option("--bundle", type=Existing, help="An earlier run to take tokens, speed and differing pairs from.")
@click.option("--task-dir", help="The folder of the study's task files, in place of its own task_dir.")
@click.option("--measure/--no-measure", default=True, help="Time a short batch where there is no earlier run.")
@click.option("--context", type=click.IntRange(1, 10_000_000), help="Estimate memory for so many tokens of context.")
@click.option("--cache-type", default="F16", help="And for a KV cache of this type: F16, Q8_0, ...")
@click.option("--target", metavar="accept:BUILD", help="Print the study that has the power to accept this build.")
@json_option
def plan(study: Path, bundle: Path | None, as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Say what a study would ask, take and be able to show."""
    from quantverdict import api

    planned = api.plan(study, bundle, progress=progress(), **how)
    if planned.target is not None and not as_json:
        print(one_line(f"# {planned.target.line()}"), file=sys.stderr)
        print(planned.target.yaml, end="")
        return
    show(planned.as_json(), planned.lines, as_json)


@commands.command()
@click.argument("sources", type=Existing)
@click.option("--out", type=Existing, required=True, help="The bundle to write.")
@click.option(
    "--quarantine", is_flag=True, help="Set broken rows aside in the bundle. Without it the first is refused."
)
@json_option
def ingest(sources: Path, out: Path, quarantine: bool, as_json: bool) -> None:
    """Decide from scored samples and judgements in files."""
    from quantverdict import api
    from quantverdict.stages import ingest as ingestion

    bundle = api.ingest(sources, out, quarantine=quarantine).path
    for line in ingestion.source_lines(bundle):
        progress().say(line)
    show_decision(bundle, as_json)


@commands.command("import")
@click.argument("logs", nargs=-1, type=Existing)
@click.option("--out", type=Existing, required=True, help="The bundle to write.")
@click.option("--arm", "arms", multiple=True, help="NAME=PATH: a log, and what its build is called.")
@click.option("--baseline", help="The arm that the others are compared with. Default: the first.")
@click.option("--model", help="The base model's name. Default: the bundle's.")
@click.option("--bits", multiple=True, help="NAME=BITS: bits per weight of an arm. Without them none is recommended.")
@click.option("--policy", help="A policy by name, or its YAML file. Default: quality is what the logs measure.")
@click.option("--quarantine", is_flag=True, help="Set broken rows aside. Without it the first is refused.")
@reading_logs
@json_option
def import_(logs: tuple[Path, ...], out: Path, *, as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Decide from LOGS of other tools: lm-eval, Inspect, promptfoo, Every Eval Ever, llama-perplexity, tables."""
    from quantverdict import api
    from quantverdict.stages import ingest as ingestion

    bundle = api.import_logs(logs, out, **how).path
    for line in ingestion.source_lines(bundle):
        progress().say(line)
    show_decision(bundle, as_json)


@commands.command()
@click.argument("baseline", type=Existing)
@click.argument("candidate", type=Existing)
@click.option("--exit-code", is_flag=True, help="Exit 3 rejected, 4 not measured, 5 inconclusive. Without it: 0.")
@reading_logs
@json_option
def compare(baseline: Path, candidate: Path, *, exit_code: bool, as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Compare two logs prompt by prompt, without a bundle.

    Paired deltas, intervals, flips both ways, the verdict: of the formats that import reads.
    """
    from quantverdict import api

    found = api.compare(baseline, candidate, **how)
    show(found.as_json(), found.lines, as_json)
    if exit_code:
        raise click.exceptions.Exit(found.exit_code)


@commands.command()
@click.argument("bundle", type=Existing, required=False)
@click.option("--matrix", type=Existing, help="Start from a finished matrix (CSV), in place of a bundle.")
@click.option("--out", type=Existing, help="With --matrix: the bundle to write.")
@click.option("--policy", help="A policy by name, or its YAML file. Default: the bundle's own.")
@constraint_option
@gated
@json_option
def analyze(
    bundle: Path | None,
    matrix: Path | None,
    out: Path | None,
    *,
    gating: GateOptions,
    as_json: bool,
    **how: Any,  # noqa: ANN401
) -> None:
    """Decide again from stored scores, or from a finished matrix."""
    from quantverdict import api

    if (bundle is None) == (matrix is None) or (matrix is not None and out is None):
        raise click.UsageError("give a BUNDLE, or --matrix FILE with --out BUNDLE")
    gating.read()
    done = api.analyze(matrix or api.open_bundle(bundle or ""), out=out if matrix else None, **how)
    show_decision(done.path, as_json, gating)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--judge", "name", required=True, help="A judge of the study by name, or a YAML file with its keys.")
@json_option
def judge(bundle: Path, name: str, as_json: bool) -> None:
    """Give stored answers to a judge, and decide again.

    What the judge has labelled already is not asked again.
    """
    from quantverdict import api

    rows = api.judge(bundle, name, progress=progress())
    show(rows, lambda: [", ".join(f"{key} {value}" for key, value in row.items() if value) for row in rows], as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option(
    "--profile", type=click.Choice(["default", "study"]), help="The short report, or every table. Default: as it was."
)
@json_option
def report(bundle: Path, profile: str | None, as_json: bool) -> None:
    """Render a bundle's report again: report.md, report.html."""
    from quantverdict import api

    paths = api.report(bundle, profile)
    show({"files": [str(path) for path in paths]}, lambda: [str(path) for path in paths], as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--to", required=True, type=click.Choice(["parquet", "mlflow", "every-eval-ever"]), help="The format.")
@click.option("--out", type=Existing, required=True, help="The folder to write.")
@json_option
def export(bundle: Path, to: str, out: Path, as_json: bool) -> None:
    """Write a finished bundle in the format of another tool."""
    from quantverdict import api

    paths = api.export(bundle, to, out)
    show({"files": [str(path) for path in paths]}, lambda: [str(path) for path in paths], as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--out", type=Existing, default=Path("card"), help="The folder to write. A README.md there is kept.")
@card_options
@json_option
def card(bundle: Path, out: Path, *, as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Write a model card's section, its front matter, charts and the results that the hub reads."""
    from quantverdict import api

    written = api.card(bundle, out, **how)
    show(written.as_json(), written.lines, as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--policy", help="The gate's policy (YAML): builds, margins, floors, waivers; or a policy by name.")
@click.option("--verify", "verified", is_flag=True, help="First recompute every hash, table and claim, as verify does.")
@constraint_option
@gate_reports[0]
@gate_reports[1]
@gate_reports[2]
@gate_reports[3]
@json_option
def gate(bundle: Path, policy: str | None, *, verified: bool, as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Turn a decision into an exit code.

    0 accepted, 3 rejected, 4 not measured, 5 inconclusive; the worst of the gated builds counts, in the order 3, 4,
    5, 0. The bundle is not changed. Use --verify where it comes from another machine.
    """
    from quantverdict.reporting.summary import gate_json, gate_lines

    if verified:
        require_verified(bundle, as_json)
    found = through_gate(bundle, GateOptions(wanted=True, gate_policy=policy, **how))
    show(gate_json(found), lambda: gate_lines(found), as_json)
    raise click.exceptions.Exit(found.exit_code)


@commands.command()
@click.argument("one", type=Existing)
@click.argument("two", type=Existing)
@click.option("--exit-code", is_flag=True, help="Exit 3 where a verdict changed. Without it: 0.")
@json_option
def diff(one: Path, two: Path, exit_code: bool, as_json: bool) -> None:
    """Say what changed from bundle ONE to bundle TWO.

    Both are of the same study: verdicts, deltas, answers, engines.
    """
    from quantverdict import api
    from quantverdict.reporting import summary

    found = api.diff(one, two)
    show(summary.as_json(found), lambda: summary.lines(found), as_json)
    if exit_code and found.verdicts:
        raise click.exceptions.Exit(ExitCode.REJECTED)


@commands.command()
@click.argument("bundle", type=Existing)
@click.option("--out", type=Existing, help="The sheet (CSV) to write: answers without the names of models or builds.")
@click.option("--read", "filled", type=Existing, help="The sheet to read back, with labels.")
@click.option("--n", "rows", type=click.IntRange(1, 1_000_000), default=200, help="With --out: rows to draw at random.")
@json_option
def label(bundle: Path, out: Path | None, filled: Path | None, rows: int, as_json: bool) -> None:
    """Have people label answers, and correct the rates."""
    from quantverdict import api

    if (out is None) == (filled is None):
        raise click.UsageError("give --out SHEET.csv to write a sheet, or --read SHEET.csv to read it back")
    sheet = api.label(bundle, out=out, read=filled, n=rows)
    show(sheet.as_json(), lambda: sheet.lines, as_json)


@commands.command()
@click.argument("file", type=Existing)
@click.option("--as", "kind", required=True, help="What the answers are read for: refusal, choice, truth or bias.")
@click.option("--instrument", help="By name, or the YAML file of a judge, a guard or a classifier.")
@click.option("--label", help="The column with labels of people.")
@click.option("--column", "columns", multiple=True, metavar="ROLE=NAME", help="Of prompt, answer, choices, ...")
@click.option("--out", type=Existing, help="The CSV or JSONL file to write: every row with its label.")
@json_option
def grade(file: Path, columns: tuple[str, ...], as_json: bool, **how: Any) -> None:  # noqa: ANN401
    """Label the answers in a CSV, JSONL or Parquet FILE, and compare with people's labels."""
    from quantverdict import api

    found = api.grade_file(file, columns=columns, **how)
    show(found.as_json(), lambda: found.lines, as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Recompute every hash, table, claim and report of a bundle.

    Exit 2, and a line for each thing that does not hold.
    """
    require_verified(bundle, as_json)
    show({"ok": True, "problems": []}, lambda: [f"{bundle}: every hash, table and claim holds"], as_json)


@commands.command()
@click.argument("bundle", type=Existing)
@json_option
def upgrade(bundle: Path, as_json: bool) -> None:
    """Bring a bundle of an older version to this one's.

    It is decided again from its stored scores; answers and scores stay as they are.
    """
    from quantverdict.stages.run import upgrade as upgrade_bundle

    changed = upgrade_bundle(bundle)
    told = "is of this version now, decided again" if changed else "is of this version already"
    show({"upgraded": changed}, lambda: [f"{bundle}: {told}"], as_json)


for _command in MODEL_COMMANDS:
    commands.add_command(_command)


@commands.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say which engines, extras and hardware are at hand, and what to install."""
    from quantverdict.stages.doctor import diagnose, diagnosis_lines

    checks = diagnose()
    show([check._asdict() for check in checks], lambda: diagnosis_lines(checks), as_json)


@commands.group()
def metrics() -> None:
    """List the metrics that a matrix may have."""


@metrics.command("list")
@json_option
def metrics_list(as_json: bool) -> None:
    """List the metrics, those of plugins too: unit, what is better, the default margin, what it is."""
    rows, lines = metric_listing()
    show(rows, lambda: lines, as_json)


@commands.group()
def tasks() -> None:
    """List the built-in tasks, or show one."""


@tasks.command("list")
@click.option(
    "--all", "benchmarks", is_flag=True, help="The benchmarks too, whose data are fetched when they are asked."
)
@json_option
def tasks_list(*, benchmarks: bool, as_json: bool) -> None:
    """List the built-in tasks: items, type, metrics."""
    from quantverdict.tasks.catalog import task_summaries

    if benchmarks:
        from quantverdict.tasks.benchmark_list import benchmark_lines, listed

        show(listed(), benchmark_lines, as_json)
        return
    rows = task_summaries()
    lines = [f"{row.name:24}{row.items:>4}  {row.task_type:22}{', '.join(row.metrics)}" for row in rows]
    show([row._asdict() for row in rows], lambda: lines, as_json)


@tasks.command("show")
@click.argument("task")
@json_option
def tasks_show(task: str, as_json: bool) -> None:
    """Show a task, by name or file, with its first prompt."""
    from quantverdict.tasks import catalog

    loaded = catalog.load_task(task)
    first = catalog.render_prompt(loaded, loaded.items[0])
    shown = {"name": loaded.name, "task_type": loaded.task_type, "items": len(loaded.items), "first_prompt": first}
    show(shown, lambda: [f"{key}: {value}" for key, value in shown.items()], as_json)


@tasks.command("new")
@click.argument("file", type=Existing)
@click.option("--out", type=Existing, help="The task file to write. Default: beside FILE, by its name.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@json_option
def tasks_new(file: Path, out: Path | None, *, force: bool, as_json: bool) -> None:
    """Write a task file for the rows of FILE: CSV, JSONL or Parquet."""
    from quantverdict.tasks.draft import new_task

    path, task = new_task(file, out or file.with_suffix(".yaml"), force=force)
    told = {"file": str(path), "name": task.name, "task_type": task.task_type, "items": len(task.items)}
    show(
        told,
        lambda: [f"{path}: {task.task_type}, {count_of(len(task.items), 'item')}; read it before you use it"],
        as_json,
    )


def execute(arguments: list[str]) -> int:
    """Run one command.

    A command makes many values and few cycles of them, so these are looked for a thousandth as often.

    Returns:
        The exit code (errors.ExitCode; 130 where the user interrupted, 143 after SIGTERM): that of the work, whether or
        not what it says could be written.
    """
    gc.set_threshold(700_000, 10, 10)
    streams = sys.stdout, sys.stderr
    out = OutputStream(sys.stdout or io.StringIO())
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", OutputStream(sys.stderr or io.StringIO()))
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
    options = MessageOptions()
    try:
        result = commands.main(arguments, prog_name="quantverdict", standalone_mode=False, obj=options)
    except click.ClickException as error:
        captured = io.StringIO()
        error.show(captured)
        text = harmless(captured.getvalue().rstrip("\n"))
        usage, _, message = text.rpartition("\n")
        print(usage, end="\n" if usage else "", file=sys.stderr)
        return failed(options, arguments, error, (message, ExitCode.CANNOT_RUN))
    except (KeyboardInterrupt, click.Abort) as error:
        ended = isinstance(error.__cause__ or error, TerminatedError)
        code = SIGNALLED + (signal.SIGTERM if ended else signal.SIGINT)
        words = f"{'ended by SIGTERM' if ended else 'interrupted'}; the same command goes on where it stopped"
        return failed(options, arguments, error, (words, code))
    except QuantverdictError as error:
        return failed(options, arguments, error, (f"error: {error}", error.exit_code))
    except Exception as error:
        if options.verbose or os.environ.get("QUANTVERDICT_TRACEBACK"):
            raise
        return failed(options, arguments, error, (unforeseen(error), ExitCode.CANNOT_RUN))
    return result if isinstance(result, int) else ExitCode.OK


def unforeseen(error: Exception) -> str:
    """One line on what no part of the program expected."""
    if isinstance(error, OSError) and isinstance(error.filename, str | Path):
        # Before it is opened a file is looked for, and a system refuses that too: a name too long, links in a ring.
        name = Path(error.filename)
        shown = name.with_name(f"{name.name[:40]}...") if len(name.name) > 80 else name
        return f"error: {shown}: cannot be used ({os_reason(error)})"
    return f"internal error: {type(error).__name__}: {error} (QUANTVERDICT_TRACEBACK=1 shows where)"


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: what is stored stays whole, as where the user interrupts."""


def terminate(_signal: int, _frame: object) -> None:
    """The second one ends the process at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise TerminatedError


def say(message: str, code: int) -> int:
    """Print one line to stderr and pass the exit code on."""
    print(one_line(message), file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the `quantverdict` command."""
    if os.environ.get("_QUANTVERDICT_COMPLETE"):
        commands(prog_name="quantverdict")  # a shell asks what could come next, and reads bytes
    # The products are small and many: threads of the linear algebra would wait for each other. No result depends on it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Plugins of pydantic watch models of others; to look for them takes every installed package's list of entry points.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    signal.signal(signal.SIGTERM, terminate)
    code = execute(sys.argv[1:])
    # What is left ends with the process; looking through it for cycles first would take a tenth of a short command.
    gc.freeze()
    sys.exit(code)
