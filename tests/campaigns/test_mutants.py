"""What is explained of the random changes: each is one that can still be made, once, and has a reason."""

import importlib.util
import sys
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("mutants", Path(__file__).with_name("mutants.py"))
mutants = importlib.util.module_from_spec(SPEC)
sys.modules["mutants"] = mutants
SPEC.loader.exec_module(mutants)


def test_what_is_explained_can_be_drawn_and_has_a_reason():
    reasons = mutants.explained()
    modules = {module for module, *_ in reasons}
    made = {one.key for module in modules for one in mutants.all_mutants(mutants.SRC / "quantverdict" / module)}
    assert not set(reasons) - made, "what the code no longer has"
    assert all(reasons.values())


def test_a_change_is_of_one_place_and_leaves_the_rest():
    module = mutants.SRC / "quantverdict" / "stats" / "__init__.py"
    for one in mutants.all_mutants(module):
        source, changed = mutants.ast.parse(module.read_text()), mutants.mutated(one)
        lines = [mutants.ast.unparse(tree).splitlines() for tree in (source, changed)]
        assert len(lines[0]) == len(lines[1])
        assert sum(a != b for a, b in zip(*lines, strict=True)) == 1, str(one)
