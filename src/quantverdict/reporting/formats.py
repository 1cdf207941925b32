"""How a value is written: one place for digits, units and the words for what was not measured."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, wraps
from pathlib import Path
from typing import Any, TextIO

import click

from quantverdict.errors import os_reason

# What leaves for a terminal or a log: text that commands nothing, on streams that may not take all of it.
#
# Names, paths and errors come from files and servers of others. None of them may move a cursor, turn the direction of
# the text, or be read as a command by the program that keeps the log.

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the tab and the line feed, line separators, direction overrides, lone surrogates."""
_COMMAND = re.compile(r"##(?=\w*\[)|::(?=[a-z][a-z-]*(?: [^\n]*?)?::)", re.IGNORECASE)
"""How commands begin in a log of GitHub (`##[error]`, `::error::`), Azure (`##vso[`) or TeamCity (`##teamcity[`)."""
SIGNS = str.maketrans(
    {
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{CHECK MARK}": "+",
        "\N{MULTIPLICATION X}": "x",
        "\N{BLACK SQUARE}": "#",
        "\N{MINUS SIGN}": "-",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{BLACK CIRCLE}": "o",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
        "\N{BOX DRAWINGS HEAVY VERTICAL}": "|",
        "\N{BOX DRAWINGS LIGHT TRIPLE DASH VERTICAL}": ":",
        "\N{MIDDLE DOT}": ".",
    }
)
"""Our own signs, for a stream that cannot show them."""
BAR = (
    "\N{BLACK CIRCLE}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}", "\N{BOX DRAWINGS HEAVY VERTICAL}",
    "\N{BOX DRAWINGS LIGHT TRIPLE DASH VERTICAL}", "\N{MIDDLE DOT}",
)  # fmt: skip
"""What an interval is drawn with: the delta, the interval, the margin, the guard margin, the axis."""


def plain(value: object) -> str:
    """Text as it can be shown: control characters, lone surrogates and direction overrides become U+FFFD."""
    text = str(value)
    # None of them is printable, which is quicker to see.
    return text if text.isprintable() else _HIDDEN.sub("\ufffd", text)


def harmless(text: object) -> str:
    """`plain`, and what a log would read as a command is set apart: `# #[error]`, `: :error::`."""
    return _COMMAND.sub(lambda found: " ".join(found.group()), plain(text))


def one_line(text: object) -> str:
    """`harmless`, in one line."""
    return harmless(" ".join(str(text).split()))


def json_text(document: object, stream: TextIO) -> str:
    """A document as JSON that any terminal can be shown, and that says the same: what is hidden is escaped."""
    return escaped_json(json.dumps(document, ensure_ascii=not is_utf8(stream), indent=2))


def escaped_json(text: str) -> str:
    """JSON whose texts hold control characters or commands, with these escaped: it stays the same document."""
    text = text if text.isprintable() else _HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return _COMMAND.sub(lambda found: f"\\u{ord(found.group()[0]):04x}{found.group()[1]}", text)


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream takes every character."""
    try:
        return codecs.lookup(stream.encoding or "ascii").name == "utf-8"
    except (AttributeError, LookupError, TypeError):
        return False


class OutputStream:
    """A stream whose user has something better to do than to fail of it.

    A character that it cannot show becomes `?`, or a sign of ours its likeness. Where it takes nothing any longer (a
    full disk, a closed pipe), the rest is dropped and `failure` says why.
    """

    buffer = None
    """No way around `write`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | ValueError | None = None
        self.written = 0

    def write(self, text: str) -> int:
        self.written += len(text)
        if self.failure is None:
            try:
                self.stream.write(self._shown(text))
            except (OSError, ValueError) as error:  # a ValueError where it was closed
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def _shown(self, text: str) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.translate(SIGNS).encode(encoding, "replace").decode(encoding)
        return text

    def _fail(self, error: OSError | ValueError) -> None:
        """Remember why, and lead what is still buffered to nowhere: Python would fail of it again as it ends."""
        self.failure = error
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # no file of the system's
            return


NOT_MEASURED = "not measured"
OPEN_END = 100
"""In pp: an interval of a delta that reaches so far has no end there, for too few pairs differ to bound it."""
MINUS = "\N{MINUS SIGN}"

_NAMES = {
    "arc": "ARC",
    "bertscore": "BERTScore",
    "bpw": "bits per weight",
    "ci": "interval",
    "hi": "to",
    "id": "id",
    "lo": "from",
    "mmlu": "MMLU",
    "n": "n",
    "pp": "(pp)",
    "percent": "(%)",
    "quant": "build",
    "rouge": "ROUGE",
    "sha256": "SHA-256",
}
_WHOLE = {
    "bpw_quantized": "bits per weight of matrices",
}


def number(value: object) -> float | None:
    """A bundle's number as a float; None for blank, missing, not-a-number and text."""
    if value is None or value == "" or isinstance(value, bool):
        return None
    text = str(value)
    try:
        result = float(Fraction(text)) if "/" in text and isinstance(value, str) else float(text)
    except (ValueError, ZeroDivisionError):
        return None
    return None if math.isnan(result) else result


