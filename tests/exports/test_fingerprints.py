"""Fingerprints: the same for the same, another for anything else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from basinguard.core.files import file_sha256
from basinguard.exports.fingerprints import dataset_sha256, state_dict_sha256, weights_sha256

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}


def test_a_file_has_the_sum_that_sha256sum_prints(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert (
        file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.permutations(list(TENSORS)))
def test_order_plays_no_part(order):
    assert state_dict_sha256({name: TENSORS[name] for name in order}) == state_dict_sha256(TENSORS)


@pytest.mark.parametrize(
    "other",
    [
        TENSORS | {"a": TENSORS["a"].reshape(3, 2)},
        TENSORS | {"a": TENSORS["a"].double()},
        TENSORS | {"a": TENSORS["a"] + torch.eye(2, 3) * 1e-6},
        TENSORS | {"d": torch.zeros(1)},
        {"a": TENSORS["a"], "b": TENSORS["b"]},
        {"A": TENSORS["a"], "b": TENSORS["b"], "c": TENSORS["c"]},
    ],
    ids=["shape", "dtype", "bits", "more", "less", "name"],
)
def test_anything_else_is_told_apart(other):
    assert state_dict_sha256(other) != state_dict_sha256(TENSORS)


def test_in_memory_as_file_as_directory_and_split_over_files(tmp_path, pipe):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert weights_sha256(tmp_path / "x.safetensors") == weights_sha256(TENSORS)
    pipe.save_pretrained(tmp_path / "one")
    pipe.save_pretrained(tmp_path / "split", max_shard_size="100KB")
    assert len(list((tmp_path / "split" / "unet").glob("*.safetensors"))) > 1
    assert weights_sha256(pipe) == weights_sha256(tmp_path / "one") == weights_sha256(tmp_path / "split")


def test_a_text_encoder_stored_by_another_transformers_is_the_same(tmp_path):
    save = tmp_path / "text_encoder"
    save.mkdir()
    save_file({"text_model.embeddings.weight": TENSORS["a"]}, save / "model.safetensors")
    assert weights_sha256(tmp_path) == state_dict_sha256({"text_encoder.embeddings.weight": TENSORS["a"]})


def test_the_data_set_is_the_same_in_any_order_and_not_content():
    images = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    captions = ["a cat", "a dog"]
    print_ = dataset_sha256(images, captions)
    assert dataset_sha256(images[::-1], captions[::-1]) == print_
    assert dataset_sha256([np.asarray(image) for image in images], captions) == print_
    assert dataset_sha256(images, captions[::-1]) != print_
    assert dataset_sha256(images[:1], captions[:1]) != print_
    alone = hashlib.sha256(np.asarray(images[0]).tobytes()).hexdigest()
    assert dataset_sha256(images[:1], captions[:1]) != alone


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: weights_sha256(p / "none"), FileNotFoundError, "no such file"),
        (lambda p: weights_sha256(p), FileNotFoundError, r"no directory with \*/\*\.safetensors"),
        (lambda p: weights_sha256(3), TypeError, "expected a pipeline"),
        (lambda p: state_dict_sha256({}), ValueError, "no tensor"),
        (lambda p: state_dict_sha256([("a", TENSORS["a"])] * 2), ValueError, "'a': two tensors"),
        (lambda p: state_dict_sha256({"a": torch.empty(2, device="meta")}), ValueError, "meta device"),
        (lambda p: dataset_sha256([], []), ValueError, "no image"),
        (lambda p: dataset_sha256([np.zeros(1)], []), ValueError, "shorter"),
    ],
)
def test_what_cannot_be_fingerprinted_is_an_error(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        weights_sha256(tmp_path / "x.safetensors")
