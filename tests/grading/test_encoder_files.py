"""Which files of an encoder's folder are its identity."""

import hashlib

import pytest

from quantverdict.grading.encoders import model_hashes

COUNT = {
    "config.json",
    "vocab.txt",
    "spiece.model",
    "model.safetensors",
    "1_Pooling/config.json",
    "2_Dense/pytorch_model.bin",
}
DO_NOT = {
    "pytorch_model.bin",  # beside safetensors, which are what is loaded
    "README.md",
    "onnx/model.json",
    "openvino/model.txt",
    "coreml/model.safetensors",
    ".cache/config.json",
    ".gitattributes.txt",
    "model.h5",
}


@pytest.fixture
def folder(tmp_path):
    for name in COUNT | DO_NOT:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_configuration_vocabulary_and_the_weights_that_are_loaded_count(folder):
    assert model_hashes(folder) == {name: hashlib.sha256(name.encode()).hexdigest() for name in COUNT}


def test_without_safetensors_the_other_weights_are_what_is_loaded(folder):
    (folder / "model.safetensors").unlink()
    assert set(model_hashes(folder)) == COUNT - {"model.safetensors"} | {"pytorch_model.bin"}
