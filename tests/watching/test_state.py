"""A run's state in one safetensors file, back as it was."""

import pytest
import torch
from safetensors.torch import save_file

from basinguard.watching.state import read_run_state, write_run_state


def test_texts_numbers_and_pictures_come_back(tmp_path):
    pictures = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    state = {"guard": {"history": ["{}"], "taught": {"images": pictures, "prompts": ["a", "b"]}}, "settings": "{}"}
    write_run_state(tmp_path / "state.safetensors", state)
    back = read_run_state(tmp_path / "state.safetensors")
    assert torch.equal(back["guard"]["taught"].pop("images"), pictures)
    state["guard"]["taught"].pop("images")
    assert back == state
    write_run_state(tmp_path / "state.safetensors", {"settings": "without pictures"})
    assert read_run_state(tmp_path / "state.safetensors") == {"settings": "without pictures"}


def test_nothing_there_is_no_state_and_another_file_is_refused(tmp_path):
    assert read_run_state(tmp_path / "none.safetensors") is None
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not the state of a watch"):
        read_run_state(tmp_path / "other.safetensors")
