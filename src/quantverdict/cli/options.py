"""The command line's help and the options that several commands have: sections, examples, exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import click

from quantverdict.errors import os_reason
from quantverdict.reporting.formats import plain

# The help of the command line: which commands stand together, an example of each, what the process returns

SECTIONS = {
    "From a study to a decision": ("init", "plan", "run", "analyze"),
    "From results of other tools": ("compare", "import", "ingest"),
    "Add to a bundle": ("judge", "label", "report"),
    "Use a decision": ("gate", "diff", "verify", "export", "card", "upgrade"),
    "Check an instrument": ("grade",),
    "Look at models": ("list", "inspect", "lineage", "kld", "quantize"),
    "Set up": ("tasks", "metrics", "doctor"),
}
"""The commands of `--help`, by what they are for."""
EXAMPLES = {
    "quantverdict": (
        "init models/",
        "plan study.yaml",
        "run study.yaml --out bundle",
        "gate bundle --build my-model/Q4_K_M",
    ),
    "init": ("init models/", "init my-model-F16.gguf my-model-Q4_K_M.gguf --schema", "init owner/name --out hub.yaml"),
    "plan": ("plan study.yaml", "plan larger.yaml --bundle bundle"),
    "run": (
        "run study.yaml --out bundle",
        "run study.yaml --out bundle --more 200",
        "run study.yaml --out bundle --until-decided --budget 30m",
        "run study.yaml --gate --build my-model/Q4_K_M --junit gate.xml",
    ),
    "compare": (
        "compare fp16.jsonl q4.jsonl",
        "compare fp16/samples_gsm8k.jsonl q4/samples_gsm8k.jsonl --filter strict-match --margin 3",
    ),
    "import": (
        "import logs/fp16 logs/q4 --out bundle",
        "import --arm FP16=a.eval --arm Q4_K_M=b.eval --unit brevity=share,higher --out bundle",
    ),
    "ingest": ("ingest sources.yaml --out bundle",),
    "analyze": (
        "analyze bundle --policy stricter.yaml --constraint max_file='4 GB'",
        "analyze --matrix matrix.csv --policy tr125 --out bundle",
    ),
    "judge": ("judge bundle --judge judge.yaml",),
    "label": ("label bundle --out sheet.csv --n 100", "label bundle --read sheet.csv"),
    "report": ("report bundle --profile study",),
    "grade": (
        "grade answers.jsonl --as refusal --label label",
        "grade answers.csv --as refusal --instrument judge.yaml --label human --json",
        "grade answers.csv --as choice --column answer=output --out graded.csv",
    ),
    "gate": ("gate bundle --build my-model/Q4_K_M", "gate bundle --policy gate.yaml --junit gate.xml --verify"),
    "diff": ("diff before after --exit-code",),
    "export": ("export bundle --to parquet --out tables", "export bundle --to mlflow --out store"),
    "card": (
        "card bundle --out my-model-GGUF --base-model owner/my-model --quantized-by me",
        "card bundle --model my-model --repo me/my-model-GGUF --file Q4_K_M=my-model-Q4_K_M.gguf --png",
    ),
    "verify": ("verify bundle",),
    "kld": (
        "kld my-model-F16.gguf my-model-Q4_K_M.gguf",
        "kld checkpoint/ checkpoint-AWQ/ --text mine.txt --windows 64",
    ),
    "upgrade": ("upgrade bundle",),
    "list": ("list models/", "list owner/name-GGUF --json"),
    "inspect": ("inspect my-model-Q4_K_M.gguf",),
    "lineage": ("lineage my-model-F16.gguf unknown.gguf",),
    "quantize": ("quantize my-model-F16.gguf --to Q8_0,Q4_K_M --out builds",),
    "doctor": ("doctor",),
    "metrics": ("metrics list",),
    "metrics list": ("metrics list --json",),
    "tasks": ("tasks list",),
    "tasks list": ("tasks list --json",),
    "tasks show": ("tasks show starter_harmful",),
    "tasks new": ("tasks new questions.csv",),
}
"""What `--help` of each command ends with."""
EXIT_CODES = {
    "0": "done; of a gate: accepted",
    "2": "could not run: one line on stderr says what is wrong, where, and what was expected",
    "3": "gate: rejected; diff --exit-code: a verdict changed",
    "4": "gate: something that is gated was not measured",
    "5": "gate: inconclusive, these prompts are too few to tell",
    "130": "interrupted; the same command goes on where it stopped",
    "143": "ended by SIGTERM, as by an interruption",
}
"""What the process returns, as `--help` says it."""


Existing = click.Path(path_type=Path)


@dataclass(slots=True)
class MessageOptions:
    """How much is said on stderr besides results, and where it is kept too."""

    quiet: bool = False
    verbose: bool = False
    log: Path | None = None


def _note(ctx: click.Context, option: click.Parameter, value: object) -> None:
    options = ctx.find_root().ensure_object(MessageOptions)
    try:
        if isinstance(value, Path):
            value.open("a").close()
        if value:
            setattr(options, str(option.name), value)
    except OSError as error:
        raise click.BadParameter(f"{plain(value)}: cannot be written ({os_reason(error)})") from error


@cache
def message_options(*, hidden: bool) -> tuple[click.Option, ...]:
    """The options of messages: before the command, where its help shows them, and behind it."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _note, "hidden": hidden}
    return (
        click.Option(["-q", "--quiet", "quiet"], is_flag=True, help="No progress: results and errors only.", **shared),
        click.Option(["-v", "--verbose", "verbose"], is_flag=True,
                     help="Progress as lines, with the time, and where an internal error came from.", **shared),
        click.Option(["--log-file", "log"], type=Existing, help="Add every message to this file too, with the time.",
                     **shared),
    )  # fmt: skip


