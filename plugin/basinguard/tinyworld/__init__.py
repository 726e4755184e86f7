"""TinyWorld: a complete Stable-Diffusion-shaped model small enough to ship, and the scenes it was trained on."""

from pathlib import Path


def model_directory() -> Path:
    """Where the packaged model lies.

    Raises:
        FileNotFoundError: this installation lacks it.
    """
    directory = Path(__file__).parent / "model"
    if not (directory / "model_index.json").is_file():
        raise FileNotFoundError(
            "the packaged model 'tinyworld' is missing; install basinguard again, or train it with "
            "recipes/studies/tinyworld_base.py"
        )
    return directory
