"""The documentation: its commands run and print what it shows, its reference follows from the code, its site builds.

A page is run from top to bottom in a copy of the folder that the tutorial leaves. A block `yaml title="FILE"` is that
file; lines of `sh` and lines after `$` in `console` are commands, and what stands below the latter is what they print
(stderr too where the command fails). Python sessions (`pycon`) are run likewise. What cannot run here has
`<!-- not run: WHY -->` above it: its quantverdict commands are still parsed. `QUANTVERDICT_DOCS=write pytest
tests/test_docs.py` writes what is printed into the pages.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
import yaml

from quantverdict import cli
from quantverdict.bundle.sources import read_sources
from quantverdict.cli import options
from quantverdict.config import load_study
from quantverdict.protocol.gate import GatePolicy
from quantverdict.yaml_file import load_yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
HASH = re.compile(r"\b[0-9a-f]{64}\b")
ASKED = "echo $?"
"""A command before this one may fail; any other may not."""
TIMES = re.compile(r"\b\d+(\.\d+)? (ms|s|min|h)\b")
pytestmark = pytest.mark.xdist_group("docs")


def module(path: Path):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


reference = module(ROOT / "tools" / "reference.py")
BLOCK, commands_in = reference.BLOCK, reference.commands_in


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(page: str, *kinds: str) -> list[re.Match[str]]:
    return [found for found in BLOCK.finditer(page) if found["kind"] in kinds]


def comparable(shown: str) -> str:
    """What is printed without times, hashes of files made here, and spaces that fill a table's last column."""
    lines = (HASH.sub("HASH", TIMES.sub("N s", line)).rstrip() for line in shown.strip("\n").splitlines())
    return "\n".join(lines)


@dataclass
class Reader:
    """Does what a page says, in a folder."""

    folder: Path
    code: int = 0
    wrong: list[str] = field(default_factory=list)
    names: dict[str, object] = field(default_factory=dict)

    def read(self, page: Path) -> str:
        """The page with what its commands really print; what differs, or fails, is in `wrong`."""
        text = BLOCK.sub(lambda block: self.do(page, block), text_of(page))
        if os.environ.get("QUANTVERDICT_DOCS") == "write":
            page.write_text(text, encoding="utf-8")
            self.wrong = [one for one in self.wrong if "prints" not in one]
        return text

    def do(self, page: Path, block: re.Match[str]) -> str:
        kind, body = block["kind"], block["body"]
        if block["file"]:
            (self.folder / block["file"]).write_text(body, encoding="utf-8")
        if kind == "pycon":
            self.python(page, body)
        if block["why"] or kind not in ("sh", "console"):
            return block[0]
        printed, given = [], commands_in(kind, body)
        for (command, shown), after in zip(given, [*given[1:], ("", "")], strict=True):
            found = self.run(command)
            if self.code and after[0] != ASKED and command != ASKED:
                self.wrong.append(f"{name(page)}: {command}: exit {self.code}: {found}")
            if kind == "console" and comparable(found) != comparable(shown):
                self.wrong.append(f"{name(page)}: {command} prints\n{found}")
            printed.append(f"$ {command}\n" + "".join(f"{line.rstrip()}\n" for line in found.strip("\n").splitlines()))
        return block[0].replace(body, "".join(printed)) if kind == "console" else block[0]

    def python(self, page: Path, body: str) -> None:
        """Examples of a Python session, which goes on from block to block."""
        said = io.StringIO()
        test = doctest.DocTestParser().get_doctest(body, self.names, name(page), None, 0)
        with contextlib.chdir(self.folder):
            found = doctest.DocTestRunner(verbose=False).run(test, out=said.write, clear_globs=False)
        self.names = test.globs
        if found.failed:
            self.wrong.append(said.getvalue())

    def run(self, command: str) -> str:
        """What a command prints; its exit code is kept."""
        if command == ASKED:
            return str(self.code)
        words = shlex.split(os.path.expandvars(command.split("  #", maxsplit=1)[0]))
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return ""
        with contextlib.chdir(self.folder):
            if words[0] == "quantverdict":
                return self.execute(words[1:])
            if words[0] == "python" and words[1].endswith("tutorial.py"):
                module(ROOT / "examples" / "tutorial.py").main(words[2:])
                self.code = 0
                return ""
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            self.code = done.returncode
            return done.stdout + (done.stderr if done.returncode else "")

    def execute(self, words: list[str]) -> str:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.code = cli.execute(words)
        said = [stream.buffer.getvalue().decode() for stream in (out, err)]
        return "".join(said if self.code else said[:1])


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Reader, Path]:
    """The tutorial done from its first line to its last, and the folder that it leaves."""
    pytest.importorskip("xllamacpp")
    reader = Reader(tmp_path_factory.mktemp("docs"))
    reader.read(DOCS / "tutorial.md")
    return reader, reader.folder


def test_the_tutorial_runs_and_prints_what_it_shows(finished):
    reader, folder = finished
    assert not reader.wrong, "\n\n".join(reader.wrong)
    assert (folder / "bundle" / "report.html").exists()


RUN = [page for page in PAGES[1:] if page.name != "tutorial.md" and blocks(text_of(page), "sh", "console", "pycon")]


