"""What is drawn: discordant pairs whole, the rest with the probability that is written down, and no build told."""

import hmac
from fractions import Fraction

import pytest

from quantverdict.labels.sheet import AT_LEAST, NO_BASELINE, SheetAnswer, SheetPrompt, draw, row_order
from quantverdict.records import CellId

BASE, Q4, Q2 = CellId("m", "F16"), CellId("m", "Q4"), CellId("m", "Q2")


def answered(cell, at, said, text):
    return SheetAnswer(cell, BASE, SheetPrompt("t", f"{at:02}"), "refusal_rate", None, (said, ""), text)


@pytest.fixture
def answers():
    """40 prompts, half refused; Q4 differs at 3 of them, and words 10 others anew; Q2 repeats the baseline."""
    found = []
    for at in range(40):
        said = "1" if at < 20 else "0"
        found.append(answered(BASE, at, said, f"{at} base"))
        other = "0" if at < 3 else said
        found.append(answered(Q4, at, other, f"{at} q4" if at < 3 or at >= 30 else f"{at} base"))
        found.append(answered(Q2, at, said, f"{at} base"))
    return found


def test_both_arms_of_every_discordant_pair_are_certain(answers):
    drawn = draw(answers, 1, 7)
    certain = {entry.answer.text for entry in drawn if entry.certain}
    assert certain == {f"{at} {arm}" for at in range(3) for arm in ("base", "q4")}
    assert all(entry.selected and entry.probability == 1 for entry in drawn if entry.certain)
    assert {entry.answer.cell for entry in drawn if entry.answer.text == "0 base"} == {BASE, Q2}


def test_the_probability_is_the_share_of_its_stratum_that_was_drawn(answers):
    """Checked over seeds too: each prompt is drawn as often as is written down."""
    times, seeds = 0, 400
    for seed in range(seeds):
        drawn = {(entry.answer.cell, entry.answer.prompt): entry for entry in draw(answers, 12, seed)}
        times += drawn[Q4, SheetPrompt("t", "35")].selected
    entry = drawn[Q4, SheetPrompt("t", "35")]
    chosen = {at for (cell, at), one in drawn.items() if cell == BASE and one.selected and at.sample_id >= "20"}
    assert entry.probability == Fraction(len(chosen), 20)
    share = float(entry.probability)
    assert times / seeds == pytest.approx(share, abs=4 * (share * (1 - share) / seeds) ** 0.5)


def test_a_drawn_prompt_is_drawn_for_every_build(answers):
    drawn = draw(answers, 12, 7)
    for prompt in {entry.answer.prompt for entry in drawn if not entry.certain}:
        assert len({entry.selected for entry in drawn if entry.answer.prompt == prompt and not entry.certain}) == 1


def test_some_of_every_stratum_are_drawn_and_all_where_all_are_asked_for(answers):
    drawn = draw(answers, 1, 7)
    for stratum in {entry.stratum for entry in drawn}:
        mine = {entry.answer.prompt for entry in drawn if entry.stratum == stratum and entry.selected}
        assert len(mine) >= min(AT_LEAST, 3)
    assert all(entry.selected for entry in draw(answers, 10_000, 7))


def test_answers_without_a_baseline_are_alike_by_what_they_say_and_all_others_by_their_prompts_stratum(answers):
    """A stratum of a build's own answers says which; that of a pair is the baseline's answer, and says no more."""
    alone = [answered(Q4, at, "1" if at < 50 else "0", f"{at} alone") for at in range(40, 60)]
    of = {(entry.answer.cell, entry.answer.prompt): entry.stratum for entry in draw([*answers, *alone], 10_000, 7)}
    yes, no = of[Q4, SheetPrompt("t", "40")], of[Q4, SheetPrompt("t", "59")]
    assert yes.startswith(NO_BASELINE)
    assert no.startswith(NO_BASELINE)
    assert yes != no
    assert of[Q4, SheetPrompt("t", "35")] == of[BASE, SheetPrompt("t", "35")] == of[Q2, SheetPrompt("t", "20")]
    assert of[BASE, SheetPrompt("t", "35")] != of[BASE, SheetPrompt("t", "05")]


def test_more_rows_hold_what_fewer_held(answers):
    few, many = ({e.answer.text for e in draw(answers, n, 7) if e.selected} for n in (10, 30))
    assert few < many


def test_the_sheet_has_each_text_once_discordant_ones_first(answers):
    drawn = draw(answers, 12, 7)
    order = row_order(drawn, 7)
    assert len(set(order)) == len(order)
    assert set(order[:6]) == {entry.answer.text for entry in drawn if entry.certain}
    assert row_order(drawn, 8) != order


@pytest.mark.parametrize(
    ("wanted", "taken"), [(30, (3, 5, 24)), (1, (3, 4, 4)), (123, (3, 20, 100)), (999, (3, 20, 100)), (12, (3, 4, 10))]
)
def test_each_stratum_gives_its_share_of_the_rows_and_at_least_four(wanted, taken):
    """Strata of 3, 20 and 100 prompts, one text each: the prompts are those with the least hash of seed and name."""
    sizes = {"0": 3, "1": 20, "x": 100}
    labels = [name for name, size in sizes.items() for _ in range(size)]
    answers = [answered(BASE, at, name, f"text {at}") for at, name in enumerate(labels)]
    drawn = draw(answers, wanted, 5)
    for (name, size), share in zip(sizes.items(), taken, strict=True):
        mine = [one for one in drawn if one.answer.said[0] == name]
        assert {one.probability for one in mine} == {Fraction(share, size)}
        hashes = {one.answer.prompt: by_hand(5, "draw", *one.answer.prompt) for one in mine}
        first = sorted(hashes, key=hashes.get)[:share]
        assert {one.answer.prompt for one in mine if one.selected} == set(first)
        assert {one.stratum for one in mine} == {f"{name}/ungraded"}


def by_hand(seed, *parts):
    message = "\0".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(f"labels/{seed}".encode(), message.encode(), "sha256").hexdigest()


def test_a_text_that_models_share_is_drawn_for_all_of_them():
    """Every prompt has one random number: what is drawn of one model is drawn of the other."""
    answers = [
        SheetAnswer(
            CellId(model, "F16"),
            CellId(model, "F16"),
            SheetPrompt("t", f"{at:02}"),
            "refusal_rate",
            None,
            ("1",),
            f"{at}",
        )
        for model in ("m", "n")
        for at in range(40)
    ]
    chosen = {model: {one.answer.text for one in draw(answers, 20, 3) if one.selected and one.answer.cell[0] == model}
              for model in ("m", "n")}  # fmt: skip
    assert chosen["m"] == chosen["n"]
    assert len(chosen["m"]) == 10


def test_no_answer_gives_no_row():
    assert draw([], 10, 1) == ()
    assert row_order([], 1) == []
