"""Prior preservation: the base model's own pictures of generic captions, or its prediction, hold a fine-tune back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..calibration.rules import plain_cfg
from ..calibration.trial import Trial, calibration_pairs
from ..core.files import whole_file
from ..core.seeds import PRIOR
from ..exports.fingerprints import weights_sha256
from ..guard.control_prompts import NEUTRAL
from ..guard.measured_model import guided_model
from ..guard.plan import ProbePlan
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from .finetune_options import PRIOR_ROWS, PRIOR_TIMESTEPS, LossOptions
from .isolation import same_streams
from .objective import weighted_mse
from .protocols import with_parts

FILE = "prior-samples.safetensors"  # in the trainer's root folder


@dataclass(frozen=True)
class PriorSamples:
    """What the base model drew before training.

    Attributes:
        latents: as the sampler carries them, [N, C, h, w], float32.
        captions: of each.
    """

    latents: Tensor
    captions: tuple[str, ...]

    def loss(self, module: Any, count: int) -> Tensor:
        """Denoising loss of `count` of them, drawn with replacement from torch's generator, a scalar.

        Source: Ruiz et al., arXiv 2208.12242, eq. 2.
        """
        rows = torch.randint(len(self.captions), (count,))
        latents = self.latents[rows].to(module.device)
        states = module.encode_captions([self.captions[row] for row in rows.tolist()])
        noise, timesteps = torch.randn_like(latents), module.draw_timesteps(count)
        prediction = module.predict(module.pipe, module.noisy(latents, noise, timesteps), timesteps, states)
        process = module.forward_process
        return weighted_mse(prediction, process.target(latents, noise, timesteps), process.weights(timesteps))


def prior_samples(module: Any) -> PriorSamples | None:
    """The samples of a fine-tune: those in the trainer's root folder where they fit, else drawn and stored there.

    They come from a base that is loaded anew and let go afterwards, so that a resumed run has the same ones. None
    where none are asked for.

    Args:
        module: a `FineTune` that is about to train.
    """
    if not module.loss_options.prior_weight:
        return None
    with same_streams():
        kind = module.family.prediction_type(module.pipe)
        base = load_pipeline(module.base_id, dtype=module.denoiser.dtype, prediction_type=kind)
        side = int(module.denoiser.config.sample_size * module.pipe.vae_scale_factor)
        request = _request(base, module.loss_options, side)
        path = Path(module.trainer.default_root_dir) / FILE
        stored = _stored(path, request)
        samples = stored or drawn(base.to(module.device), module.loss_options, side)
    if stored is None and module.trainer.is_global_zero:
        _store(path, request, samples)
    return samples


@torch.no_grad()
def drawn(base: Any, options: LossOptions, side: int) -> PriorSamples:
    """Samples of a pipeline by plain CFG, every caption equally often, on seeds from `core.seeds.PRIOR` on.

    Args:
        base: pipeline, where it is to compute.
        options: `prior_images`, `prior_captions`, `prior_scale`.
        side: of the pictures, in pixels.
    """
    model, captions = LatentModel(base, resolution=side), options.prior_captions or NEUTRAL
    pairs = calibration_pairs(len(captions), options.prior_images, model.latent_shape, PRIOR)
    plan = ProbePlan(scale=options.prior_scale, timesteps=PRIOR_TIMESTEPS, chunk=PRIOR_ROWS)
    latents, _ = Trial(guided_model(model, captions, plan), pairs).sample(
        plain_cfg(options.prior_scale, model.schedule)
    )
    return PriorSamples(latents.float(), tuple(captions[k] for k in pairs.prompt.tolist()))


def _request(base: Any, options: LossOptions, side: int) -> str:
    """Everything that the samples depend on, as text."""
    captions = list(options.prior_captions or NEUTRAL)
    numbers = {"images": options.prior_images, "scale": options.prior_scale, "side": side, "timesteps": PRIOR_TIMESTEPS}
    return json.dumps({"weights_sha256": weights_sha256(base), "captions": captions, **numbers}, sort_keys=True)


def _stored(path: Path, request: str) -> PriorSamples | None:
    """The samples in a file, if it is whole and holds those that are asked for."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("request") != request:
            return None
        return PriorSamples(load_file(path)["latents"], tuple(json.loads(metadata["captions"])))
    except SafetensorError:  # damaged: they are drawn again
        return None


def _store(path: Path, request: str, samples: PriorSamples) -> None:
    metadata = {"request": request, "captions": json.dumps(samples.captions)}
    with whole_file(path, overwrite=True) as partial:
        save_file({"latents": samples.latents.contiguous()}, partial, metadata=metadata)


@contextmanager
def base_pipeline(module: Any) -> Iterator[Any]:
    """Inside, a fine-tune's pipeline with its denoiser as before training: the frozen copy, or the adapter off."""
    if module.frozen is not None:
        yield with_parts(module.pipe, **{module.family.denoiser_name: module.frozen})
        return
    module.denoiser.disable_adapters()
    try:
        yield module.pipe
    finally:
        module.denoiser.enable_adapters()