@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_page_runs_and_prints_what_it_shows(page, finished, tmp_path, monkeypatch):
    """Whole pages, from the folder that the tutorial leaves."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    folder = tmp_path / "tutorial"
    shutil.copytree(finished[1], folder)
    reader = Reader(folder)
    reader.read(page)
    assert not reader.wrong, "\n\n".join(reader.wrong)


def test_what_does_not_run_here_has_a_reason():
    """They are listed in docs/reliability.md, which the test of the reference holds."""
    assert all(len(why) > 10 for _, _, why in reference.unrun())


INLINE = re.compile(r"`(quantverdict [^`]+)`")


def quantverdict_commands() -> list[tuple[str, str]]:
    """Every command of ours on any page, in a block or a sentence, and in the examples of the help."""
    shown = [
        (name(page), command)
        for page in PAGES
        for block in blocks(text_of(page), "sh", "console")
        for command, _ in commands_in(block["kind"], block["body"])
        if command.startswith("quantverdict ")
    ]
    told = [(name(page), " ".join(found.split())) for page in PAGES for found in INLINE.findall(text_of(page))]
    helped = [
        (f"help of {key}", f"quantverdict {one}") for key, examples in options.EXAMPLES.items() for one in examples
    ]
    return [*shown, *(one for one in told if "COMMAND" not in one[1]), *helped]


def test_every_command_of_ours_has_arguments_that_are_understood():
    """A sentence may leave arguments out."""
    wrong = []
    for where, command in quantverdict_commands():
        words = [word for word in shlex.split(command.split("  #")[0])[1:] if word not in ("-h", "--help", "--version")]
        group, context = cli.commands, click.Context(cli.commands, info_name="quantverdict")
        try:
            while isinstance(group, click.Group) and words:
                _, group, words = group.resolve_command(context, words)
            group.make_context("quantverdict", words)
        except click.MissingParameter:
            continue
        except click.ClickException as error:
            wrong.append(f"{where}: {command}: {error.format_message()}")
    assert not wrong


def leaves(group: click.Group, before: str = "") -> list[tuple[str, click.Command]]:
    return [
        one
        for key, command in group.commands.items()
        for one in (
            leaves(command, f"{before}{key} ") if isinstance(command, click.Group) else [(before + key, command)]
        )
    ]


def test_the_help_of_every_command_has_an_example_and_every_option_says_what_it_does():
    for key, command in leaves(cli.commands):
        assert options.EXAMPLES.get(key), f"{key}: no example"
        assert all(param.help for param in command.params if isinstance(param, click.Option)), key


def test_the_first_help_lists_every_command_and_exit_code(capsys):
    cli.execute(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {key} " in shown for key in cli.commands.commands)
    assert all(f"  {code} " in shown for code in options.EXIT_CODES)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_yaml_that_is_shown_is_read(page, tmp_path):
    """Whole studies, sources and gate policies by what reads them; parts of one as YAML."""
    file = tmp_path / "shown.yaml"
    for block in blocks(text_of(page), "yaml"):
        shown = yaml.safe_load(block["body"])
        file.write_text(re.sub(r"sha256: \w+\.\.\.", f"sha256: {'a' * 64}", block["body"]), encoding="utf-8")
        if {"study", "tasks"} <= set(shown):
            load_study(file)
        elif {"study", "sources"} <= set(shown):
            read_sources(file)
        elif set(shown) <= set(GatePolicy.model_fields) and page.stem in ("gate", "tutorial", "inconclusive"):
            load_yaml(file, GatePolicy)
        assert shown


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- reference: " in text_of(page)], ids=name)
def test_the_reference_is_what_the_code_says(page):
    text = text_of(page)
    assert reference.written(text) == text, "give `make reference`"


def test_the_schemas_of_studies_and_tasks_are_what_the_code_says():
    assert text_of(reference.SCHEMA) == reference.schema(), "give `make reference`"
    assert text_of(reference.TASK_SCHEMA) == reference.schema("task schema"), "give `make reference`"


def test_every_part_of_the_reference_is_on_a_page():
    shown = {part for page in PAGES for _, part, _ in reference.PART.findall(text_of(page))}
    assert shown == set(reference.PARTS)


@pytest.mark.parametrize("what", ["study", "policy", "gate policy", "sources"])
def test_every_key_says_what_it_does(what):
    silent = [
        f"{model.__name__}.{key}"
        for model in reference.reachable(reference.code(what))
        for key, field in model.model_fields.items()
        if not field.exclude and not reference.key_notes(model).get(key)
    ]
    assert not silent


def test_the_site_builds_strictly(tmp_path):
    """No broken link, no broken anchor, no page that the menu lacks; and nothing that a page would fetch."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    page = text_of(tmp_path / "site" / "index.html")
    assert not re.findall(
        r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//(?!QUANTVERDICT)[^\"]+\.(?:js|css|woff2?)", page
    )
    assert "fonts.googleapis" not in page


def test_the_readme_links_to_files_that_exist():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(ROOT / "README.md"))
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_of_the_repository_that_are_named_exist(page):
    """A path in a page is one from the repository's root, from the package, or of a test beside its folder."""
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|txt|csv))`", text_of(page))
    assert not [
        one for one in named if not any((base / one).exists() for base in (ROOT, ROOT / "src" / "quantverdict"))
    ]


QUOTED = {
    "verdict.md": (
        "No A/A replicate was run", "was not measured", "Format alert", "format and engine together",
        "same weights as",
        "fell back to", "dequantised from", "prompts are missing", "too few prompts to tell",
        "worse by more than the margin",
    ),
    "inconclusive.md": (
        "a loss too near the margin for any number", "have no grade in one of the arms", "can be lost", "unsettled",
        "it could not have failed", "too few prompts to tell",
    ),
    "howto/resume.md": (
        "is not finished", "in use by process", "is of another study", "changed since it was written",
        "the same command goes on where it stopped",
    ),
}  # fmt: skip
"""What pages explain of messages."""


def test_messages_that_pages_explain_are_in_the_code():
    code = "\n".join(text_of(path) for path in (ROOT / "src").rglob("*.py"))
    for page, messages in QUOTED.items():
        text = " ".join(text_of(DOCS / page).split())
        assert not [message for message in messages if message not in text or message not in code], page
