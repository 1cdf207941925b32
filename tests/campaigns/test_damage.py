"""Torn and flipped bytes in every file of a bundle: refused in one line or named by `verify`, and never passed on.

No command may die of them, and none may end well with another result and seal it.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest

COMMANDS = (
    ["report", "b"], ["gate", "b"], ["gate", "b", "--policy", "gate.yaml"], ["analyze", "b"], ["analyze", "b", "--policy", "other.yaml"],
    ["label", "b", "--out", "new.csv", "--n", "5"], ["diff", "b", "undamaged"], ["judge", "b", "--judge", "judge.yaml"],
)  # fmt: skip
WRITES = ("report", "analyze", "label", "judge")
UNHASHED = ("manifest.json", ".lock")


def flip(path: Path, draw):
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def overwrite(path: Path, draw):
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at : at + 16] = draw.randbytes(len(data[at : at + 16]))
    path.write_bytes(data)


def cut(path: Path, draw):
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def zero(path: Path, draw):
    """What a power cut leaves on some file systems: the length, and zeros."""
    data = path.read_bytes()
    at = draw.randrange(len(data))
    path.write_bytes(data[:at] + bytes(len(data) - at))


def empty(path: Path, draw):
    path.write_bytes(b"")


def lose(path: Path, draw):
    path.unlink()


def folder(path: Path, draw):
    path.unlink()
    path.mkdir()


def drop_line(path: Path, draw):
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


DAMAGES = (flip, flip, overwrite, cut, zero, empty, lose, folder, drop_line)


def damaged(path: Path, draw):
    """Damage a file until its bytes differ; the name of what was done."""
    was = path.read_bytes()
    while True:
        damage = draw.choice(DAMAGES if was else (lose, folder))
        damage(path, draw)
        if not path.is_file() or path.read_bytes() != was:
            return damage.__name__


def files_of(bundle: Path):
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


@pytest.fixture
def expected(finished, fresh, warm, snapshot):
    """What a command gives over the bundle as it was: exit code and bundle."""

    @cache
    def of(*args):
        here = prepared(finished, fresh, "as it was")
        result = warm(args, here, judge=True)
        return result["code"], snapshot(here / "b")

    return of


def prepared(finished, fresh, name="here"):
    here = fresh(finished, name)
    shutil.copytree(here / "b", here / "undamaged")
    return here


def test_a_damaged_finished_bundle(finished, fresh, warm, wrong, snapshot, differing, expected, draw, rounds, figures):
    names = [name for name in files_of(finished / "b") if name != ".lock"]
    n = rounds(8, 10 * len(names))
    bad, refused, named, same = [], 0, 0, 0
    for number in range(n):
        name = names[number % len(names)] if n >= len(names) else draw.choice(names)
        args = COMMANDS[draw.randrange(len(COMMANDS))]
        here = prepared(finished, fresh)
        what = f"{damaged(here / 'b' / name, draw)} of {name}"
        told = warm(["verify", "b"], here)
        if complaint := wrong(told):
            bad.append(f"{what}: verify: {complaint}")
            continue
        if name not in UNHASHED and not (told["code"] == 2 and Path(name).name in told["out"] + told["err"]):
            bad.append(f"{what}: verify does not name it: exit {told['code']}: {told['out'][-200:]}")
            continue
        named += told["code"] == 2
        result = warm(args, here, judge=True)
        if complaint := wrong(result):
            bad.append(f"{what}: {' '.join(args)}: {complaint}")
        elif result["code"] == 2:
            refused += 1
        elif silent := passed_on(args, name, here, result, expected, (warm, snapshot, differing)):
            bad.append(f"{what}: {' '.join(args)}: {silent}")
        else:
            same += 1
    figures(
        f"damage of a finished bundle: {n} of {len(names)} files, {named} named by verify; of the other commands {refused} "
        f"refused in one line, {same} gave what they give without, {len(bad)} failed"
    )
    assert not bad, "\n".join(bad)


def passed_on(args, name, here, result, expected, tools):
    """What is wrong with a command that ended well over a damaged bundle; None where it is right or still named."""
    warm, snapshot, differing = tools
    code, whole = expected(*args)
    if args[0] not in WRITES:
        # It read what was not damaged, and its verdict is the right one.
        return None if result["code"] == code or name in UNHASHED else f"exit {result['code']}, {code} without"
    names = differing(whole, snapshot(here / "b"))
    if not names or name in UNHASHED or warm(["verify", "b"], here)["code"] == 2:
        return None
    return f"exit {result['code']}, and verify finds nothing; differs in {names[:6]}"


def test_a_damaged_unfinished_bundle_is_refused_or_made_whole(
    world, fresh, warm, wrong, snapshot, differing, draw, rounds, figures
):
    """A run that was killed, a file of it damaged, and the run again: never resumed from in silence."""
    args = ["run", "nulls.yaml", "--out", "b"]
    here = fresh(world)
    whole = warm(args, here, judge=True)
    after, n, bad, refused, killed = snapshot(here / "b"), rounds(2, 400), [], 0, 0
    for _ in range(n):
        here = fresh(world)
        at = draw.randrange(whole["operations"] // 10, whole["operations"])
        killed += warm(args, here, judge=True, at=at, how="kill")["code"] == -9
        names = [name for name in files_of(here / "b") if name not in UNHASHED and not name.startswith("timings/")]
        if not names:
            continue
        name = draw.choice(names)
        what = f"killed at {at}, {damaged(here / 'b' / name, draw)} of {name}"
        again = warm(args, here, judge=True)
        if complaint := wrong(again):
            bad.append(f"{what}: {complaint}")
        elif again["code"] == 2:
            refused += 1
        elif names := differing(after, snapshot(here / "b")):
            bad.append(f"{what}: resumed in silence, differs in {names[:6]}")
    figures(
        f"damage of an unfinished bundle: {killed} runs, {refused} refused in one line, {killed - refused - len(bad)} made whole, {len(bad)} failed"
    )
    assert not bad, "\n".join(bad)


def test_links_in_a_bundle_are_never_written_through(world, finished, fresh, warm, snapshot, draw, rounds, figures):
    """A bundle from elsewhere may hold links: whatever a command does, a file outside keeps its bytes."""
    precious, bad, tried = b"precious", [], 0
    names = [*files_of(finished / "b"), ".lock", ".matrix.csv.partial", "responses", "timings", "judgements"]
    commands = [
        *[args for args in COMMANDS if args[0] in WRITES],
        ["run", "study.yaml", "--out", "b"],
        ["gate", "b"],
        ["verify", "b"],
    ]
    chosen = names if rounds(0, 1) else [*draw.sample(names, 4), ".lock"]
    for name in chosen:
        here = fresh(finished)
        outside = here / "outside"
        path = here / "b" / name
        if path.is_dir():
            outside.mkdir()
            (outside / "tiny__FP16.jsonl").write_bytes(precious)
            shutil.rmtree(path)
        else:
            outside.write_bytes(precious)
            path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(outside)
        if draw.randrange(2):
            unfinish(here / "b")
        for args in draw.sample(commands, rounds(1, len(commands))):
            tried += 1
            warm(args, here, judge=True)
            held = outside / "tiny__FP16.jsonl" if outside.is_dir() else outside
            if (
                not held.is_file()
                or held.read_bytes() != precious
                or (outside.is_dir() and len(list(outside.iterdir())) > 1)
            ):
                bad.append(f"{' '.join(args)} wrote through the link {name}")
                break
    figures(f"links in a bundle: {tried} commands over {len(chosen)} links, {len(bad)} written through")
    assert not bad, "\n".join(bad)


def unfinish(bundle: Path):
    path = bundle / "manifest.json"
    if path.is_symlink():
        return
    manifest = json.loads(path.read_text())
    manifest["run"]["finished"] = None
    path.write_text(json.dumps(manifest))
