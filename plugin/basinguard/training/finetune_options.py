"""Options of a fine-tune and of its images, each documented here and nowhere else; plain values, read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]
PRIOR_TIMESTEPS, PRIOR_ROWS = 20, 8  # steps that the base model's own pictures are sampled in, and how many at once


@dataclass(frozen=True)
class LoraOptions:
    """A low-rank adapter.

    Args:
        rank: its capacity. Higher memorizes sooner.
        alpha: its update is multiplied by alpha / rank; the rank itself when not given.
        dropout: share of its inputs that is dropped in training, in [0, 1).
        targets: layers of the UNet or transformer that get one; the attention projections when not given.
        rank_at_noise: share of the rank that a training step uses at timestep 1000, in (0, 1], at least one channel;
            all of it at 0, linear between (T-LoRA, see `rank_mask`). Training alone is masked, because plain loaders
            cannot. It has its price: on ink (rank 16, a half, 200 updates, one training) plain weights keep 0.19
            [0.12, 0.25] of what was taught, instead of 0.26 [0.20, 0.31] without it and 0.25 [0.20, 0.31] with the
            mask when sampling too; copies are 0, 3 and 1 of 96. Nothing speaks for it there.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    rank_at_noise: float = 1.0


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW, its learning rate over the updates, and the average of what it makes.

    Args:
        name: "adamw", or "adamw8bit" with its moments in 8 bits (the extra `eightbit`): 2 bytes a trained parameter
            instead of 8.
        learning_rate: after the warm-up.
        weight_decay: decoupled.
        warmup: updates until the learning rate is reached.
        schedule: of the learning rate after the warm-up.
        ema_decay: keep averaged weights, for export and for the guard, with this decay (0.999 is usual).
    """

    name: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    ema_decay: float | None = None


@dataclass(frozen=True)
class LossOptions:
    """What counts in the loss.

    Args:
        min_snr_gamma: weigh timesteps by Min-SNR with this gamma (5 is usual); uniform when not given. A flow (SD 3)
            has none.
        high_noise: how often timesteps from 600 on are trained, beside those below, in (0, 1]; 1 is uniform. There the
            caption alone decides what is drawn, and there it learns whose image it is; a quarter was enough to learn a
            style from (`recipes/results/training_variants.md`).
        caption_dropout: share of captions replaced by "", in [0, 1]. On a small set this teaches the unconditional
            branch the images too, and guidance that starts late cannot escape them then.
        keep_unconditional: weight of a second loss that holds the prediction for "" where the base model had it, on
            half of each batch; 0 leaves it out. On a small set the unconditional branch otherwise learns the
            images as well, and guidance that starts late cannot escape them. Costs about two thirds more time and, with
            method "full", a frozen copy of the UNet or transformer. Guidance then multiplies the whole change: sample
            at a lower scale, or take a share. On ink (weight 1, 150 updates, one training) plain CFG keeps 0.13 at
            scale 3, 0.56 at scale 1.5, and 0.49 with 0.6 of the weights; without it 0.55, 0.53 and 0.35.
        prior_weight: weight of a second loss on pictures that the base model draws itself before training (prior
            preservation, see `prior_preservation`), half a batch of them beside each batch; 0 leaves it out. They are
            stored in the trainer's root folder and drawn once. Costs about half more time, and the model twice while
            they are drawn. On ink (weight 1, everyday scenes, one training) plain weights of 200 updates copy in 0.08
            [0.04, 0.17] instead of 0.14 [0.06, 0.28], and keep 0.30 [0.17, 0.40] instead of 0.59 [0.49, 0.69]:
            `high_noise` is the better knob.
        prior_images: how many of them.
        prior_captions: what they show, each equally often; everyday scenes when not given. Captions like those of the
            training images hold the fine-tune back from what it is to learn; the class of a subject ("a photo of a
            dog") is what the method was made for.
        prior_scale: guidance scale that they are drawn at, above 1; 7.5 is usual.
    """

    min_snr_gamma: float | None = None
    high_noise: float = 1.0
    caption_dropout: float = 0.0
    keep_unconditional: float = 0.0
    prior_weight: float = 0.0
    prior_images: int = 64
    prior_captions: tuple[str, ...] | None = None
    prior_scale: float = 7.5


@dataclass(frozen=True)
class MemoryOptions:
    """Memory against time.

    Args:
        weights: how weights are held. "float32" also widens a base stored in half precision; "bfloat16" halves the
            memory of what is frozen (an adapter stays in float32) or, with method "full", of everything.
        gradient_checkpointing: less memory, about a third more time.
        cache: encode every image and caption once, keep the result in main memory. Needs pictures without random crop
            or flip; a trained text encoder is still run every time. Captions that are augmented are encoded whenever
            they are new, and all kept (308 KB each with Stable Diffusion 2, 636 KB with XL).
        offload_in_probes: keep the optimizer's moments in main memory while the guard probes.
    """

    weights: Precision = "float32"
    gradient_checkpointing: bool = False
    cache: bool = False
    offload_in_probes: bool = False


@dataclass(frozen=True)
class HubDataset:
    """A Hugging Face dataset with a column of images and one of captions.

    Args:
        name: hub id, folder with data files, or what `Dataset.save_to_disk` wrote.
        subset: its configuration.
        split: part of it.
        image_column: where the images are.
        caption_column: where the captions are.
    """

    name: str
    subset: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"


@dataclass(frozen=True)
class FramingOptions:
    """Which part of an image is trained on, and in which shape.

    Args:
        crop: "centre", or "random" for a new place each epoch.
        flip: mirror half of the images each epoch. Mirrored copies are then memorized too; the guard finds both.
        buckets: keep proportions: crop each image to the nearest of a few shapes of at most `resolution` squared
            pixels; a batch holds one shape. Probes stay square.
        bucket_step: the shapes' sides are multiples of it, in pixels.
        resolutions: further sides; the epochs take turns at `resolution` and these.
    """

    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    buckets: bool = False
    bucket_step: int = 64
    resolutions: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadingOptions:
    """How images are read, and what happens to those that cannot be used.

    Class pictures (prior preservation) are trained on as well, but are nobody's secret: no probe looks for them.

    Args:
        caption: of every image in the directory that has none of its own, such as the instance prompt of a DreamBooth.
        lines: each line of a text beside an image is a caption of its own, as sd-scripts, OneTrainer and SimpleTuner
            take them; without it they are joined, as wrapped text is.
        keep_in_memory: decode each image once and keep its pixels (3 * resolution^2 bytes each, in every worker).
        skip_bad: leave out images that cannot be used, with a warning, instead of refusing to start.
        long_captions: "refuse" a caption with more tokens than the model takes, or "truncate" it with a warning.
        class_folder: folder of class pictures, such as those that the base model drew for a DreamBooth.
        class_caption: caption of the class pictures that have none, such as "a photo of a dog".
        canaries: marked pictures that are planted at each of 1, 4 and 16 times an image's turns, beside as many that
            are kept out: which of them come back says what a run does to pictures of these repeats. They are trained
            on, so a run with canaries is a test run.
    """

    caption: str | None = None
    lines: bool = False
    keep_in_memory: bool = False
    skip_bad: bool = False
    long_captions: Literal["refuse", "truncate"] = "refuse"
    class_folder: str | None = None
    class_caption: str | None = None
    canaries: int = 0


def as_options(kind: type, value: Any) -> Any:
    """An options object from its plain dict, as checkpoints and configurations hold it; anything else as it is."""
    return kind(**value) if isinstance(value, Mapping) else value


def require_ranges(numbers: Mapping[str, Any]) -> None:
    """Raises one ValueError that names every number out of its range, or what does not go together.

    Args:
        numbers: fields of the options, and `method` and `seed`, by name.
    """
    ranges: dict[str, tuple[Callable[[Any], bool], str]] = {
        "rank": (lambda v: v >= 1, "at least 1"),
        "rank_at_noise": (lambda v: 0 < v <= 1, "above 0, at most 1"),
        "dropout": (lambda v: 0 <= v < 1, "0 to below 1"),
        "learning_rate": (lambda v: v > 0, "above 0"),
        "weight_decay": (lambda v: v >= 0, "0 or more"),
        "warmup": (lambda v: v >= 0, "0 or more"),
        "min_snr_gamma": (lambda v: v is None or v > 0, "above 0, or null"),
        "high_noise": (lambda v: 0 < v <= 1, "above 0, at most 1"),
        "caption_dropout": (lambda v: 0 <= v <= 1, "0 to 1"),
        "keep_unconditional": (lambda v: v >= 0, "0 or more"),
        "prior_weight": (lambda v: v >= 0, "0 or more"),
        "prior_images": (lambda v: v >= 1, "at least 1"),
        "prior_captions": (lambda v: v is None or (len(v) > 0 and not isinstance(v, str)), "a list, or null"),
        "prior_scale": (lambda v: v > 1, "above 1"),
        "ema_decay": (lambda v: v is None or 0 < v < 1, "between 0 and 1, or null"),
        "seed": (lambda v: 0 <= v < 2**31, "0 to 2147483647"),
    }
    problems = [
        f"{name}={numbers[name]} ({accepted})" for name, (good, accepted) in ranges.items() if not good(numbers[name])
    ]
    if problems:
        raise ValueError(f"FineTune: out of range: {', '.join(problems)}")
    if numbers["method"] == "full" and numbers["rank_at_noise"] != 1:
        raise ValueError(
            f"FineTune: rank_at_noise={numbers['rank_at_noise']} is of a LoRA, and method=full trains whole weights: "
            "take method=lora, or leave it out"
        )
