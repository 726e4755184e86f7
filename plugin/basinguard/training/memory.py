"""How much memory and disk a fine-tune takes, told before it starts: computed from the base's configuration alone.

Weights, gradients and moments are counted; what an update, a probe and the encoder hold in between is followed on
weightless copies of the model (see `footprint`), with the attention kernels and the mixed precision of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..pipelines.latent_model import DECODE_PIXELS
from ..pipelines.loading import model_config
from ..pipelines.lora import TEXT_TARGETS, UNET_TARGETS, add_lora
from .peak_memory import checkpointing, peak_bytes

EIGHT_BIT = 2  # bytes of both moments of a parameter; otherwise each is as large as the parameter
RUNTIME = 1.0e9  # torch with its libraries in main memory (recipes/studies/fullsize_proof.py, small); allowed for on a GPU too
Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """What decides the memory of a fine-tune; names and defaults are those of `FineTune`, `ImageFolder` and the guard.

    Attributes:
        precision: that the network computes in, of Lightning's `precision`.
        probe_rows: (caption, seed) pairs that are sampled at once; each is two rows of the UNet. 0: no guard.
        probe_precision: of the guard.
        export: the guard writes a pipeline at the end, from a copy of the model.
        gpu: there is a GPU, whose optimizer works on all parameters at once.
    """

    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    targets: tuple[str, ...] = UNET_TARGETS
    train_text_encoder: bool = False
    weights: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["float32", "bfloat16"] = "float32"
    resolution: int = 512
    batch_size: int = 4
    gradient_checkpointing: bool = False
    cache: bool = False
    keep_unconditional: bool = False
    ema: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    offload_in_probes: bool = False
    probe_rows: int = 0
    probe_precision: Literal["float32", "bfloat16"] = "float32"
    export: bool = False
    gpu: bool = True


@dataclass(frozen=True)
class Footprint:
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
        told = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
        return [f"{self.peak / 1e9:.1f} GB at most ({told}, runtime {RUNTIME / 1e9:.1f}); computed, not measured"]


def footprint_of(base: str | Path, asked: Request) -> Footprint:
    """Memory of a fine-tune of `base`; reads its configuration files, no weights. Takes a few seconds at full size."""
    names = ("unet", "vae", "text_encoder")
    return footprint({name: model_config(base, f"{name}/config.json") for name in names}, asked)


def footprint(configs: Configs, asked: Request) -> Footprint:
    """Memory of a fine-tune of the model that these configurations describe.

    Args:
        configs: of "unet", "vae" and "text_encoder".
        asked: the plan.
    """
    held, model = getattr(torch, asked.weights), empty_parts(configs)
    for part in model.values():
        nn.Module.to(part, held)  # diffusers' own warns of modules that it would keep in float32: there are none
        part.requires_grad_(False).eval()
    trained = _opened(model, asked)
    count = sum(p.numel() for p in trained)
    size = sum(_bytes(p) for p in trained)
    own = asked.optimizer == "adamw"
    moments = 2 * size if own else EIGHT_BIT * count
    copies = (
        sum(_bytes(p) for p in model["unet"].parameters()) if asked.keep_unconditional and asked.method == "full" else 0
    )
    weights = sum(_bytes(p) for part in model.values() for p in part.parameters()) + copies
    autocast = torch.bfloat16 if asked.precision == "bfloat16" else None
    update = _update(model["unet"], configs, asked, autocast)
    return Footprint(
        weights=weights,
        optimizer=moments + (size if asked.ema else 0),
        update=max(update, size + (size if asked.gpu and own else 0)),
        encode=_encode(model["vae"], asked, autocast),
        probe=_probe(model, configs, asked),
        copied=weights - copies if asked.export else 0,
        parked=moments if asked.offload_in_probes else 0,
        trained=count,
    )


def empty_parts(configs: Configs) -> dict[str, Any]:
    """UNet, VAE and text encoder without numbers, on torch's meta device."""
    text = {key: value for key, value in configs["text_encoder"].items() if key != "architectures"}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(dict(configs["unet"])),
            "vae": AutoencoderKL.from_config(dict(configs["vae"])),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }


def _opened(model: Mapping[str, Any], asked: Request) -> list[nn.Parameter]:
    """Opens what is trained, as `FineTune` does, and returns it."""
    chosen = {"unet": asked.targets} | ({"text_encoder": TEXT_TARGETS} if asked.train_text_encoder else {})
    for name, targets in chosen.items():
        if asked.method == "full":
            model[name].requires_grad_(True)
        else:
            add_lora(model[name], rank=asked.rank, alpha=asked.rank, dropout=0, targets=targets)
    return [p for part in model.values() for p in part.parameters() if p.requires_grad]


def _update(unet: Any, configs: Configs, asked: Request, autocast: torch.dtype | None) -> int:
    unet.train()
    if asked.gradient_checkpointing:
        unet.enable_gradient_checkpointing(gradient_checkpointing_func=checkpointing(autocast))
    predict = _prediction(unet, configs, asked.resolution, asked.batch_size)

    def loss() -> Tensor:
        out = predict().float()
        return F.mse_loss(out, torch.empty_like(out))

    return peak_bytes(loss, backward=True, autocast=autocast)


def _encode(vae: Any, asked: Request, autocast: torch.dtype | None) -> int:
    side, dtype = asked.resolution, next(vae.parameters()).dtype
    pixels = torch.empty(asked.batch_size, 3, side, side, device="meta", dtype=dtype)
    with torch.no_grad():
        return peak_bytes(lambda: vae.encode(pixels).latent_dist.parameters, autocast=autocast)


def _probe(model: Mapping[str, Any], configs: Configs, asked: Request) -> int:
    if asked.probe_rows == 0:
        return 0
    unet, vae = model["unet"].eval(), model["vae"]
    autocast = torch.bfloat16 if asked.probe_precision == "bfloat16" else None
    side, dtype = asked.resolution // _factor(configs), next(vae.parameters()).dtype
    rows = max(1, DECODE_PIXELS // asked.resolution**2)
    latents = torch.empty(rows, configs["vae"]["latent_channels"], side, side, device="meta", dtype=dtype)
    with torch.no_grad():
        sampling = peak_bytes(_prediction(unet, configs, asked.resolution, 2 * asked.probe_rows), autocast=autocast)
        return max(sampling, peak_bytes(lambda: vae.decode(latents).sample, autocast=autocast))


def _prediction(unet: Any, configs: Configs, resolution: int, rows: int) -> Callable[[], Tensor]:
    """One evaluation of the UNet at this size."""
    side, like = resolution // _factor(configs), {"device": "meta", "dtype": unet.conv_in.weight.dtype}
    tokens, config = configs["text_encoder"]["max_position_embeddings"], configs["unet"]
    x = torch.empty(rows, config["in_channels"], side, side, **like)
    words = torch.empty(rows, tokens, config["cross_attention_dim"], **like)
    return lambda: unet(x, torch.empty(rows, device="meta", dtype=torch.int64), words, return_dict=False)[0]


def _factor(configs: Configs) -> int:
    return 2 ** (len(configs["vae"]["block_out_channels"]) - 1)


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
