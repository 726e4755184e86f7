"""Samples of a calibration on disk while it works, so that one that was stopped goes on without drawing any anew.

What is kept are clean latents of one round of pairs under one product; they decode, and are judged, as at first. A
file belongs to a run with the same weights, base, captions and sampler, and to no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..basin.trajectories import Pairs
from ..core.files import whole_file
from ..core.progress import say
from ..diffusion.evaluation_count import EvaluationCount

Draw = Callable[[], tuple[Tensor, float]]
SUFFIX = ".latents.safetensors"


class SampleArchive:
    """Latents by what they were drawn from.

    Args:
        folder: where they lie; None keeps nothing.
        run: what all of them share, in any words: other words find none of them.
    """

    def __init__(self, folder: Path | None = None, run: str = "") -> None:
        self.folder, self.run = folder, run
        if stored := len(self._files()):
            say(f"{stored} rounds of samples lie in {folder}: what was drawn before is not drawn again")

    def sample(
        self, what: str, texts: Sequence[str], pairs: Pairs, count: EvaluationCount, draw: Draw
    ) -> tuple[Tensor, float]:
        """Latents of these pairs, [N, ...], and the network evaluations of one: from disk, or drawn and written.

        Args:
            what: the product.
            texts: prompts of the pairs.
            pairs: with their noise.
            count: is told what was spent, now or before.
            draw: draws them.
        """
        path = self._path(what, texts, pairs)
        if path is None:
            return draw()
        if path.is_file():
            with safe_open(path, "pt") as stored:
                spent = stored.metadata()
                count.add(int(spent["evaluations"]))
                return stored.get_tensor("latents"), float(spent["each"])
        before = count.total
        latents, each = draw()
        _write(path, latents, {"evaluations": str(count.total - before), "each": repr(each)})
        return latents, each

    def clear(self) -> None:
        """Takes its files away, and the folder where nothing else is in it."""
        for path in self._files():
            path.unlink()
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}")) if self.folder is not None else []

    def _path(self, what: str, texts: Sequence[str], pairs: Pairs) -> Path | None:
        if self.folder is None:
            return None
        asked = [self.run, what, [texts[k] for k in pairs.prompt.tolist()], pairs.seed.tolist()]
        return self.folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}{SUFFIX}"


def _write(path: Path, latents: Tensor, spent: dict[str, str]) -> None:
    """A file, whole or not at all; where it cannot be written, the work goes on without it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, overwrite=True) as partial:
            save_file({"latents": latents.detach().to("cpu", torch.float32).contiguous()}, partial, metadata=spent)
    except OSError as error:
        say(f"samples are not kept, so a stopped calibration would begin anew: {error}")