def fixed(value: float, digits: int, *, sign: bool = False) -> str:
    """A decimal with a true minus sign; a value that rounds to zero has no sign."""
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else f"{MINUS}\N{INFINITY}"
    rounded = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(rounded) == 0:
        rounded = rounded.lstrip("+-")
    return rounded.replace("-", MINUS)


def delta(value: object, digits: int = 2) -> str:
    """A signed difference."""
    known = number(value)
    return NOT_MEASURED if known is None else fixed(known, digits, sign=True)


def interval(lo: object, hi: object, digits: int = 2, *, sign: bool = False, factor: float = 1.0) -> str:
    """`[lo, hi]`, or an empty text where either end is not known."""
    low, high = number(lo), number(hi)
    if low is None or high is None:
        return ""
    return f"[{fixed(low * factor, digits, sign=sign)}, {fixed(high * factor, digits, sign=sign)}]"


def bounded(lo: object, hi: object, digits: int = 2) -> str:
    """The interval of a delta in pp; where one end is as far as a share can go, the other alone: `at least -3.40`."""
    low, high = number(lo), number(hi)
    if low is None or high is None:
        return ""
    ends = (low > -OPEN_END, high < OPEN_END)
    if all(ends):
        return interval(lo, hi, digits, sign=True)
    if not any(ends):
        return "not bounded"
    return f"at least {fixed(low, digits, sign=True)}" if ends[0] else f"at most {fixed(high, digits, sign=True)}"


def significant(value: float, digits: int = 3) -> str:
    """A plain decimal of at least `digits` significant figures; powers of ten only where it would be unreadable."""
    if value == 0 or math.isinf(value):
        return fixed(value, 0)
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 14:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return fixed(value, max(0, digits - 1 - exponent))


def size(value: object) -> str:
    """Bytes in decimal units, as file listings of model hubs give them."""
    known = number(value)
    if known is None:
        return NOT_MEASURED
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if known >= bytes_:
            return f"{significant(known / bytes_)} {unit}"
    return f"{significant(known)} B"


def quantity(value: object, digits: int | None = None) -> str:
    """An unsigned number: to `digits` decimals, or to three figures where they are not given."""
    known = number(value)
    if known is None:
        return NOT_MEASURED
    return significant(known) if digits is None else fixed(known, digits)


ON_SCREENS = {"neutral": "no named regime"}
"""What files call, and how a screen says it."""


def words(identifier: object) -> str:
    """`hidden_danger` as `hidden danger`; what files call otherwise than screens, as screens do."""
    text = ON_SCREENS.get(str(identifier), plain(identifier))
    return text.replace("not_resolvable", "inconclusive").replace("_", " ")


@dataclass(frozen=True, slots=True)
class DisplayNames:
    """Columns and metrics by their names in a report.

    Attributes:
        judges: each rate by judges to its judges, as they can be shown; without them it is by `judge`.
    """

    judges: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def label(self, column: str) -> str:
        """A column or metric name as a heading; a judge's rate with its judges."""
        from quantverdict.registry import METRICS  # heavier than all that the command line needs of this module

        whole = METRICS[column].label if column in METRICS else _WHOLE.get(column)
        if whole:
            names = self.judges.get(column)
            return f"{whole}{'s' * (len(names) > 1)} {', '.join(names)}" if names else whole
        return " ".join(_NAMES.get(part, part) for part in column.split("_"))

    def instrument(self, metric: str) -> str:
        """`by pattern`, or by which judge; empty for a metric that names no instrument."""
        return "".join(self.label(metric).partition(" by ")[1:]).strip()

    def measured(self, metric: str) -> str:
        """A metric by its identifier, and the instrument that it is by."""
        by = self.instrument(metric)
        return f"{metric} ({by})" if by else metric

    def bare(self, metric: str) -> str:
        """A metric's name without its instrument, which stands beside it."""
        return self.label(metric).partition(" by ")[0]

    def refusal_delta(self, policy: Mapping[str, object]) -> str:
        """The heading of refusal deltas: by which instrument they are."""
        return f"refusal delta {self.instrument(plain(policy.get('refusal_metric') or 'refusal_rate'))}".rstrip()


def table_value(column: str, value: object) -> str:
    """A CSV value as a table shows it, by the ending of its column's name."""
    if value is None or value == "":
        return NOT_MEASURED
    known = number(value)
    if known is None:
        return plain(value)
    if column == "bpw":
        return fixed(known, 2)
    if "bytes" in column:
        return size(known)
    if column.endswith(("_pp", "_percent")):
        signed = "delta" in column or "_lo" in column or "_hi" in column
        return fixed(known, 2, sign=signed)
    return plain(value) if known == int_or(known) and "." not in str(value) else significant(known, 4)


def int_or(value: float) -> float | int:
    """The whole number a float is, itself where it is none."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted key, text) pairs in its own order; lists are joined."""
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            pairs += flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    if isinstance(value, list):
        if any(isinstance(item, Mapping) for item in value):
            return [pair for k, item in enumerate(value) for pair in flatten(item, f"{prefix}[{k}]")]
        return [(prefix, ", ".join(plain(item) for item in value) or "none")]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    return [(prefix, NOT_MEASURED if value is None or value == "" else plain(value))]


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
