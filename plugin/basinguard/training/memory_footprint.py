"""How much memory and disk a fine-tune takes, computed before it starts from the base's configuration alone.

Weights, gradients and moments are counted; what an update, a probe and the encoder hold in between is followed on
weightless copies of the model (see `footprint`), with the attention kernels and the mixed precision of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..pipelines.latent_model import DECODE_PIXELS
from ..pipelines.loading import model_config
from .finetune_options import LoraOptions, LossOptions, MemoryOptions, OptimizerOptions, Precision
from .peak_memory import checkpointing, peak_bytes
from .trained_weights import Method, unfreeze

EIGHT_BIT = 2  # bytes of both moments of a parameter; otherwise each is as large as the parameter
RUNTIME = 1.0e9  # torch and its libraries in main memory, measured by recipes/studies/fullsize_proof.py; on a GPU too
PARTS = ("unet", "vae", "text_encoder")
Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ProbeLoad:
    """What the guard holds.

    Attributes:
        rows: (caption, seed) pairs that are sampled at once; each is two rows of the UNet. 0: no guard.
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
        copied: the model once more, while the guard calibrates what it exports.
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
        return [f"{self.peak / 1e9:.1f} GB at most ({sizes}, runtime {RUNTIME / 1e9:.1f}); computed, not measured"]


def footprint_of(base: str | Path, workload: Workload) -> MemoryFootprint:
    """Memory of a fine-tune of `base`; reads its configuration files, no weights. Takes a few seconds at full size."""
    return footprint({name: model_config(base, f"{name}/config.json") for name in PARTS}, workload)


def footprint(configs: Configs, workload: Workload) -> MemoryFootprint:
    """Memory of a fine-tune of the model that these configurations, of "unet", "vae" and "text_encoder", describe."""
    parts, options = _parts_in_training(configs, workload), workload.optimizer
    trained = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    count, size = sum(p.numel() for p in trained), _bytes(trained)
    full_moments = options.name == "adamw"
    moments = 2 * size if full_moments else EIGHT_BIT * count
    holds_copy = workload.loss.keep_unconditional > 0 and workload.method == "full"
    copies = _bytes(parts["unet"].parameters()) if holds_copy else 0
    weights = sum(_bytes(part.parameters()) for part in parts.values()) + copies
    update = _update(parts["unet"], configs, workload)
    return MemoryFootprint(
        weights=weights,
        optimizer=moments + (size if options.ema_decay is not None else 0),
        update=max(update, size + (size if workload.gpu and full_moments else 0)),
        encode=_encode(parts["vae"], workload),
        probe=_probe(parts, configs, workload),
        copied=weights - copies if workload.probe.export else 0,
        parked=moments if workload.memory.offload_in_probes else 0,
        trained=count,
    )


def _parts_in_training(configs: Configs, workload: Workload) -> dict[str, Any]:
    """The model without numbers, with its adapters, as `FineTune` has it."""
    parts, dtype = empty_parts(configs), getattr(torch, workload.memory.weights)
    for part in parts.values():
        nn.Module.to(part, dtype)  # diffusers' own warns of modules that it would keep in float32: there are none
        part.eval()
    unfreeze(parts, workload.method, workload.lora, train_text_encoder=workload.train_text_encoder, seed=0)
    return parts


def empty_parts(configs: Configs) -> dict[str, Any]:
    """UNet, VAE and text encoder without numbers, on torch's meta device."""
    text = {key: value for key, value in configs["text_encoder"].items() if key != "architectures"}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(dict(configs["unet"])),
            "vae": AutoencoderKL.from_config(dict(configs["vae"])),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }


def _update(unet: Any, configs: Configs, workload: Workload) -> int:
    unet.train()
    autocast = _autocast(workload.precision)
    if workload.memory.gradient_checkpointing:
        unet.enable_gradient_checkpointing(gradient_checkpointing_func=checkpointing(autocast))
    predict = _prediction(unet, configs, workload.resolution, workload.batch_size)

    def loss() -> Tensor:
        out = predict().float()
        return F.mse_loss(out, torch.empty_like(out))

    return peak_bytes(loss, backward=True, autocast=autocast)


def _encode(vae: Any, workload: Workload) -> int:
    side, dtype = workload.resolution, next(vae.parameters()).dtype
    pixels = torch.empty(workload.batch_size, 3, side, side, device="meta", dtype=dtype)
    with torch.no_grad():
        autocast = _autocast(workload.precision)
        return peak_bytes(lambda: vae.encode(pixels).latent_dist.parameters, autocast=autocast)


def _probe(parts: Mapping[str, Any], configs: Configs, workload: Workload) -> int:
    if workload.probe.rows == 0:
        return 0
    unet, vae, autocast = parts["unet"].eval(), parts["vae"], _autocast(workload.probe.precision)
    side, dtype = workload.resolution // _factor(configs), next(vae.parameters()).dtype
    rows = max(1, DECODE_PIXELS // workload.resolution**2)
    latents = torch.empty(rows, configs["vae"]["latent_channels"], side, side, device="meta", dtype=dtype)
    predict = _prediction(unet, configs, workload.resolution, 2 * workload.probe.rows)
    with torch.no_grad():
        sampling = peak_bytes(predict, autocast=autocast)
        return max(sampling, peak_bytes(lambda: vae.decode(latents).sample, autocast=autocast))


def _autocast(precision: Precision) -> torch.dtype | None:
    return torch.bfloat16 if precision == "bfloat16" else None


def _prediction(unet: Any, configs: Configs, resolution: int, rows: int) -> Callable[[], Tensor]:
    """One evaluation of the UNet at this size."""
    side, like = resolution // _factor(configs), {"device": "meta", "dtype": unet.conv_in.weight.dtype}
    tokens, config = configs["text_encoder"]["max_position_embeddings"], configs["unet"]
    x = torch.empty(rows, config["in_channels"], side, side, **like)
    embeddings = torch.empty(rows, tokens, config["cross_attention_dim"], **like)
    return lambda: unet(x, torch.empty(rows, device="meta", dtype=torch.int64), embeddings, return_dict=False)[0]


def _factor(configs: Configs) -> int:
    return 2 ** (len(configs["vae"]["block_out_channels"]) - 1)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
