"""Semantic scores without an encoder: what is encoded how often, what is kept, what bad input is told."""

from __future__ import annotations

import json

import pytest

from quantverdict.bundle.store import NumberStore
from quantverdict.config import BertScoreConfig, CoherenceConfig, Model, SemanticConfig, Source, Study, Variant
from quantverdict.errors import ArtifactError, BundleError, EngineError, QuantverdictError
from quantverdict.grading import encoders, semantic
from quantverdict.grading.encoders import EncoderPlacement, Encoders, find_encoders
from quantverdict.grading.semantic import BatchLimits, TextPair, batches, compare_pairs, evict
from quantverdict.records import Response
from quantverdict.tasks.catalog import load_task


class Counting:
    """Encodes a text as its length, compares by their ratio, and remembers what it was asked for."""

    def __init__(self, files=None, placed=None):
        self.asked = []

    def lengths(self, texts):
        return [len(text) for text in texts]

    def embed(self, texts):
        self.asked.append(list(texts))
        return [len(text) for text in texts]

    def compare(self, answers, reference):
        return [answer / reference for answer in answers]

    def size(self, embedding):
        return embedding


def all_of(encoder, pairs, bounds):
    found = {}
    for some in compare_pairs(encoder, pairs, bounds):
        found |= some
    return found


PAIRS = [TextPair("a" * n, "r" * (n % 7 + 1)) for n in range(1, 60)] * 3


def test_each_text_is_encoded_once_however_many_builds_and_chunks_it_is_in():
    encoder = Counting()
    found = all_of(encoder, PAIRS, BatchLimits(batch_tokens=40, chunk_tokens=50))
    asked = [text for batch in encoder.asked for text in batch]
    assert len(asked) == len(set(asked)) == len({text for pair in PAIRS for text in pair})
    assert found == {pair: len(pair.answer) / len(pair.reference) for pair in PAIRS}


def test_a_batch_with_its_padding_stays_in_the_budget_unless_one_text_is_longer():
    texts = ["a" * n for n in (3, 90, 4, 8, 20, 20, 1)]
    made = list(batches(texts, {text: len(text) for text in texts}, 40))
    assert sorted(text for batch in made for text in batch) == sorted(texts)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 40 for batch in made)


def test_texts_of_one_token_or_none_fill_a_batch_to_its_last_token():
    for length in (0, 1):
        texts = [f"{n}" for n in range(50)]
        made = list(batches(texts, dict.fromkeys(texts, length), 40))
        assert [len(batch) for batch in made] == [40, 10]


def test_embeddings_beyond_the_bound_are_dropped_and_made_again():
    pairs = [TextPair("same answer", f"{'r' * n}") for n in range(1, 30)]
    roomy, tight = Counting(), Counting()
    wanted = all_of(roomy, pairs, BatchLimits(40, 50))
    assert all_of(tight, pairs, BatchLimits(40, 50, held_bytes=0)) == wanted
    count = {id(one): sum(batch.count("same answer") for batch in one.asked) for one in (roomy, tight)}
    assert count[id(roomy)] == 1 < count[id(tight)]


def test_a_line_that_a_kill_cut_is_dropped_and_the_others_stay(tmp_path):
    file = tmp_path / "kept.jsonl"
    NumberStore(file).add({"one": 0.25, "two": 0.5})
    file.write_bytes(file.read_bytes() + b'{"key":"three","val')
    again = NumberStore(file)
    assert again.values == {"one": 0.25, "two": 0.5}
    again.add({"three": 1.0})
    assert NumberStore(file).values == {"one": 0.25, "two": 0.5, "three": 1.0}


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    """A call that scores answers, with what it encoded."""
    used = []

    def load(files, placed):
        used.append(Counting())
        return used[-1]

    monkeypatch.setattr(semantic, "TokenEncoder", load)
    monkeypatch.setattr(semantic, "SentenceEncoder", load)
    monkeypatch.setattr(semantic, "place", lambda settings: EncoderPlacement("cpu", "float32", "cpu", 64))
    monkeypatch.setattr(semantic, "cores", lambda: __import__("contextlib").nullcontext())
    files = encoders.EncoderFiles("path:x", tmp_path, 5, {"model": "hash"}, {"torch": "1"})
    tasks = {name: load_task(name) for name in ("starter_summarization", "starter_creative", "starter_harmful")}

    def score(answers, found=files):
        used.clear()
        responses = [
            Response("m", quant, task, tasks[task].items[item].id, "", text, "length", 1, 1)
            for quant, task, item, text in answers
        ]
        given = Encoders(SemanticConfig(), found, found)
        kept = NumberStore(tmp_path / "semantic.jsonl")
        memory = semantic.ScoreMemory(kept.values, kept.add, lambda done, seconds: None)
        scores = list(semantic.semantic_scores(given, tasks, responses, memory, lambda line: None))
        return scores, [text for one in used for batch in one.asked for text in batch]

    score.files = files
    return score


