"""A disk that is full at any write: one line, exit 2, and with room again the same command ends as if nothing had been."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STAGES = {
    "run": (["run", "nulls.yaml", "--out", "b"], "world"),
    "ingest": (["ingest", "sources.yaml", "--out", "b"], "world"),
    "analyze": (["analyze", "b", "--policy", "other.yaml"], "finished"),
    "judge": (["judge", "b", "--judge", "judge.yaml"], "finished"),
    "label": (["label", "b", "--out", "sheet.csv", "--n", "20"], "finished"),
    "report": (["report", "b", "--profile", "study"], "finished"),
}
ACCEPTED, REJECTED = 0, 3


class Figures:
    def __init__(self):
        self.refused, self.lost = 0, []


def tried(found, args, folder, fault, after, tools):
    """One command on a full disk, then again with room."""
    warm, wrong, snapshot, differing = tools
    result = warm(args, folder, judge=True, **fault)
    found.refused += result["code"] == 2
    told = wrong(result)
    if told is None and result["code"] == 2 and result["out"].strip():
        told = f"printed a result: {result['out'][-200:]!r}"
    if told:
        found.lost.append(f"{fault}: {told}")
        return
    again = warm(args, folder, judge=True)
    if again["code"] != 0:
        found.lost.append(f"{fault}: again: exit {again['code']}: {again['err'][-300:]}")
    elif names := differing(after, snapshot(folder / "b")):
        found.lost.append(f"{fault}: differs in {names}")


@pytest.fixture
def tools(warm, wrong, snapshot, differing):
    return warm, wrong, snapshot, differing


@pytest.mark.parametrize("stage", STAGES)
def test_no_room_from_some_write_on(stage, world, finished, fresh, tools, draw, rounds, figures):
    """From one file operation on, opening, writing, flushing and renaming fail with ENOSPC."""
    args, kind = STAGES[stage]
    warm, _, snapshot, _ = tools
    origin = {"world": world, "finished": finished}[kind]
    folder = fresh(origin)
    whole = warm(args, folder, judge=True)
    assert whole["code"] == 0, whole["err"]
    after, found, n = snapshot(folder / "b"), Figures(), rounds(1, 60)
    for number in range(n):
        at = 1 + number * whole["operations"] // n + draw.randrange(max(1, whole["operations"] // n))
        tried(found, args, fresh(origin), {"at": at, "how": "full"}, after, tools)
    figures(
        f"disk full in {stage}: {n} writes that failed, {found.refused} refused in one line, {len(found.lost)} lost"
    )
    assert not found.lost, "\n".join(found.lost)


def test_no_file_may_grow(world, fresh, tools, draw, rounds, figures):
    """RLIMIT_FSIZE: whatever writes, also the libraries that write by themselves."""
    args, _ = STAGES["run"]
    warm, _, snapshot, _ = tools
    folder = fresh(world)
    assert warm(args, folder, judge=True)["code"] == 0
    after, found, n = snapshot(folder / "b"), Figures(), rounds(1, 40)
    largest = max(path.stat().st_size for path in (folder / "b").rglob("*") if path.is_file())
    for _ in range(n):
        tried(found, args, fresh(world), {"fsize": int(largest ** draw.random())}, after, tools)
    figures(f"file size limit in run: {n} limits, {found.refused} refused in one line, {len(found.lost)} lost")
    assert not found.lost, "\n".join(found.lost)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: gives a function that sets its size in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        return subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True)

    if mount("-t", "tmpfs", "-o", "size=64m", "none").returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder, lambda size: mount("-o", f"remount,size={size}k")
    subprocess.run(["umount", str(folder)], check=False)


def test_a_disk_that_is_really_full(world, tools, disk, draw, rounds, figures):
    """A tmpfs with less room than a run needs."""
    folder, resize = disk
    args, _ = STAGES["run"]
    warm, _, snapshot, _ = tools
    here = folder / "here"
    shutil.copytree(world, here)
    held = used(folder)
    assert warm(args, here, judge=True)["code"] == 0
    after, needs, found, n = snapshot(here / "b"), used(folder), Figures(), rounds(1, 40)
    for _ in range(n):
        resize(65536)
        shutil.rmtree(here)
        shutil.copytree(world, here)
        size = draw.randrange(held, needs)
        assert resize(size).returncode == 0
        room_again(warm, here, args, lambda: resize(65536), found, after, tools, size)
    figures(
        f"small disk in run: {n} sizes of {held} to {needs} KiB, {found.refused} refused in one line, {len(found.lost)} lost"
    )
    assert not found.lost, "\n".join(found.lost)


def used(folder):
    told = os.statvfs(folder)
    return (told.f_blocks - told.f_bfree) * told.f_frsize // 1024


def room_again(warm, here, args, grow, found, after, tools, size):
    _, wrong, snapshot, differing = tools
    result = warm(args, here, judge=True)
    found.refused += result["code"] == 2
    grow()
    again = warm(args, here, judge=True)
    if told := wrong(result):
        found.lost.append(f"{size} KiB: {told}")
    elif again["code"] != 0:
        found.lost.append(f"{size} KiB: again: {again['err'][-300:]}")
    elif names := differing(after, snapshot(here / "b")):
        found.lost.append(f"{size} KiB: differs in {names}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("args", [["gate", "b"], ["verify", "b"], ["report", "b"]], ids=lambda args: args[0])
def test_a_full_stdout_changes_no_exit_code(args, finished, fresh, rounds):
    """What a command found out is its exit code, whether or not anybody could read the text."""
    if args[0] not in rounds(["gate"], ["gate", "verify", "report"]):
        pytest.skip("in make campaign")
    folder = fresh(finished)
    command = [sys.executable, "-m", "quantverdict", *args]
    expected = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == expected
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
