"""Fine-tunes any Stable Diffusion pipeline: LoRA or full, epsilon or v, in one LightningModule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from basinguard.training.augmentation import add_noise

from ..core.seeds import stream
from ..guidance.core import epsilon_factor, gap
from ..pipelines.architecture import Architecture
from ..pipelines.forward_process import target, training_schedule
from ..pipelines.loading import load_pipeline
from ..pipelines.lora import TEXT_TARGETS, UNET_TARGETS, add_lora, merged
from ..pipelines.prediction_type import require_prediction_type
from .encoding import encode_captions, encode_images
from .finetune_options import averaged, checkpoint_activations, moments_of, optimizer_class, parked, require_ranges
from .interrupt_checkpoint import InterruptCheckpoint
from .latent_cache import Memo
from .loss_filters import LossFilter, kept_mean
from .objective import min_snr_weights, random_timesteps, row_errors, weighted_mse

Batch = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FineTune(LightningModule):
    """Trains the UNet, and the text encoder if asked to, of a Stable Diffusion model on captioned images.

    Randomness of a batch depends on `seed` and the count of batches before it alone, and the global generators are
    left as they were: a resumed run equals an uninterrupted one, and what a callback draws changes no weight.
    Checkpoints hold trained weights only (a LoRA's few megabytes), load with `weights_only=True`, and resume.

    Args:
        base: a diffusers directory, a .safetensors file (Stable Diffusion 2), a hub id, or "tinyworld".
        method: "lora" trains a low-rank adapter; "full" trains every weight of the UNet.
        rank: of the adapter; its capacity. Higher memorizes sooner.
        alpha: the adapter's update is multiplied by alpha / rank; the rank itself when not given.
        dropout: share of the adapter's inputs that is dropped in training, in [0, 1).
        targets: layers of the UNet that get an adapter; the attention projections when not given.
        train_text_encoder: also train the text encoder, with the same method.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup: updates until the learning rate is reached.
        schedule: of the learning rate after the warm-up.
        min_snr_gamma: weigh timesteps by Min-SNR with this gamma (5 is usual); uniform when not given.
        caption_dropout: share of captions replaced by "", in [0, 1]. On a small set this teaches the unconditional
            branch the images too, and guidance that starts late cannot escape them then.
        keep_unconditional: weight of a second loss that holds the prediction for "" where the base model had it, on
            half of each batch; 0 leaves it out. On a small set the unconditional branch otherwise learns the
            images as well, and guidance that starts late cannot escape them. Costs about two thirds more time and, with
            "full", a frozen copy of the UNet.
        ema_decay: keep averaged weights, for export and for the guard, with this decay (0.999 is usual).
        gradient_checkpointing: less memory, about a third more time.
        weights: how weights are held. "float32" also widens a base stored in half precision; "bfloat16" halves the
            memory of what is frozen (an adapter stays in float32) or, with "full", of everything.
        cache: encode every image and caption once, keep the result in memory. Needs pictures without random crop or
            flip; a trained text encoder is still run every time. Captions that relief varies are encoded whenever they
            are new, and all kept (308 KB each with Stable Diffusion 2).
        optimizer: "adamw", or "adamw8bit" with its moments in 8 bits (the extra `eightbit`): 2 bytes a trained
            parameter instead of 8.
        offload_in_probes: keep the optimizer's moments in main memory while the guard probes.
        architecture: refuse a base of another one: "sd1", "sd2", or "any".
        prediction_type: refuse a base that predicts something else; whatever it predicts when not given. For a single
            file that does not say it, this does.
        seed: of noise, timesteps, dropout and the adapter's start.

    Example:
        >>> model = FineTune("tinyworld", method="lora", rank=4)                             # doctest: +SKIP
        >>> Trainer(max_epochs=10).fit(model, ImageFolder("photos", resolution=64))          # doctest: +SKIP
        >>> model.export_pipeline().save_pretrained("fine-tuned")                            # doctest: +SKIP
    """

    def __init__(
        self,
        base: str = "tinyworld",
        method: Literal["lora", "full"] = "lora",
        rank: int = 16,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: list[str] | None = None,
        train_text_encoder: bool = False,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-2,
        warmup: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        min_snr_gamma: float | None = None,
        caption_dropout: float = 0.0,
        keep_unconditional: float = 0.0,
        ema_decay: float | None = None,
        gradient_checkpointing: bool = False,
        weights: Literal["float32", "bfloat16"] = "float32",
        cache: bool = False,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
        offload_in_probes: bool = False,
        architecture: Architecture = "any",
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        require_ranges(self.hparams)
        self.base_id = base
        self.strict_loading = False  # checkpoints leave out frozen weights; `on_load_checkpoint` checks the rest
        self.pipe: StableDiffusionPipeline = load_pipeline(base, dtype=DTYPES[weights], prediction_type=prediction_type)
        require_prediction_type(self.pipe, base)
        self.unet, self.vae, self.text_encoder = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        self.forward_process = training_schedule(self.pipe.scheduler)
        self._prepare()
        copied = keep_unconditional > 0 and method == "full"
        self.frozen = deepcopy(self.unet).requires_grad_(False) if copied else None
        self.memo = Memo() if cache else None
        self.filter: LossFilter | None = None  # which rows of a batch count; see `acting`
        self.ema = EMAModel(self.trained().values(), decay=ema_decay) if ema_decay is not None else None

    def _prepare(self) -> None:
        """Freezes everything, then opens what is to be trained."""
        asked = self.hparams
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False)
        chosen = {self.unet: asked.targets or UNET_TARGETS}
        if asked.train_text_encoder:
            chosen[self.text_encoder] = TEXT_TARGETS
        for module, targets in chosen.items():
            if asked.method == "full":
                module.requires_grad_(True)
            else:
                with _seeded(asked.seed, self.device):
                    alpha = asked.rank if asked.alpha is None else asked.alpha
                    add_lora(module, rank=asked.rank, alpha=alpha, dropout=asked.dropout, targets=targets)
            module.train()
            if asked.gradient_checkpointing:
                checkpoint_activations(module)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their name in the checkpoint."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch {"pixel_values": [B, 3, H, W] in -1..1, "caption": B texts, "index": [B]}."""
        count = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        with _seeded(self.hparams.seed, self.device, count, self.global_rank):
            loss = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["caption"]))
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Draws noise and timesteps from torch's generator and returns the denoising loss, a scalar."""
        latents = self.encode_images(batch)
        embeddings = self.encode_captions(self._dropped(batch["caption"]))
        if "embedding_noise" in batch:  # asked for by the data module's relief
            embeddings = add_noise(embeddings, float(batch["embedding_noise"][0]))
        noise = torch.randn_like(latents)
        timesteps = random_timesteps(self.forward_process, len(latents), latents.device)
        loss = self.denoising_loss(latents, embeddings, noise, timesteps)
        if self.hparams.keep_unconditional:
            half = slice(0, -(-len(latents) // 2))
            loss = loss + self.hparams.keep_unconditional * self.drift(latents[half], noise[half], timesteps[half])
        return loss

    def drift(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """How far the prediction for the empty prompt has moved from the base model's, mean square, a scalar.

        Source: prior preservation (Ruiz et al., arXiv 2208.12242, section 3.2), with the base model's own prediction
        instead of samples drawn from it.
        """
        noisy = self.forward_process.add_noise(latents, noise, timesteps).to(self.unet.conv_in.weight.dtype)
        empty = self.encode_captions([""] * len(latents))
        with torch.no_grad(), self._base_unet() as base:
            wanted = base(noisy, timesteps, empty, return_dict=False)[0]
        return weighted_mse(self.unet(noisy, timesteps, empty, return_dict=False)[0], wanted)

    @contextmanager
    def _base_unet(self) -> Iterator[nn.Module]:
        """The UNet as it was before training: the frozen copy, or the adapter switched off."""
        if self.frozen is not None:
            yield self.frozen
            return
        self.unet.disable_adapters()
        try:
            yield self.unet
        finally:
            self.unet.enable_adapters()

    def denoising_loss(self, latents: Tensor, embeddings: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Error of the UNet's prediction, a scalar.

        Args:
            latents: scaled, [B, 4, h, w].
            embeddings: of the captions, [B, tokens, width].
            noise: standard normal, like `latents`.
            timesteps: training timesteps, [B].
        """
        noisy = self.forward_process.add_noise(latents, noise, timesteps).to(self.unet.conv_in.weight.dtype)
        prediction = self.unet(noisy, timesteps, embeddings, return_dict=False)[0]
        gamma = self.hparams.min_snr_gamma
        weights = None if gamma is None else min_snr_weights(self.forward_process, timesteps, gamma)
        wanted = target(self.forward_process, latents, noise, timesteps)
        if self.filter is None or not self.training:
            return weighted_mse(prediction, wanted, weights)
        errors = row_errors(prediction, wanted)
        counts = self.filter(errors.detach(), timesteps, lambda: self._gaps(prediction, noisy, timesteps))
        return kept_mean(errors if weights is None else errors * weights, counts)

    @torch.no_grad()
    def _gaps(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Gap of each row, [B], in epsilon space; one more evaluation of the UNet, with its dropout as it stands."""
        empty = self.encode_captions([""] * len(noisy))
        gaps = gap(self.unet(noisy, timesteps, empty, return_dict=False)[0], prediction.detach())
        factor = epsilon_factor(self.forward_process)
        return gaps * torch.tensor([factor(timestep) for timestep in timesteps.tolist()]).to(gaps)

    def encode_images(self, batch: Batch) -> Tensor:
        """Draws scaled latents, [B, 4, h, w] in float32; see `encoding`."""
        return encode_images(self.pipe, batch, self.memo, self.device)

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Embeddings [B, tokens, width]; see `encoding`."""
        trained = self.hparams.train_text_encoder
        return encode_captions(self.pipe, captions, self.memo, self.device, trained=trained)

    def _dropped(self, captions: list[str]) -> list[str]:
        share = self.hparams.caption_dropout
        if share == 0:
            return captions
        return ["" if drawn < share else text for text, drawn in zip(captions, torch.rand(len(captions)), strict=True)]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the trained parameters, with diffusers' learning-rate schedules."""
        asked = self.hparams
        build = optimizer_class(asked.optimizer)
        optimizer = build(self.trained().values(), lr=asked.learning_rate, weight_decay=asked.weight_decay)
        name = "constant_with_warmup" if asked.schedule == "constant" else asked.schedule
        updates = self.trainer.estimated_stepping_batches if asked.schedule != "constant" else None
        schedule = get_scheduler(name, optimizer, num_warmup_steps=asked.warmup, num_training_steps=updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Whatever stops a fit, a checkpoint stays behind."""
        return [InterruptCheckpoint()]

    def setup(self, stage: str) -> None:
        """From here on the model's own size is that of its training images: probes, calibration and export use it."""
        resolution = getattr(self.trainer.datamodule, "resolution", None)
        if resolution is not None:
            self.unet.register_to_config(sample_size=resolution // self.pipe.vae_scale_factor)

    def on_fit_start(self) -> None:
        """Refuses to cache pictures that change from epoch to epoch."""
        if self.ema is not None:
            self.ema.to(self.device)
        if self.memo is not None and getattr(self.trainer.datamodule, "augments", False):
            raise ValueError("cache=True stores each image once; turn off random crop and flip, or the cache")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, then one step of the average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.step(self.trained().values())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside is what is measured and exported: averaged weights, if any; `offload_in_probes` parks the moments."""
        trainer = getattr(self, "_trainer", None)
        held = moments_of(trainer.optimizers) if trainer is not None and self.hparams.offload_in_probes else []
        with parked(held), averaged(self.ema, list(self.trained().values())):
            yield

    def export_pipeline(self) -> StableDiffusionPipeline:
        """A pipeline of its own: adapters merged, averaged weights if there are any, frozen. Training can go on."""
        with self.averaged_weights():
            copies = {name: merged(getattr(self, name)) for name in ("unet", "vae", "text_encoder")}
        return StableDiffusionPipeline(
            **copies,
            tokenizer=self.pipe.tokenizer,
            scheduler=type(self.pipe.scheduler).from_config(self.pipe.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps trained weights only, and adds their average."""
        trained = self.trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another configuration.

        Raises:
            ValueError: its weights are not exactly those trained here; names one that differs.
        """
        differing = sorted(self.trained().keys() ^ checkpoint["state_dict"].keys())
        if differing:
            raise ValueError(
                f"the checkpoint does not fit: {len(differing)} weights are on one side only, such as "
                f"{differing[0]!r}; resume with the same base, method, targets and train_text_encoder"
            )
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])


@contextmanager
def _seeded(seed: int, device: torch.device, *counts: int) -> Iterator[None]:
    """Inside, torch draws from (seed, counts); outside, its generators are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, *counts))
        yield
