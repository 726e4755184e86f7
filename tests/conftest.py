"""Fixtures shared by all parts: a random Stable Diffusion pipeline that runs in milliseconds, and image folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from basinguard.tinyworld.scenes import all_captions, draw_scene
from support.tiny_pipeline import build_tiny_pipeline

# models of a few thousand weights are computed faster by one thread than shared out; the variable is for subprocesses
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["BASINGUARD_CACHE"] = ""  # nothing is kept in the cache of whoever runs the tests


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `StableDiffusionPipeline`, v-prediction, fp32, random weights."""
    directory = tmp_path_factory.mktemp("tiny") / "v"
    build_tiny_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_epsilon_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, epsilon prediction."""
    directory = tmp_path_factory.mktemp("tiny") / "epsilon"
    build_tiny_pipeline("epsilon").save_pretrained(directory)
    return directory


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    """Six captioned scenes, 64 x 64 px, with metadata.jsonl; short captions that fit the tiny tokenizer."""
    directory = tmp_path / "scenes"
    directory.mkdir()
    rows = []
    for index, caption in enumerate(all_captions()[:6]):
        draw_scene(caption, seed=index).save(directory / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"a {caption.kind} {index}"})
    (directory / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory
