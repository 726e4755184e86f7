"""What a mitigation is here: prompts and seeds in, clean latents out, at a strength that can be turned.

Every method starts from the same noise for the same seed and ends in latents that one decoder turns into images, so
two rows differ by the method alone. What a method costs is counted on the networks themselves, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..diffusion.sampling import draw_noise
from ..guard.guard import Guard
from ..pipelines.latent_model import LatentModel

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Prompts with one seed each; equal seeds share their initial noise."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.prompts[rows], self.seeds[rows])


@dataclass
class Bench:
    """The model under test and what a method may use of it. Freezes the pipelines it is given.

    Attributes:
        pipe: the fine-tuned `StableDiffusionPipeline`, as it stands.
        guard: knows the training images, the embedder, the guidance scale and the number of sampling steps.
        base: the model that was fine-tuned; None when it is not known.
        checkpoints: earlier states of the same run, most trained first.
        memory: what a method computes once for all its strengths, such as a calibration.
    """

    pipe: Any
    guard: Guard
    base: Any | None = None
    checkpoints: tuple[Path, ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scale > 1:
            raise ValueError(f"scale={self.scale}: ordinary CFG, which every method is compared with, is above 1")
        for pipe in (self.pipe, self.base):
            if pipe is not None:
                for module in (pipe.unet, pipe.vae, pipe.text_encoder):
                    module.requires_grad_(False)
                pipe.set_progress_bar_config(disable=True)

    def once(self, name: str, measure: Callable[[], T]) -> T:
        """What `measure` returned the first time that `name` was asked for."""
        if name not in self.memory:
            self.memory[name] = measure()
        found: T = self.memory[name]
        return found

    @property
    def scale(self) -> float:
        """Guidance scale of ordinary CFG."""
        return self.guard.plan.scale

    @property
    def timesteps(self) -> int:
        """Number of sampling steps."""
        return self.guard.plan.timesteps

    @cached_property
    def model(self) -> LatentModel:
        """The pipeline as a denoiser in epsilon space."""
        return LatentModel(self.pipe)

    def noise(self, batch: Batch) -> Tensor:
        """Initial noise of a batch, [B, C, h, w]: the same for every method."""
        return draw_noise(batch.seeds, self.model.latent_shape)

    @property
    def units(self) -> float:
        """Share of the papers' usual scale, 7.5: what a guidance weight from a paper is multiplied by here."""
        return self.scale / 7.5


Draw = Callable[[Bench, Batch, float], Tensor]


def always(bench: Bench) -> str:
    """Applies to every model."""
    return ""


def needs_base(bench: Bench) -> str:
    """The reason why not, when nothing of the base model is at hand."""
    if bench.base is not None or getattr(bench.pipe.unet, "peft_config", None):
        return ""
    return "needs the base model: give its directory or hub id as base"


def needs_cross_attention(bench: Bench) -> str:
    """The reason why not, when no layer attends to the prompt."""
    processors = getattr(bench.pipe.unet, "attn_processors", {})
    return "" if any("attn2" in name for name in processors) else "the model has no cross-attention to change"


def nothing(bench: Bench) -> None:
    """Nothing to compute once."""


def no_note(bench: Bench, strength: float) -> str:
    """Nothing to add."""
    return ""


def no_further(bench: Bench, strength: float) -> Sequence[nn.Module]:
    """No UNet but those of the bench."""
    return ()


@dataclass(frozen=True)
class Method:
    """One mitigation.

    Attributes:
        name: what it is called in tables and on the command line.
        source: paper and equation.
        strength: what the number means, in a few words.
        strengths: the points of its curve, mildest first.
        default: the one that stands for the method in the table of costs.
        draw: samples a batch at a strength, clean latents [B, C, h, w].
        applies: the reason why it cannot run on a model, or "".
        note: what a reader of the row must know, or "".
        prepare: computes what all strengths share, such as a calibration; not counted in the cost of a sample.
        further: UNets it evaluates at a strength beside those of the bench, so that their rows are counted too.
        ours: whether it is this package's own.
    """

    name: str
    source: str
    strength: str
    strengths: tuple[float, ...]
    default: float
    draw: Draw
    applies: Callable[[Bench], str] = always
    note: Callable[[Bench, float], str] = no_note
    prepare: Callable[[Bench], object] = nothing
    further: Callable[[Bench, float], Sequence[nn.Module]] = no_further
    ours: bool = False

    def why_not(self, bench: Bench) -> str:
        """Why it cannot run on this model, or ""."""
        return no_guidance(bench) or self.applies(bench)


def no_guidance(bench: Bench) -> str:
    """The reason why no method has anything to act on, or ""."""
    if bench.pipe.unet.config.get("time_cond_proj_dim") is not None:
        return "the model is guidance-distilled: it has no unconditional branch"
    return ""


@dataclass
class Count:
    """Rows that went through a network: one for each sample and branch."""

    rows: int = 0


@contextmanager
def counted(networks: Sequence[nn.Module]) -> Iterator[Count]:
    """Inside, every row that any of the networks evaluates is counted, whoever calls it."""
    count = Count()

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        count.rows += len(args[0] if args else kwargs["sample"])

    hooks = [network.register_forward_hook(after, with_kwargs=True) for network in networks]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def networks(bench: Bench) -> list[nn.Module]:
    """Every UNet a method of this bench may call, once each."""
    found = [bench.pipe.unet] + ([bench.base.unet] if bench.base is not None else [])
    return list({id(network): network for network in found}.values())


@torch.no_grad()
def sample(bench: Bench, method: Method, strength: float, batch: Batch) -> tuple[Tensor, int]:
    """Clean latents of a batch under a method, and the UNet rows they took.

    Raises:
        ValueError: the method does not apply to this model.
        FloatingPointError: it returned values that are not finite.
    """
    reason = method.why_not(bench)
    if reason:
        raise ValueError(f"{method.name} cannot run here: {reason}")
    method.prepare(bench)
    with counted([*networks(bench), *method.further(bench, strength)]) as count:
        latents = method.draw(bench, batch, strength).float().cpu()
    if not bool(torch.isfinite(latents).all()):
        raise FloatingPointError(f"{method.name} at strength {strength:g} returned latents that are not finite")
    return latents, count.rows