class DocumentedCommand(click.Command):
    """Ends its help with examples."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, and those of messages."""
        return [*super().get_params(ctx), *message_options(hidden=ctx.parent is not None)]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples of a command, and of the whole the exit codes."""
        if examples := EXAMPLES.get(ctx.command_path.removeprefix("quantverdict ")):
            with formatter.section("Examples"):
                formatter.write("".join(f"  quantverdict {example}\n" for example in examples))
        if ctx.parent is None:
            with formatter.section("Exit codes"):
                formatter.write_dl(list(EXIT_CODES.items()))


class DocumentedGroup(DocumentedCommand, click.Group):
    """Lists its commands by what they are for."""

    command_class = DocumentedCommand
    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that it has a command of, then what is in none of them."""
        listed = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in listed)
        for title, names in {**SECTIONS, "Commands": others}.items():
            rows = [(name, self.commands[name].get_short_help_str(100)) for name in names if name in self.commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def metric_listing() -> tuple[list[dict[str, object]], list[str]]:
    """The metrics, those of plugins too, as rows for a program and as lines."""
    from quantverdict.registry import METRICS
    from quantverdict.registry.listing import load_plugins

    load_plugins()
    rows: list[dict[str, object]] = [
        {"name": one.name, "unit": one.unit, "higher_is_better": one.higher_is_better, "pool": one.pool,
         "margin_pp": None if one.margin is None else float(one.margin), "meaning": one.meaning}
        for one in METRICS.values()
    ]  # fmt: skip
    better = {True: "higher", False: "lower", None: "-"}
    lines = [
        f"{one.name:40}{'share' if one.is_share else one.unit:12}{better[one.higher_is_better]:8}"
        f"{'-' if one.margin is None else f'{float(one.margin):g} pp':6}{one.meaning}"
        for one in METRICS.values()
    ]
    return rows, lines


# Options that several commands have

json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document to stdout.")

gate_reports = (
    click.option("--build", help="Gate this build alone: BASE_MODEL/QUANT. Default: all but the baselines."),
    click.option("--junit", type=Existing, help="Write the verdicts to this file as JUnit XML."),
    click.option("--summary", type=Existing, help="Append a summary in Markdown to this file ($GITHUB_STEP_SUMMARY)."),
    click.option(
        "--inconclusive",
        type=click.Choice(["skipped", "failure"]),
        default="skipped",
        help="How JUnit counts a verdict that cannot be told or was not measured. The exit code stays.",
    ),
)


def read_constraints(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> object:
    """Constraints as the API takes them."""
    from quantverdict.policy import read_constraints as read

    return read(given) if given else None


constraint_option = click.option(
    "--constraint",
    "constraints",
    multiple=True,
    callback=read_constraints,
    help="NAME=VALUE, in place of the study's: max_file='2 GB', max_memory, min_tokens_per_second, max_ttft_ms.",
)
asking_options = (
    click.option("--more", type=click.IntRange(1, 1_000_000), metavar="N",
                 help="Ask N prompts a build more than the bundle holds, rounded up to the next look."),
    click.option("--until-decided", is_flag=True,
                 help="Add looks until every build is decided, or the tasks hold no more prompts."),
    click.option("--budget", metavar="TIME", help="With --until-decided: 30m, 2h. No look is begun that will not fit."),
    click.option("--store", type=Existing, metavar="DIR",
                 help="The folder of kept answers. Default: QUANTVERDICT_STORE, else one in the user's cache."),
    click.option("--no-cache", is_flag=True, help="Ask for every answer, and keep none beyond the bundle."),
    click.option("--ray", is_flag=False, flag_value="", metavar="[ADDRESS]",
                 help="Run builds on a Ray cluster: HOST:PORT; without an address, the one of this machine."),
)  # fmt: skip


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of how much is asked, as one argument `options`: those of `api.run`."""

    @wraps(command)
    def call(**given: Any) -> None:  # noqa: ANN401 - whatever click parsed
        names = ("more", "until_decided", "budget", "store", "ray")
        options = {name: given.pop(name) for name in names} | {"cache": not given.pop("no_cache")}
        command(**given, options=options)

    for option in reversed(asking_options):
        call = option(call)
    return call


log_options = (
    click.option("--format", "form", help="Of the logs, where a file does not tell."),
    click.option("--filter", "chosen", default="all", help="lm-eval: the filter taken; all: each as a metric."),
    click.option(
        "--column", "columns", multiple=True, help="Of a table: ROLE=COLUMN (sample_id, prompt_hash, arm ...)."
    ),
    click.option("--metric", "metrics", multiple=True, help="Take this metric, and no other that is not named."),
    click.option("--unit", "units", multiple=True, help="Of a metric: NAME=UNIT,higher|lower|neither. Is remembered."),
    click.option("--margin", type=click.FloatRange(0.001, 99.9), default=5.0, help="The tolerated loss, in pp."),
)


def reading_logs(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of what logs mean."""
    for option in reversed(log_options):
        command = option(command)
    return command


def card_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of what is said on a card."""
    options = (
        click.option("--model", help="Of which base model. Not needed where the bundle has one."),
        click.option("--base-model", help="The original's name on the hub: owner/name."),
        click.option("--quantized-by", help="Who made the builds."),
        click.option("--repo", help="The repository of the files: owner/name. Default: relative links."),
        click.option("--dataset", help="The data set of the hub, owner/name, with tasks of your own."),
        click.option("--file", "files", multiple=True, help="BUILD=NAME: what a build's file is called there."),
        click.option("--context", type=click.IntRange(1, 10_000_000),
                     help="Tokens that memory is estimated for. Default: the study's."),
        click.option("--png", is_flag=True, help="Draw the charts as PNG too, and show these. Needs the extra png."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
