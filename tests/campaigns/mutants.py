"""Random changes of the code of `FOLDERS`: does a test of those folders notice each?

    python tests/campaigns/mutants.py --n 100 --seed 1

A change is one comparison, operator, number, condition or returned value. Messages, annotations, docstrings,
decorators and assertions are left alone. First the tests run once unchanged, and what each of them calls is kept: a
change of a function is then tried against the tests that call it, the quickest first, until one fails; a change
outside of functions against all tests whose file can import the module. Each try is a fork that has the libraries
loaded and gets the changed module by an import hook, so that no file is ever changed. A test that takes more than four
times its processor time, or more memory than any of them needs, counts as noticed.

What no test can notice stands in `mutants_explained.csv` with the reason. The exit code is 1 where a survivor is not
explained there, or where fewer than 95 of 100 were noticed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SRC = ROOT / "src"
FOLDERS = ("stats", "matrix", "protocol", "grading", "labels", "judges")
EXPLAINED = HERE / "mutants_explained.csv"
CACHE = ROOT / ".pytest_cache" / "mutants"
GOAL = 95
PATIENCE = 20
"""Seconds of processor time that a change may add, whatever its tests take."""
MEMORY = 8 << 30
"""Of address space, in bytes, that a change may take."""
NOTICED, SURVIVED, BROKEN = 1, 0, 3
NO_TESTS = 5
"""The exit code of pytest that collected none."""
LIBRARIES = (
    "numpy", "scipy.stats", "scipy.optimize", "scipy.special", "pydantic", "yaml", "jinja2", "rapidfuzz", "hypothesis",
    "hypothesis.strategies", "statsmodels.api", "pingouin", "polars",
)  # fmt: skip
MODULE_LEVEL = ""
"""The function of what stands in no function."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}


@dataclass(frozen=True)
class Mutant:
    """One change: `before` becomes `after` in a function of a module (path below `src/quantverdict`)."""

    module: str
    function: str
    line: int
    number: int
    option: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before}  ->  {self.after}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.module, self.function, self.before, self.after


# --- what can be changed ---------------------------------------------------------------------------------------------


def sites(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt, list[ast.expr | ast.stmt]]]:
    """Each changeable node in the order of the file: its function, and what it can become."""
    yield from _sites(tree, MODULE_LEVEL)


