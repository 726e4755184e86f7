"""TinyWorld: complete models small enough to ship, in the shapes of several families, and the scenes they draw."""

from pathlib import Path

MODELS = {"tinyworld": "model", "tinyworld-xl": "xl", "tinyworld-flow": "flow"}  # a base's name: its folder here
RECIPES = {"model": "tinyworld_base.py", "xl": "tinyworld_shapes.py", "flow": "tinyworld_shapes.py"}


def model_directory(name: str = "tinyworld") -> Path:
    """Where a packaged model lies.

    Args:
        name: "tinyworld" (Stable Diffusion's classes), "tinyworld-xl" (Stable Diffusion XL's) or "tinyworld-flow"
            (Stable Diffusion 3's, a rectified flow).

    Raises:
        FileNotFoundError: this installation lacks it.
        ValueError: no such name.
    """
    if name not in MODELS:
        raise ValueError(f"no packaged model {name!r}; there are {', '.join(MODELS)}")
    directory = Path(__file__).parent / MODELS[name]
    if not (directory / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the packaged model {name!r} is missing; install basinguard again, or train it with "
            f"recipes/studies/{RECIPES[MODELS[name]]}"
        )
    return directory
