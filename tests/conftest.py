"""Fixtures shared by all parts: a random Stable Diffusion pipeline that runs in milliseconds, and image folders."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# Models of a few thousand weights are computed faster by one thread than shared out. Set before torch is imported, also
# for the processes that tests start. Nothing heavy is imported here: with several workers this file is read by one
# process more, which runs no test.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

os.environ["BASINGUARD_CACHE"] = ""  # nothing is kept in the cache of whoever runs the tests


# The millions of objects that torch and its friends make on import stay: they are not looked through again and again.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish() -> None:
    """What was imported and collected is left alone by the collector for good."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_ruler() -> Iterator[None]:
    """What was taught is measured without weights, as where the extra `taught` is not installed: the network takes
    more of a small run than everything else in it."""
    with pytest.MonkeyPatch.context() as patch:
        if "torch" in sys.modules:  # else nothing that was collected measures anything
            patch.setattr(import_module("basinguard.similarity.rulers"), "installed_weights", lambda: None)
        yield


@pytest.fixture
def two_rulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taught is measured by the network as well, where it is installed."""
    rulers, efficientnet = map(import_module, ("basinguard.similarity.rulers", "basinguard.similarity.efficientnet"))
    monkeypatch.setattr(rulers, "installed_weights", efficientnet.installed_weights)


@pytest.fixture(scope="session", autouse=True)
def blank_figures() -> Iterator[Any]:
    """Figures are built and written as blank pictures: to lay out their texts takes more than a small run's probes.

    Yields what draws them, None where matplotlib is not there.
    """
    with pytest.MonkeyPatch.context() as patch:
        figure = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
        draws = getattr(figure, "draw", None)
        if figure is not None:
            patch.setattr(figure, "draw", lambda figure, renderer: figure.patch.draw(renderer))
        yield draws


@pytest.fixture
def drawn_figures(blank_figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, for a test that looks at them."""
    if blank_figures is not None:
        monkeypatch.setattr(import_module("matplotlib.figure").Figure, "draw", blank_figures)


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `StableDiffusionPipeline`, v-prediction, fp32, random weights."""
    from support.tiny_pipeline import build_tiny_pipeline

    directory = tmp_path_factory.mktemp("tiny") / "v"
    build_tiny_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_epsilon_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, epsilon prediction."""
    from support.tiny_pipeline import build_tiny_pipeline

    directory = tmp_path_factory.mktemp("tiny") / "epsilon"
    build_tiny_pipeline("epsilon").save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_xl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `StableDiffusionXLPipeline`, epsilon, fp32, random weights."""
    from support.tiny_pipeline import build_tiny_xl

    directory = tmp_path_factory.mktemp("tiny") / "xl"
    build_tiny_xl().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_sd3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `StableDiffusion3Pipeline` without a third encoder, fp32, random weights."""
    from support.tiny_pipeline import build_tiny_sd3

    directory = tmp_path_factory.mktemp("tiny") / "sd3"
    build_tiny_sd3().save_pretrained(directory)
    return directory


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    """Six captioned scenes, 64 x 64 px, with metadata.jsonl; short captions that fit the tiny tokenizer."""
    from basinguard.tinyworld.scenes import all_captions, draw_scene

    directory = tmp_path / "scenes"
    directory.mkdir()
    rows = []
    for index, caption in enumerate(all_captions()[:6]):
        draw_scene(caption, seed=index).save(directory / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"a {caption.kind} {index}"})
    (directory / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory
