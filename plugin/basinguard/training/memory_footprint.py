"""How much memory and disk a fine-tune takes, computed before it starts from the base's configuration alone.

Weights, gradients and moments are counted; what an update, a probe and the encoder hold in between is followed on
weightless copies of the model (see `footprint`), with the attention kernels and the mixed precision of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ..pipelines.families.family import Family
from ..pipelines.families.registry import family_named
from ..pipelines.latent_model import DECODE_PIXELS
from ..pipelines.loading import model_config
from .finetune_options import PRIOR_ROWS, LoraOptions, LossOptions, MemoryOptions, OptimizerOptions, Precision
from .peak_memory import checkpointing, peak_bytes
from .trained_weights import Method, trained_layers, unfreeze

CARDS = (12, 16, 24, 48, 80)  # GB, taken as 1e9 bytes
USABLE = 0.95  # of a card; the rest is left to the driver and to fragmentation
EIGHT_BIT = 2  # bytes of both moments of a parameter; otherwise each is as large as the parameter
RUNTIME = 1.0e9  # torch and its libraries in main memory, measured by recipes/studies/fullsize_proof.py; on a GPU too
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
INDEX = "model_index"
Configs = Mapping[str, Mapping[str, Any]]  # of every network by component name, and the index of them


@dataclass(frozen=True)
class ProbeLoad:
    """What the guard holds.

    Attributes:
        rows: (caption, seed) pairs that are sampled at once; each is two rows of the denoiser. 0: no guard.
        precision: of its evaluations.
        export: it writes a pipeline at the end, from a copy of the model.
    """

    rows: int = 0
    precision: Precision = "float32"
    export: bool = False


@dataclass(frozen=True)
class Workload:
    """What decides the memory of a fine-tune; names and defaults are those of `FineTune` and `ImageFolder`.

    Attributes:
        precision: that the network computes in, of Lightning's `precision`.
        probe: what the guard adds.
        gpu: there is a GPU, whose optimizer works on all parameters at once.
    """

    method: Method = "lora"
    lora: LoraOptions = LoraOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    loss: LossOptions = LossOptions()
    memory: MemoryOptions = MemoryOptions()
    train_text_encoder: bool = False
    precision: Precision = "float32"
    resolution: int = 512
    batch_size: int = 4
    probe: ProbeLoad = ProbeLoad()
    gpu: bool = True


@dataclass(frozen=True)
class MemoryFootprint:
    """Bytes of each part; a peak is reached in one of the three phases.

    Attributes:
        weights: of all modules, adapters and copies included.
        optimizer: moments, and the average of the weights.
        update: gradients and activations, at most.
        encode: activations of the image encoder.
        probe: activations of the sampler or the decoder, whichever is more.
        copied: the model once more, while the guard calibrates what it exports or the base draws its own pictures.
        parked: moments that are moved away for a probe.
        trained: how many parameters are trained.
    """

    weights: int
    optimizer: int
    update: int
    encode: int
    probe: int
    copied: int
    parked: int
    trained: int

    @property
    def peak(self) -> float:
        """The most that is needed at one time, with the runtime's own."""
        held = self.weights + self.optimizer
        probe = self.probe + (self.copied or -self.parked)
        return RUNTIME + held + max(self.update, self.encode, probe)

    def lines(self) -> list[str]:
        """The parts in GB (1e9 bytes), for people."""
        parts = {name: getattr(self, name) for name in ("weights", "optimizer", "update", "encode", "probe", "copied")}
        sizes = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
        total = f"{self.peak / 1e9:.1f} GB at most ({sizes}, runtime {RUNTIME / 1e9:.1f}); computed, not measured"
        fitting = [f"{card} GB: {'fits' if self.fits(card) else 'too small'}" for card in CARDS]
        return [total, f"cards of {', '.join(fitting)}"]

    def fits(self, card: float) -> bool:
        """Whether a card of so many GB is large enough."""
        return self.peak <= card * 1e9 * USABLE


def footprint_of(base: str | Path, workload: Workload) -> MemoryFootprint:
    """Memory of a fine-tune of `base`; reads its configuration files, no weights. Takes a few seconds at full size."""
    return footprint(configs_of(partial(model_config, base)), workload)


def configs_of(read: Callable[[str], dict[str, Any]]) -> Configs:
    """What `footprint` needs of a model.

    Args:
        read: gives a JSON file of the model by its name, such as "unet/config.json".
    """
    index = read(f"{INDEX}.json")
    names = family_named(index["_class_name"]).network_names(index)
    return {INDEX: index, **{name: read(f"{name}/config.json") for name in names}}


def footprint(configs: Configs, workload: Workload) -> MemoryFootprint:
    """Memory of a fine-tune of the model that these configurations describe, see `configs_of`."""
    family, options = family_named(configs[INDEX]["_class_name"]), workload.optimizer
    parts = _parts_in_training(family, configs, workload)
    denoiser = parts[family.denoiser_name]
    trained = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    count, size = sum(p.numel() for p in trained), _bytes(trained)
    full_moments = options.name == "adamw"
    moments = 2 * size if full_moments else EIGHT_BIT * count
    holds_copy = workload.loss.keep_unconditional > 0 and workload.method == "full"
    copies = _bytes(denoiser.parameters()) if holds_copy else 0
    weights = sum(_bytes(part.parameters()) for part in parts.values()) + copies
    predict = partial(_prediction, family, denoiser, configs, workload.resolution)
    update = _update(denoiser, predict, workload)
    return MemoryFootprint(
        weights=weights,
        optimizer=moments + (size if options.ema_decay is not None else 0),
        update=max(update, size + (size if workload.gpu and full_moments else 0)),
        encode=_encode(parts["vae"], workload),
        probe=_probe(denoiser, parts["vae"], predict, workload),
        copied=weights - copies if workload.probe.export or workload.loss.prior_weight else 0,
        parked=moments if workload.memory.offload_in_probes else 0,
        trained=count,
    )


def _parts_in_training(family: Family, configs: Configs, workload: Workload) -> dict[str, Any]:
    """The model without numbers, with its adapters, as `FineTune` has it."""
    parts, dtype = empty_parts(configs), getattr(torch, workload.memory.weights)
    for part in parts.values():
        nn.Module.to(part, dtype)  # diffusers' own warns of modules that it would keep in float32: there are none
        part.eval()
    layers = trained_layers(family, parts, workload.lora, train_text_encoder=workload.train_text_encoder)
    unfreeze(parts, layers, workload.method, workload.lora, seed=0)
    return parts


def empty_parts(configs: Configs) -> dict[str, Any]:
    """Denoiser, VAE and text encoders without numbers, by component name, on torch's meta device."""
    with torch.device("meta"):
        return {name: _empty(configs[INDEX][name], config) for name, config in configs.items() if name != INDEX}


def _empty(entry: tuple[str, str], config: Mapping[str, Any]) -> Any:
    library, class_name = entry
    kind: Any = getattr(LIBRARIES[library], class_name)
    if library == "diffusers":
        return kind.from_config(dict(config))
    return kind(kind.config_class(**{key: value for key, value in config.items() if key != "architectures"}))


def _update(denoiser: Any, predict: Callable[[int], Tensor], workload: Workload) -> int:
    denoiser.train()
    autocast = _autocast(workload.precision)
    if workload.memory.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(gradient_checkpointing_func=checkpointing(autocast))

    half = -(-workload.batch_size // 2)
    further = [half for weight in (workload.loss.keep_unconditional, workload.loss.prior_weight) if weight]

    def loss() -> Tensor:
        every = [predict(rows).float() for rows in (workload.batch_size, *further)]
        return torch.stack([F.mse_loss(out, torch.empty_like(out)) for out in every]).sum()

    return peak_bytes(loss, backward=True, autocast=autocast)


def _encode(vae: Any, workload: Workload) -> int:
    side, dtype = workload.resolution, next(vae.parameters()).dtype
    pixels = torch.empty(workload.batch_size, 3, side, side, device="meta", dtype=dtype)
    with torch.no_grad():
        autocast = _autocast(workload.precision)
        return peak_bytes(lambda: vae.encode(pixels).latent_dist.parameters, autocast=autocast)


def _probe(denoiser: Any, vae: Any, predict: Callable[[int], Tensor], workload: Workload) -> int:
    sampled = max(workload.probe.rows, PRIOR_ROWS if workload.loss.prior_weight else 0)
    if sampled == 0:
        return 0
    denoiser.eval()
    autocast, channels = _autocast(workload.probe.precision), vae.config.latent_channels
    side, dtype = workload.resolution // _factor(vae.config.block_out_channels), next(vae.parameters()).dtype
    rows = max(1, DECODE_PIXELS // workload.resolution**2)
    latents = torch.empty(rows, channels, side, side, device="meta", dtype=dtype)
    with torch.no_grad():
        sampling = peak_bytes(lambda: predict(2 * sampled), autocast=autocast)
        return max(sampling, peak_bytes(lambda: vae.decode(latents).sample, autocast=autocast))


def _autocast(precision: Precision) -> torch.dtype | None:
    return torch.bfloat16 if precision == "bfloat16" else None


def _prediction(family: Family, denoiser: Any, configs: Configs, resolution: int, rows: int) -> Tensor:
    """One evaluation of the denoiser at this size."""
    like: dict[str, Any] = {"device": "meta", "dtype": next(denoiser.parameters()).dtype}
    side = resolution // _factor(configs["vae"]["block_out_channels"])
    x = torch.empty(rows, denoiser.config.in_channels, side, side, **like)
    states = {name: torch.empty(rows, *shape, **like) for name, shape in family.state_shapes(configs).items()}
    arguments = family.arguments(states, torch.empty(rows, 6, device="meta", dtype=torch.int64))
    pipe = SimpleNamespace(**{family.denoiser_name: denoiser})
    return family.forward(pipe, x, torch.empty(rows, device="meta", dtype=torch.int64), arguments)


def _factor(widths: Sequence[int]) -> int:
    """Pixels along a side that a VAE whose blocks have these widths makes one latent of."""
    return 2 ** (len(widths) - 1)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