ANSWERS = [
    ("FP16", "starter_summarization", 0, "An answer."),
    ("Q8_0", "starter_summarization", 0, "An answer."),
    ("Q8_0", "starter_creative", 0, "A story."),
    ("Q8_0", "starter_harmful", 0, "I can't."),
    ("Q2_K", "starter_summarization", 0, " \n"),
]


def test_an_answer_is_compared_with_its_reference_or_without_one_with_its_prompt(scoring):
    scores, _ = scoring(ANSWERS)
    assert [(score.quant, score.metric) for score in scores] == [
        ("FP16", "bertscore"), ("FP16", "coherence"), ("Q8_0", "bertscore"), ("Q8_0", "coherence"),
        ("Q8_0", "coherence_prompt"), ("Q2_K", "bertscore"), ("Q2_K", "coherence"),
    ]  # fmt: skip
    assert semantic.identities(Encoders(SemanticConfig(), scoring.files, None))["bertscore"]["files"] == {
        "model": "hash"
    }


def test_an_empty_answer_is_ungraded_with_its_reason_and_is_not_encoded(scoring):
    scores, encoded = scoring(ANSWERS)
    assert [(one.value, one.reason) for one in scores if one.quant == "Q2_K"] == [(None, "the answer is empty")] * 2
    assert all(text.strip() for text in encoded)


def test_equal_answers_have_equal_scores_and_a_second_run_encodes_nothing(scoring):
    first, _ = scoring(ANSWERS)
    assert first[0].value == first[2].value
    again, encoded = scoring(ANSWERS)
    assert again == first
    assert not encoded


def test_a_later_run_encodes_what_is_new_and_another_encoder_everything(scoring):
    scoring(ANSWERS[:2])
    _, encoded = scoring(ANSWERS)
    assert "An answer." not in encoded
    assert "A story." in encoded
    _, encoded = scoring(ANSWERS, encoders.EncoderFiles("path:x", scoring.files.folder, 6, {"model": "hash"}, {}))
    assert encoded.count("An answer.") == 2


def test_what_was_scored_before_a_failure_is_kept(scoring, monkeypatch):
    whole = Counting.embed

    def failing(self, texts):
        if any(text == "A story." for text in texts):
            raise EngineError("no memory")
        return whole(self, texts)

    monkeypatch.setattr(Counting, "embed", failing)
    with pytest.raises(EngineError):
        scoring(ANSWERS)
    monkeypatch.setattr(Counting, "embed", whole)
    _, encoded = scoring(ANSWERS)
    assert encoded.count("An answer.") == 1  # for coherence, which failed; its BERTScore was there


def a_study(folder, **semantic_parts):
    variants = (Variant(quant="FP16", backend="replay"),)
    model = Model(name="m", family="m", baseline="FP16", variants=variants)
    study = Study(study="s", models=(model,), tasks=("starter_qa",), semantic=SemanticConfig(**semantic_parts))
    return study.model_copy(update={"file": str(folder / "study.yaml")})


def test_a_study_without_the_section_has_no_encoders(tmp_path):
    assert find_encoders(a_study(tmp_path).model_copy(update={"semantic": None})) is None


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(encoders, "installed", lambda *packages: {})


def test_a_missing_folder_and_a_layer_too_high_are_said_in_one_line(tmp_path, installed):
    own = BertScoreConfig(source=Source(path="encoder"), layer=13)
    with pytest.raises(ArtifactError, match=r"encoder: does not exist"):
        find_encoders(a_study(tmp_path, bertscore=own, coherence=None))
    (tmp_path / "encoder").mkdir()
    with pytest.raises(ArtifactError, match=r"holds no config\.json"):
        find_encoders(a_study(tmp_path, bertscore=own, coherence=None))
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    with pytest.raises(ArtifactError, match=r"semantic\.bertscore\.layer: has no layer 13; expected 1 to 12"):
        find_encoders(a_study(tmp_path, bertscore=own, coherence=None))
    sentence = CoherenceConfig(source=Source(path="encoder"))
    with pytest.raises(ArtifactError, match=r"holds no modules\.json"):
        find_encoders(a_study(tmp_path, bertscore=None, coherence=sentence))


def test_libraries_that_are_not_installed_are_named_with_what_installs_them():
    with pytest.raises(QuantverdictError, match=r"no-such-library.*pip install 'quantverdict\[semantic\]'"):
        encoders.installed("no-such-library")


def test_another_encoder_needs_its_own_layer():
    with pytest.raises(ValueError, match="layer"):
        BertScoreConfig(source=Source(path="x"))
    assert BertScoreConfig().layer == 40


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "no").touch()
    with pytest.raises(BundleError):
        NumberStore(tmp_path / "no" / "kept.jsonl")


@pytest.mark.parametrize(
    ("most", "kept"), [(100, ["bb", "ccc"]), (5, ["bb", "ccc"]), (4, ["ccc"]), (3, ["ccc"]), (2, []), (0, [])]
)
def test_what_no_later_pair_needs_is_dropped_then_the_oldest_beyond_the_limit(most, kept):
    held = {"a": 1, "bb": 2, "ccc": 3, "d": 1}
    evict(Counting(), held, {"a": 0, "bb": 1, "ccc": 2, "d": -1}, most)
    assert list(held) == kept
