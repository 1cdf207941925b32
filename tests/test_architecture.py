"""The shape of the package: who may import whom, how long a file may be, what a light import may load."""

import ast
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "quantverdict"
# Each layer may import itself and what stands above it.
LAYERS = [
    {"errors", "records", "stats"},
    {"registry", "yaml_file"},
    {"tasks", "policy", "labels"},
    {"instruments"},
    {"config"},
    {"artifacts"},
    {"backends"},
    {"bundle"},
    {"collect", "grading", "ingestion"},
    {"judges", "matrix"},
    {"planning", "protocol"},
    {"reporting"},
    {"stages"},
    {"api"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "polars", "scipy", "xllamacpp", "gguf", "statsmodels"}


def modules():
    return sorted(SRC.rglob("*.py"))


def layer(path):
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name == "quantverdict" and isinstance(node, ast.ImportFrom):
                yield from (alias.name for alias in node.names if alias.name in RANK)
            elif name.startswith("quantverdict."):
                yield name.split(".")[1]


def test_dependencies_point_one_way():
    wrong = [
        f"{path.relative_to(SRC)} imports {other}"
        for path in modules()
        if layer(path) in RANK
        for other in imported_layers(path)
        if RANK[other] > RANK[layer(path)] or (RANK[other] == RANK[layer(path)] and other != layer(path))
    ]
    assert not wrong


PURE = {"grading", "matrix", "protocol", "reporting", "planning", "judges", "labels"}
"""Rooms that get values and return values: `stages` alone opens a bundle."""
NO_BUNDLE_IO = {
    "quantverdict.bundle.prompts": {
        "PromptPlan"
    },  # a value: what is asked, as it is estimated before there is a bundle
    "quantverdict.bundle.files": {"cell_text", "sha256_of"},  # a value as text; the hash of an encoder's own file
    "quantverdict.bundle.store": {"key_of"},  # a hash of values
}


def test_only_stages_open_a_bundle():
    """The rooms that grade, compute, decide and report import nothing that reads or writes one."""
    found = {
        (str(path.relative_to(SRC)), node.module, alias.name)
        for path in modules()
        if layer(path) in PURE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantverdict.bundle")
        for alias in node.names
    }
    assert not {one for one in found if one[2] not in NO_BUNDLE_IO.get(one[1], ())}
    named = {
        f"{path.relative_to(SRC)}: {node.name}: {given.arg}"
        for path in modules()
        if layer(path) in PURE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for given in node.args.args
        if given.arg in ("root", "bundle_dir", "bundle_path")
        or (given.annotation is not None and ast.unparse(given.annotation) in ("Bundle", "DryRunBundle"))
    }
    assert not named


def test_contributing_lists_the_layers():
    """Where it fails, the list that belongs there is in the message."""
    listed = "\n".join(f"{number}. {', '.join(f'`{name}`' for name in sorted(layer))}" for number, layer in
                       enumerate(LAYERS, start=1))  # fmt: skip
    text = (SRC.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"<!-- layers -->\n{listed}\n<!-- end of layers -->" in text, listed


def test_no_small_module_serves_one_other_alone():
    """What has one importer and fewer than 100 lines belongs to it, but for what the registry names."""
    registered = (SRC / "registry" / "__init__.py").read_text(encoding="utf-8")
    names = {path: ".".join(path.relative_to(SRC.parent).with_suffix("").parts) for path in modules()}
    importers = dict.fromkeys(modules(), 0)
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }
        for other, name in names.items():
            importers[other] += other != path and name in used
    small = [
        names[path]
        for path, count in importers.items()
        if count < 2
        and path.stem not in ("__init__", "__main__")
        and path.read_text(encoding="utf-8").count("\n") < 100
        and f".{path.stem}:" not in registered
        and names[path].removeprefix("quantverdict.") not in registered
    ]
    assert not small


def test_every_module_has_a_layer():
    assert {layer(path) for path in modules()} - {"__init__"} <= set(RANK)


def test_no_file_over_600_lines():
    assert not [str(path) for path in modules() if path.read_text().count("\n") > 600]


def test_two_broad_excepts_in_the_tree():
    """Around one cell in collect/generate.py, and at the top of the command line."""
    broad = {
        str(path.relative_to(SRC))
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    }
    assert broad <= {"collect/generate.py", "cli/__init__.py"}


def test_import_and_help_load_nothing_heavy():
    code = (
        "import sys; import quantverdict, quantverdict.cli;"
        "quantverdict.cli.execute(['--help']);"
        "print(sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in result.stdout
    assert not HEAVY & set(ast.literal_eval(result.stderr))


LOADERS = ("from_pretrained", "SentenceTransformer", "LLM", "GPTQModel.load")
"""The ends of what reads a model's folder."""


def test_every_call_that_loads_a_model_says_that_code_in_its_folder_is_not_run():
    """Left out, Transformers asks on the terminal, and `yes |` answers."""
    calls = [
        (path, node)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(LOADERS)
    ]
    assert len(calls) > 12
    for path, call in calls:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", f"{path}:{call.lineno}"


def test_nothing_that_is_read_back_is_run():
    """A cache may be of somebody else's making: no pickle, marshalled code or compiled template is read."""
    loaders = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "UnpicklingError", "BytecodeCache",
               "FileSystemBytecodeCache", "ModuleLoader"}  # fmt: skip
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
            elif isinstance(node, ast.keyword):
                names = {"BytecodeCache"} if node.arg == "bytecode_cache" else set()
            else:
                continue
            found |= {f"{path.relative_to(SRC)}: {name}" for name in names & loaders}
    assert not found
