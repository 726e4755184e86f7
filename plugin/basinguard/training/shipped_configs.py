"""The configurations that come with the package, found by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs", PACKAGE.parents[1] / "configs")  # of an installed wheel, of a source tree


def located(arguments: Sequence[str]) -> list[str]:
    """A command line whose `--config NAME` is a path: a file of the user's goes first, then one that ships.

    Raises:
        FileNotFoundError: neither is there; names those that ship.

    Example:
        >>> located(["--config", "configs/tinyworld_lora.yaml"])[1].endswith("configs/tinyworld_lora.yaml")
        True
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    return [_path(word) if before == "--config" else word for before, word in zip(["", *words], words, strict=False)]


def _path(name: str) -> str:
    if Path(name).exists() or "\n" in name or ":" in name:  # jsonargparse takes the text of a config as well
        return name
    file = f"{Path(name).stem}.yaml"
    for folder in FOLDERS:
        if (folder / file).is_file():
            return str(folder / file)
    shipped = sorted(path.stem for folder in FOLDERS for path in folder.glob("*.yaml"))
    raise FileNotFoundError(f"--config {name}: no such file; configurations that ship are {', '.join(shipped)}")
