"""The store gives back what was put in, refuses what was not, and survives a kill at any byte."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantverdict.bundle.files import verified_line
from quantverdict.bundle.jsonl_store import JsonlStore, proved_value, value_of
from quantverdict.bundle.store import (
    BatchTiming,
    CellStore,
    JudgeReply,
    NumberStore,
    append_labels,
    as_response,
    labels_path,
    parse_response,
    read_labels,
    read_responses,
    response_line,
    responses_path,
)
from quantverdict.errors import BundleError, DataError
from quantverdict.records import CellId, Response

CELL = CellId("tiny", "Q8_0")


@pytest.fixture(scope="module")
def plan(kit):
    return kit.make_plan()


@pytest.fixture(scope="module")
def batches(kit, plan):
    backend = kit.EchoBackend()
    return [
        [as_response(CELL, plan.prompts[index], backend.answer(plan.prompts[index])) for index in batch]
        for batch in plan.batches
    ]


def timing(number, batch):
    return BatchTiming(number, len(batch), 5, 7, 0.25, None, (1.0,))


def fill(folder, plan, batches):
    store = CellStore(folder, CELL, plan)
    for number in range(store.done, len(batches)):
        store.append(batches[number], timing(number, batches[number]))
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory, plan, batches):
    folder = tmp_path_factory.mktemp("whole")
    fill(folder, plan, batches)
    return folder


def files(folder):
    return responses_path(folder, CELL), folder / "timings" / "tiny__Q8_0.jsonl"


@settings(max_examples=150)
@given(data=st.data())
def test_a_kill_at_any_byte_then_a_resume_gives_the_same_bytes(data, plan, batches, whole):
    """Both files cut anywhere, the timings never shorter than what was written before the responses."""
    responses, timings = (path.read_bytes() for path in files(whole))
    kept = data.draw(st.integers(0, len(responses)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in zip(files(folder), (responses[:kept], timings), strict=True):
            path.parent.mkdir()
            path.write_bytes(content)
        store = CellStore(folder, CELL, plan)
        lines = responses[:kept].count(b"\n")
        assert sum(len(batch) for batch in plan.batches[: store.done]) <= lines
        assert len(store.timings) == store.done
        fill(folder, plan, batches)
        assert [path.read_bytes() for path in files(folder)] == [responses, timings]


@settings(max_examples=60)
@given(kept=st.integers(0, 10_000), junk=st.binary(max_size=20))
def test_timings_cut_or_broken_anywhere_never_stop_a_resume(kept, junk, plan, batches, whole):
    responses, timings = (path.read_bytes() for path in files(whole))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in zip(files(folder), (responses, timings[:kept] + junk), strict=True):
            path.parent.mkdir()
            path.write_bytes(content)
        store = CellStore(folder, CELL, plan)
        assert store.done == len(batches)
        assert [entry.batch for entry in store.timings] == list(range(len(store.timings)))
        assert responses_path(folder, CELL).read_bytes() == responses


@given(
    text=st.text(st.characters(), max_size=40),
    name=st.text(max_size=10),
    logprobs=st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4).map(tuple),
)
def test_every_text_comes_back_as_it_was_on_one_line(text, name, logprobs):
    """Line separators of all scripts, control characters, astral characters and lone surrogates."""
    response = Response("b", "q", name, "s", "h", text, "stop", 0, 3, None, logprobs)
    line = response_line(response)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    again = parse_response(line[:-1], Path("x"), 1)
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    assert (again.text, again.choice_logprobs) == (paired, logprobs)
    assert response_line(again) == line


@settings(max_examples=200)
@given(data=st.data())
def test_a_fuzzed_file_is_refused_by_line_or_read_as_what_it_says(data, plan, whole):
    """Any byte overwritten: never an exception of another kind, never a file that grew or changed in silence."""
    content = bytearray(files(whole)[0].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as name:
        path = files(Path(name))[0]
        path.parent.mkdir()
        path.write_bytes(content)
        told = None
        try:
            CellStore(Path(name), CELL, plan)
        except DataError as error:
            told = error
        if told is None:
            assert bytes(content).startswith(path.read_bytes())
        else:
            assert (told.file, told.line is not None, path.read_bytes()) == (path, True, content)


def test_a_store_reads_back_what_was_put_in(whole, batches):
    stored = tuple(read_responses(files(whole)[0]))
    assert stored == tuple(response for batch in batches for response in batch)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [lines[0], b"{broken", *lines[2:]], ":2: not valid JSON"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], ":1: sample_id: is tiny/Q8_0/"),
        (
            lambda lines: [lines[0].replace(b'"prompt_sha256":"', b'"prompt_sha256":"0'), *lines[1:]],
            ":1: prompt_sha256",
        ),
        (lambda lines: [*lines, lines[0]], ":13: more lines"),
        (lambda lines: [b"[]", *lines[1:]], ":1: is not a response"),
        (lambda lines: [lines[0].replace(b'"output_tokens":', b'"output_tokens":-'), *lines[1:]], ":1: output_tokens"),
        (lambda lines: [b"", *lines], ":1: not valid JSON"),
    ],
    ids=["bad JSON", "out of order", "another prompt", "one too many", "not an object", "wrong type", "blank line"],
)
def test_a_changed_line_is_refused_by_file_and_line(tmp_path, plan, whole, change, told):
    path = files(tmp_path)[0]
    path.parent.mkdir()
    content = b"\n".join(change(files(whole)[0].read_bytes().split(b"\n")[:-1])) + b"\n"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        CellStore(tmp_path, CELL, plan)
    assert str(caught.value).startswith(f"{path}{told}")
    assert path.read_bytes() == content


def test_nan_is_never_stored(plan):
    with pytest.raises(ValueError, match="not JSON compliant"):
        response_line(Response("b", "q", "t", "s", "h", "", "stop", 0, 3, None, (float("nan"),)))


def test_reading_a_cut_file_says_its_line(tmp_path, whole):
    path = tmp_path / "cut.jsonl"
    path.write_bytes(files(whole)[0].read_bytes()[:-5])
    with pytest.raises(DataError, match=r"cut\.jsonl:12: cut off"):
        tuple(read_responses(path))


def test_a_full_disk_keeps_what_was_stored(tmp_path, plan, batches, monkeypatch):
    """The write that fails half-way leaves nothing; the next try goes on from there."""
    import errno

    store = CellStore(tmp_path, CELL, plan)
    store.append(batches[0], timing(0, batches[0]))
    before = store.path.read_bytes()
    real = os.write

    def full(handle, data):
        if len(data) > 200:
            real(handle, bytes(data[:100]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(BundleError, match="the disk is full"):
            store.append(batches[1], timing(1, batches[1]))
    assert store.path.read_bytes() == before
    assert fill(tmp_path, plan, batches).done == len(batches)


def test_a_line_has_the_keys_of_the_bundle_format_in_order(whole):
    first = json.loads(files(whole)[0].read_bytes().split(b"\n")[0])
    assert list(first) == [
        "base_model", "quant", "task", "sample_id", "prompt_sha256", "text", "finish", "prompt_tokens",
        "output_tokens", "prompt_ids_sha256", "choice_logprobs",
    ]  # fmt: skip


def test_an_empty_plan_is_done_at_once(tmp_path, kit):
    assert CellStore(tmp_path, CELL, kit.make_plan(sizes=())).done == 0


def test_no_flipped_bit_of_an_unfinished_cell_is_resumed_from_in_silence(tmp_path, plan, batches):
    """Of 200 flips in either file each is refused by line, asked again, or said to have lost its checksum."""
    import random

    store = CellStore(tmp_path / "a", CELL, plan)
    for number, batch in enumerate(batches[:3]):
        store.append(batch, timing(number, batch))
    whole = [path.read_bytes() for path in files(tmp_path / "a")]
    assert not CellStore(tmp_path / "a", CELL, plan).unproved
    draw, refused = random.Random(7), 0
    for number in range(200):
        contents = [bytearray(content) for content in whole]
        contents[number % 4 == 0][draw.randrange(len(whole[number % 4 == 0]))] ^= 1 << draw.randrange(8)
        for path, content in zip(files(tmp_path / str(number)), contents, strict=True):
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        try:
            again = CellStore(tmp_path / str(number), CELL, plan)
        except DataError:
            refused += 1
            continue
        kept = files(tmp_path / str(number))[0].read_bytes()
        assert whole[0].startswith(kept), "a damaged answer was resumed from"
        assert again.unproved or again.done < 3 or number % 4 == 0
    assert refused > 100


def test_answers_of_an_older_version_are_resumed_from_and_said_to_have_no_checksum(tmp_path, plan, batches):
    store = fill(tmp_path, plan, batches)
    lines = files(tmp_path)[1].read_text().splitlines()
    old = [{key: value for key, value in json.loads(line).items() if key != "sha256"} for line in lines]
    files(tmp_path)[1].write_text("".join(json.dumps(line) + "\n" for line in old))
    again = CellStore(tmp_path, CELL, plan)
    assert (again.done, again.unproved) == (store.done, True)


def test_what_the_hash_of_a_finished_run_proves_needs_no_checksum(tmp_path, plan, batches):
    fill(tmp_path, plan, batches)
    files(tmp_path)[1].write_bytes(b"")
    size = files(tmp_path)[0].stat().st_size
    assert CellStore(tmp_path, CELL, plan).unproved
    assert not CellStore(tmp_path, CELL, plan, size).unproved


def test_an_answer_that_was_changed_after_it_was_stored_is_refused_by_its_batch(tmp_path, plan, batches):
    """A number that is another one is no mistake of JSON, and only its checksum tells."""
    fill(tmp_path, plan, batches)
    path = files(tmp_path)[0]
    lines = path.read_bytes().split(b"\n")
    at = len(batches[0]) + 1
    lines[at] = lines[at].replace(b'"prompt_tokens":5', b'"prompt_tokens":7')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="answers from here on was changed since it was stored; expected them") as told:
        CellStore(tmp_path, CELL, plan)
    assert told.value.line == len(batches[0]) + 1


def test_reasoning_and_an_opened_prompt_are_keys_only_where_they_say_something(batches):
    """A line without them is the same answer as before: old bundles keep their bytes, and resume."""
    one = batches[0][0]
    line = response_line(one)
    assert b"reasoning" not in line
    assert b"opened" not in line
    assert parse_response(line, Path("x"), 1) == one
    more = replace(one, reasoning="thought", opened=True)
    assert parse_response(response_line(more), Path("x"), 1) == more
    for bad in ({"reasoning": 3}, {"opened": "yes"}):
        with pytest.raises(DataError, match=next(iter(bad))):
            parse_response(json.dumps(json.loads(line) | bad).encode(), Path("x"), 1)


def test_a_prompt_that_ends_inside_a_thought_marks_its_answers(kit, plan):
    prompt = replace(plan.prompts[0], chat="<|im_start|>assistant\n<think>\n")
    answered = kit.EchoBackend().answer(prompt)
    assert as_response(CELL, prompt, answered).opened
    assert not as_response(CELL, replace(prompt, chat="<think>\n\n</think>\n"), answered).opened


def stored_labels(folder: Path) -> Path:
    """Two questions that a judge answered."""
    (folder / "judgements").mkdir()
    (folder / "timings").mkdir()
    said = [
        JudgeReply(f"k{n}", "refusal_v1", "COMPLIANCE", "", "COMPLIANCE \u00e9", (-0.5, -1.25), 90, 3) for n in range(2)
    ]
    append_labels(folder, "first", said, 1.5)
    return folder / labels_path("first")


@given(data=st.data())
def test_no_flipped_bit_of_a_judges_labels_is_resumed_from_in_silence(data):
    """Nothing hashes the labels of a run that is not finished: each line proves itself."""
    with tempfile.TemporaryDirectory() as name:
        path = stored_labels(Path(name))
        before, content = read_labels(Path(name), "first"), bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            after = read_labels(Path(name), "first")
        except DataError:
            return
        # A flip of the last LF leaves a line cut off, which is asked again.
        assert after.items() <= before.items()


def test_labels_of_an_older_version_have_no_checksum_and_are_read(tmp_path):
    path = stored_labels(tmp_path)
    before = read_labels(tmp_path, "first")
    path.write_bytes(b"".join(verified_line(line) + b"\n" for line in path.read_bytes().split(b"\n")[:-1]))
    assert b"crc32" not in path.read_bytes()
    assert read_labels(tmp_path, "first") == before


@given(data=st.data())
def test_a_damaged_value_of_the_score_cache_is_computed_again(data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "cache.jsonl"
        NumberStore(path).add({"a": 0.25, "b": 0.5})
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        assert NumberStore(path).values.items() <= {"a": 0.25, "b": 0.5}.items()


@pytest.mark.parametrize("kind", [{}, {"checked": False}, {"synced": False}], ids=["checked", "plain", "unsynced"])
def test_a_file_that_is_cut_at_any_byte_is_gone_on_from_at_its_last_whole_line(tmp_path, kind):
    """One way for every file that is appended to, with a checksum a line and without."""
    store = JsonlStore(tmp_path / "in" / "a.jsonl", **kind)
    assert (store.lines(), store.read()) == ([], b"")
    store.mend()
    assert not store.path.exists()
    store.append([{"a": 1}, {"b": "é\u2028"}])
    store.append([{"c": None}])
    whole, lines = store.read(), store.lines()
    assert [value_of(line) for line in lines] == [{"a": 1}, {"b": "é\u2028"}, {"c": None}]
    for size in range(len(whole) + 1):
        for repair in (store.recover, store.mend):
            store.path.write_bytes(whole[:size])
            repair()
            kept = lines[: whole[:size].count(b"\n")]
            assert store.lines() == kept
            assert store.read() == b"".join(line + b"\n" for line in kept)
    if kind.get("checked", True):
        assert proved_value(lines[0]) == {"a": 1}
        with pytest.raises(ValueError, match="changed after it was stored"):
            proved_value(lines[0].replace(b"1", b"2", 1))
    else:
        with pytest.raises(ValueError, match="has no checksum"):
            proved_value(lines[0])


def test_a_file_that_cannot_be_appended_to_stays_as_it_was(tmp_path, monkeypatch):
    store, real = JsonlStore(tmp_path / "a.jsonl"), os.fsync
    store.append([1])
    whole = store.read()

    def fail(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BundleError, match=r"a\.jsonl: cannot be written \(Input/output error\)"):
        store.append([2])
    monkeypatch.setattr(os, "fsync", real)
    assert store.read() == whole
    with pytest.raises(ValueError, match="JSON compliant"):
        store.append([float("nan")])
    assert store.read() == whole
