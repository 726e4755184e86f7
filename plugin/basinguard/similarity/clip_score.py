"""Does the image show what the caption says? CLIP score by any open_clip model, its name beside the number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..core.text import one_line
from .embedder import BATCH, check_images, unit
from .preprocessing import Preprocessing

LOCAL = "local-dir:"
TINY = f"{LOCAL}{Path(__file__).parents[1] / 'tinyworld' / 'clip'}"
SD2_FAMILY = "ViT-H-14"  # Stable Diffusion 2 was trained against this model's text tower


class ClipScore:
    """Cosine of image and caption in one open_clip model.

    Attributes:
        name: architecture and weights; a score means nothing without it.

    Source: Hessel et al., arXiv 2104.08718 (without its factor 2.5 and clipping at 0).
    """

    def __init__(self, name: str, model: Any, tokenizer: Callable[..., Tensor]):
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._prepare = Preprocessing.of_open_clip(model.visual)

    @classmethod
    def load(cls, model: str | Path = TINY, pretrained: str | None = None, *, device: str = "cpu") -> Self:
        """Loads any open_clip model.

        Args:
            model: a folder with `open_clip_config.json`, an open_clip architecture such as "ViT-B-32", or
                "hf-hub:owner/name". The default is TinyWorld's own, which ships with basinguard.
            pretrained: open_clip's tag or a weight file; needed with an architecture, refused otherwise.
            device: where to run it.

        Raises:
            FileNotFoundError: no such folder, no weights in it, or weights that are not here and cannot be downloaded.
            ValueError: `pretrained` is missing, unknown or not wanted; the known tags are listed.
        """
        import open_clip

        identifier, name = _identify(model, pretrained)
        try:
            built = open_clip.create_model(identifier, pretrained=pretrained, device=device, require_pretrained=True)
        except (RuntimeError, OSError) as error:
            problem = one_line(str(error), 200)
            raise FileNotFoundError(
                f"{name}: no weights that fit, neither here nor from the Hub ({problem}); give a folder instead"
            ) from None
        return cls(name, built, open_clip.get_tokenizer(identifier))

    @property
    def note(self) -> str:
        """What a reader must know about this model, or ""."""
        if SD2_FAMILY not in self.name:
            return ""
        return f"{SD2_FAMILY} is the family Stable Diffusion 2 was trained against: report a second model beside it"

    @torch.no_grad()
    def score(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine similarity of each image and its caption, [B], in -1..1.

        Args:
            images: [B, 3, H, W] in [0, 1], any size.
            captions: one for each image; words the model never saw are allowed.

        Raises:
            ValueError: another number of captions than images, or images that cannot be read.
        """
        if len(captions) != len(images):
            raise ValueError(f"{len(images)} images and {len(captions)} captions given; expected one caption each")
        return (self.embed_images(images) * self.embed_captions(captions)).sum(1)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [0, 1]."""
        prepared = self._prepare(check_images(images)).to(self._device)
        return unit(torch.cat([self.model.encode_image(part) for part in prepared.split(BATCH)]).float()).cpu()

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of captions."""
        if isinstance(captions, str) or not captions:
            raise ValueError(f"captions {captions!r} given; expected a list with at least one text")
        return unit(self.model.encode_text(self._tokenizer(list(captions)).to(self._device)).float()).cpu()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _identify(model: str | Path, pretrained: str | None) -> tuple[str, str]:
    """What open_clip wants to be told, and the name to print."""
    import open_clip

    text = str(model)
    folder = Path(text.removeprefix(LOCAL))
    if text.startswith(LOCAL) or folder.is_dir():
        if pretrained:
            raise ValueError(f"pretrained={pretrained!r} given with the folder {folder}, which has its own weights")
        if not (folder / "open_clip_config.json").is_file():
            raise FileNotFoundError(f"{folder}: no open_clip_config.json; expected a folder saved by open_clip")
        return f"{LOCAL}{folder}", f"open_clip {folder.parent.name}/{folder.name}"
    if ":" in text:
        return text, f"open_clip {text}"
    if text not in open_clip.list_models():
        raise ValueError(f"{text!r} is neither a folder nor an open_clip architecture; see open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(text)
    if pretrained is None or (pretrained not in tags and not Path(pretrained).is_file()):
        raise ValueError(
            f"pretrained={pretrained!r} given for {text}; expected a weight file or one of {', '.join(tags)}"
        )
    return text, f"open_clip {text} {Path(pretrained).name}"