def _sites(node: ast.AST, function: str) -> Iterator[tuple[str, ast.expr | ast.stmt, list[ast.expr | ast.stmt]]]:
    for child in children(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            separator = ".<locals>." if isinstance(node, ast.FunctionDef) else "."
            inner = f"{function}{separator}{child.name}" if function else child.name
        if options := changes(child):
            yield function, child, options
        yield from _sites(child, inner)


def children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that are code, and neither message, annotation, decorator nor assertion."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not left_alone(child):
                yield child


def left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    # An alias of a type: `Value = str | None`.
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and "None" in ast.unparse(node)


def changes(node: ast.AST) -> list[ast.expr | ast.stmt]:
    """What a node can become."""
    match node:
        case ast.Compare():
            return [
                replaced(node, ops=[*node.ops[:at], other(), *node.ops[at + 1 :]])
                for at, op in enumerate(node.ops)
                for other in COMPARISONS[type(op)]
            ]
        case ast.BinOp() if type(node.op) in OPERATORS and not (is_text(node.left) or is_text(node.right)):
            return [replaced(node, op=other()) for other in OPERATORS[type(node.op)]]
        case ast.BoolOp():
            return [replaced(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [node.operand]
        case ast.Constant() if type(node.value) is int:
            return [ast.Constant(node.value + 1), ast.Constant(node.value - 1)]
        case ast.Constant() if type(node.value) is float:
            return [ast.Constant(node.value * 1.25 if node.value else 1.0)]
        case ast.If() | ast.IfExp():
            return [replaced(node, test=test) for test in (negated(node.test), ast.Constant(True), ast.Constant(False))]
        case ast.While():
            return [replaced(node, test=ast.Constant(False))]
        case ast.comprehension(ifs=[_, *_]):
            return [replaced(node, ifs=[negated(node.ifs[0]), *node.ifs[1:]]), replaced(node, ifs=node.ifs[1:])]
        case ast.Return(value=ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            return [replaced(node, value=ast.Constant(None))]
    return []


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def replaced(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def all_mutants(module: Path) -> list[Mutant]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    name = module.relative_to(SRC / "quantverdict").as_posix()
    return [
        Mutant(name, function, line_of(node), number, option, first_line(node), first_line(after))
        for number, (function, node, options) in enumerate(sites(tree))
        for option, after in enumerate(options)
    ]


def line_of(node: ast.AST) -> int:
    return node.target.lineno if isinstance(node, ast.comprehension) else node.lineno


def first_line(node: ast.AST) -> str:
    """The text of a change, in which a block is its first line."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).strip().partition("\n")[0][:140]


def mutated(mutant: Mutant) -> ast.Module:
    """The changed module."""
    tree = ast.parse((SRC / "quantverdict" / mutant.module).read_text(encoding="utf-8"))
    _, node, options = next(site for number, site in enumerate(sites(tree)) if number == mutant.number)
    after = options[mutant.option]

    class Swap(ast.NodeTransformer):
        def visit(self, other: ast.AST) -> ast.AST:
            return after if other is node else self.generic_visit(other)

    return ast.fix_missing_locations(Swap().visit(tree))


def drawn(n: int, seed: int, found: Sequence[Mutant]) -> list[Mutant]:
    """A place first, each as likely, and then one of the changes that it has."""
    places: dict[tuple[str, int], list[Mutant]] = {}
    for mutant in found:
        places.setdefault((mutant.module, mutant.number), []).append(mutant)
    draw = random.Random(seed)
    chosen = draw.sample(sorted(places), min(n, len(places)))
    return [draw.choice(places[place]) for place in chosen]


# --- running tests in a fork -----------------------------------------------------------------------------------------


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module in its changed form to whoever imports it."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = "quantverdict." + mutant.module.removesuffix(".py").replace("/", ".")
        self.path = str(SRC / "quantverdict" / mutant.module)
        self.code = compile(mutated(mutant), self.path, "exec")

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code, module.__dict__)


class Chosen:
    """Plugin: only the tests named, in the order named; no shrinking of examples, nothing kept of them.

    Where it is known how long a test takes, the process ends by SIGPROF in one that goes on far beyond that.
    """

    def __init__(self, names: Sequence[str] | None, seconds: Mapping[str, float] | None = None) -> None:
        self.order = None if names is None else {name: number for number, name in enumerate(names)}
        self.seconds = seconds or {}

    def pytest_runtest_logstart(self, nodeid) -> None:
        if nodeid in self.seconds:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE + 4 * self.seconds[nodeid])

    def pytest_sessionstart(self, session) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", deadline=None, database=None, derandomize=True, phases=phases)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items) -> None:
        if self.order is not None:
            items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])


class Calls:
    """Plugin: the functions of `FOLDERS` that each test calls, and how long it takes.

    What is called while a file is imported or a fixture is made is told of every test of the file.
    """

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = {}
        self.files: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}
        self.at_import: set[str] = set()
        self.failed: list[str] = []
        self._into = self.at_import
        prefix = str(SRC / "quantverdict") + os.sep
        self._cut = len(prefix)
        self._prefixes = tuple(prefix + folder + os.sep for folder in FOLDERS)

    def _called(self, frame, event, _) -> None:
        if frame.f_code.co_filename.startswith(self._prefixes):
            self._into.add(f"{frame.f_code.co_filename[self._cut :]}::{frame.f_code.co_qualname}")

    def pytest_sessionstart(self, session) -> None:
        threading.settrace(self._called)
        sys.settrace(self._called)

    def pytest_runtest_logstart(self, nodeid) -> None:
        self._into = self.files.setdefault(nodeid.partition("::")[0], set())
        self._since = time.process_time()

    def pytest_runtest_call(self, item) -> None:
        self._into = set()
        self._mine = self._into

    def pytest_runtest_teardown(self, item) -> None:
        self.tests[item.nodeid] = sorted(getattr(self, "_mine", ()))
        self.seconds[item.nodeid] = time.process_time() - self._since
        self._into = self.files[item.nodeid.partition("::")[0]]

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def document(self) -> dict:
        sys.settrace(None)
        threading.settrace(None)
        files = {name: sorted(called) for name, called in self.files.items()}
        return {
            "tests": self.tests, "files": files, "seconds": self.seconds, "failed": self.failed,
            "at_import": sorted(self.at_import),
        }  # fmt: skip


def run_pytest(arguments: Sequence[str], plugins: Sequence[object]) -> int:
    import pytest

    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*quiet, *arguments], plugins=list(plugins)))


def forked(work: Callable[[], int], log: Path, cpu_seconds: float) -> int:
    """Start a child that does `work` and ends with its result; what it prints goes to `log`."""
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1, int(cpu_seconds) + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(handle, stream)
        code = work()
    except BaseException:  # noqa: BLE001 - a change may break anything; the log says what
        traceback.print_exc()
        code = NOTICED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_parallel(jobs: Sequence[Callable[[], int]], workers: int, wall: float) -> Iterator[tuple[int, int]]:
    """Start forks, a few at a time; each is given as (its number, its exit code, negative for a signal)."""
    waiting, running = list(enumerate(jobs)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            number, job = waiting.pop(0)
            running[job()] = number, time.monotonic() + wall
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in running:
            yield running.pop(child)[0], os.waitstatus_to_exitcode(status)
            continue
        for late in [child for child, (_, until) in running.items() if time.monotonic() > until]:
            os.killpg(late, 9)
        time.sleep(0.02)


# --- which tests -----------------------------------------------------------------------------------------------------


def fingerprint(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def profile(workers: int, scratch: Path) -> dict:
    """What each test calls and takes, by one run of each file of unchanged tests; kept until it or the code changes."""
    code = list((SRC / "quantverdict").rglob("*.py"))
    files = [path for folder in FOLDERS for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    kept = {path: CACHE / f"{fingerprint(path, *path.parent.glob('conftest.py'), *code)}.json" for path in files}
    missing = [path for path in files if not kept[path].exists()]
    CACHE.mkdir(parents=True, exist_ok=True)

    def work(path: Path) -> int:
        calls = Calls()
        code = run_pytest([str(path.relative_to(ROOT))], [Chosen(None), calls])
        # A file whose library is not installed is skipped whole, and then has no test.
        code = 0 if code == NO_TESTS else code
        if not code:
            kept[path].write_text(json.dumps(calls.document()))
        return code

    logs = [scratch / f"{path.stem}.log" for path in missing]
    jobs = [partial(forked, partial(work, path), log, 3600) for path, log in zip(missing, logs, strict=True)]
    for number, code in in_parallel(jobs, workers, 3600):
        if code:
            sys.exit(f"{missing[number]} fails unchanged:\n{logs[number].read_text()}")
    whole: dict = {"tests": {}, "files": {}, "seconds": {}, "at_import": set()}
    for path in files:
        part = json.loads(kept[path].read_text())
        for key in ("tests", "files"):
            whole[key] |= {name: frozenset(called) for name, called in part[key].items()}
        whole["seconds"] |= part["seconds"]
        whole["at_import"] |= set(part["at_import"])
    return whole


def tests_of(mutant: Mutant, known: dict) -> list[str]:
    """The tests that can notice a change: those of the mirrored file first, then the quickest."""
    called = f"{mutant.module}::{mutant.function}"
    anywhere = mutant.function == MODULE_LEVEL or called in known["at_import"] or is_cached(mutant)
    if not anywhere and (ROOT / "src/quantverdict" / mutant.module).exists():
        anywhere = not any(called in mine for mine in known["tests"].values()) and not any(
            called in mine for mine in known["files"].values()
        )
    found = [
        name
        for name, mine in known["tests"].items()
        if anywhere or called in mine or called in known["files"].get(name.partition("::")[0], ())
    ]
    if anywhere:
        found = [name for name in found if mutant.module in imports_of(name.partition("::")[0])]
    folder, stem = mutant.module.rsplit("/", 1)
    mirrored = f"tests/{folder}/test_{stem.removesuffix('.py')}"
    return sorted(found, key=lambda name: (not name.startswith(mirrored), known["seconds"][name]))


def is_cached(mutant: Mutant) -> bool:
    """Whether only the first test that asks a function calls it."""
    names = mutant.function.split(".")
    return bool({names[0], names[-1]} & cached_functions(mutant.module))


@cache
def cached_functions(module: str) -> frozenset[str]:
    tree = ast.parse((SRC / "quantverdict" / module).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(one) for one in node.decorator_list)
    )


def imports_of(file: str, seen: dict[str, frozenset[str]] = {}) -> frozenset[str]:  # noqa: B006 - a cache
    """The modules of the package that a test file can come to import."""
    if file not in seen:
        found: set[str] = set()
        queue = [ROOT / file, *list((ROOT / file).parent.glob("conftest.py"))]
        while queue:
            for name in imported(queue.pop()):
                if name not in found:
                    found.add(name)
                    queue.append(SRC / "quantverdict" / name)
        seen[file] = frozenset(found)
    return seen[file]


@cache
def imported(path: Path) -> tuple[str, ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantverdict"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("quantverdict")]
        else:
            continue
        for name in names:
            below = name.removeprefix("quantverdict").lstrip(".").replace(".", "/") + ".py"
            if (SRC / "quantverdict" / below).is_file():
                yield below


# --- the campaign ----------------------------------------------------------------------------------------------------


def explained() -> dict[tuple[str, str, str, str], str]:
    if not EXPLAINED.exists():
        return {}
    with EXPLAINED.open(encoding="utf-8", newline="") as file:
        return {(r["module"], r["function"], r["before"], r["after"]): r["reason"] for r in csv.DictReader(file)}


def tried(mutant: Mutant, tests: Sequence[str], seconds: Mapping[str, float]) -> int:
    """In a fork: the tests against the change."""
    sys.meta_path.insert(0, Changed(mutant))
    files = list(dict.fromkeys(name.partition("::")[0] for name in tests))
    return NOTICED if run_pytest(["-x", "--tb=line", *files], [Chosen(tests, seconds)]) else SURVIVED


def try_all(mutants: Sequence[Mutant], known: dict, workers: int, scratch: Path) -> tuple[list[Mutant], int]:
    """The survivors, and how many of the noticed were by time alone."""
    jobs = []
    for number, mutant in enumerate(mutants):
        tests = tests_of(mutant, known)
        limit = PATIENCE + 4 * sum(known["seconds"][name] for name in tests)
        # Without tests there is nothing to run: no exit code of pytest may then pass for a failure.
        work = partial(tried, mutant, tests, known["seconds"]) if tests else (lambda: SURVIVED)
        jobs.append(partial(forked, work, scratch / f"{number}.log", limit))
    survivors, late = [], 0
    for done, (number, code) in enumerate(in_parallel(jobs, workers, 1800), start=1):
        late += code < 0
        if code == SURVIVED:
            survivors.append(mutants[number])
            sys.stderr.write(f"\r{mutants[number]}\n")
        sys.stderr.write(f"\r{done} of {len(mutants)}, {len(survivors)} not noticed ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return sorted(survivors, key=lambda one: (one.module, one.line)), late


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="changes of modules that begin so, e.g. stats/power.py")
    parser.add_argument("--all", action="store_true", help="every change of --only, not a sample")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(SRC))
    os.environ["PYTHONPATH"] = str(SRC)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    paths = [path for folder in FOLDERS for path in sorted((SRC / "quantverdict" / folder).glob("*.py"))]
    found = [one for path in paths for one in all_mutants(path) if one.module.startswith(options.only)]
    chosen = found if options.all else drawn(options.n, options.seed, found)
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(scratch / "hypothesis")
        survivors, late = try_all(chosen, profile(options.workers, scratch), options.workers, scratch)
    reasons = explained()
    for one in survivors:
        sys.stdout.write(f"{one}  ({reasons.get(one.key, 'NOT EXPLAINED')})\n")
    unexplained = sum(one.key not in reasons for one in survivors)
    noticed = len(chosen) - len(survivors)
    by_time = f" ({late} by time)" if late else ""
    sys.stdout.write(
        f"mutants: {len(chosen)} of {len(found)} (seed {options.seed}), {noticed} noticed{by_time}, "
        f"{len(survivors)} survived, {unexplained} of them not explained\n"
    )
    return int(unexplained > 0 or 100 * noticed < GOAL * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
