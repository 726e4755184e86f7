"""One tiny pipeline and its record for all export tests."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from basinguard.core.record import Record
from support.exports import build_pipe, build_record, with_lora


@pytest.fixture(scope="session")
def pipe() -> StableDiffusionPipeline:
    return build_pipe()


@pytest.fixture(scope="session")
def record(pipe: StableDiffusionPipeline) -> Record:
    return build_record(pipe)


@pytest.fixture(scope="session")
def samples() -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]


@pytest.fixture(scope="session")
def tuned() -> StableDiffusionPipeline:
    """A pipeline with a random LoRA on UNet and text encoder."""
    return with_lora(text=True)
