"""Fine-tunes any Stable Diffusion pipeline: LoRA or full, epsilon or v, in one LightningModule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from ..pipelines.architecture import Architecture
from ..pipelines.forward_process import target, training_schedule
from ..pipelines.loading import load_pipeline, require_capability
from ..pipelines.lora import merged_module
from ..pipelines.prediction_type import require_prediction_type
from .canary_steps import canary_steps
from .checkpoints import InterruptCheckpoint, require_same_weights
from .encoding import EncodingCache, add_noise, encode_captions, encode_images
from .finetune_options import LoraOptions, LossOptions, MemoryOptions, OptimizerOptions, as_options, require_ranges
from .loss_filters import LossFilter, filtered_mean
from .objective import drop_captions, epsilon_gaps, min_snr_weights, random_timesteps, row_errors, weighted_mse
from .optimizer import averaged_parameters, moments_of, optimizer_and_schedule, parked
from .protocols import with_sampler
from .trained_weights import Method, checkpoint_activations, seeded, unfreeze

TrainingBatch = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FineTune(LightningModule):
    """Trains the UNet, and the text encoder if asked to, of a Stable Diffusion model on captioned images.

    Randomness of a batch depends on `seed` and the count of batches before it alone, and the global generators are
    left as they were: a resumed run equals an uninterrupted one, and what a callback draws changes no weight.
    Checkpoints hold trained weights only (a LoRA's few megabytes), load with `weights_only=True`, and resume.

    Args:
        base: a diffusers directory, a .safetensors file (Stable Diffusion 2), a hub id, or "tinyworld".
        method: "lora" trains a low-rank adapter; "full" trains every weight of the UNet.
        lora: rank, alpha, dropout and targets of the adapter.
        optimizer: learning rate, weight decay, schedule, averaged weights.
        loss: weights of timesteps, dropped captions, and what holds the unconditional branch.
        memory: precision of the weights, and what is recomputed, cached or moved away.
        train_text_encoder: also train the text encoder, with the same method.
        architecture: refuse a base of another one: "sd1", "sd2", or "any".
        prediction_type: refuse a base that predicts something else; whatever it predicts when not given. For a single
            file that does not say it, this does.
        seed: of noise, timesteps, dropout and the adapter's start.

    Example:
        >>> model = FineTune("tinyworld", lora=LoraOptions(rank=4))                          # doctest: +SKIP
        >>> Trainer(max_epochs=10).fit(model, ImageFolder("photos", resolution=64))          # doctest: +SKIP
        >>> model.export_pipeline().save_pretrained("fine-tuned")                            # doctest: +SKIP
    """

    def __init__(
        self,
        base: str = "tinyworld",
        method: Method = "lora",
        lora: LoraOptions = LoraOptions(),
        optimizer: OptimizerOptions = OptimizerOptions(),
        loss: LossOptions = LossOptions(),
        memory: MemoryOptions = MemoryOptions(),
        train_text_encoder: bool = False,
        architecture: Architecture = "any",
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base_id, self.train_text_encoder, self.seed = base, train_text_encoder, seed
        self.lora_options, self.optimizer_options = (
            as_options(LoraOptions, lora),
            as_options(OptimizerOptions, optimizer),
        )
        self.loss_options, self.memory_options = as_options(LossOptions, loss), as_options(MemoryOptions, memory)
        self._save_arguments(
            base=base,
            method=method,
            train_text_encoder=train_text_encoder,
            architecture=architecture,
            prediction_type=prediction_type,
            seed=seed,
        )
        self.strict_loading = False  # checkpoints leave out frozen weights; `on_load_checkpoint` checks the rest
        dtype = DTYPES[self.memory_options.weights]
        require_capability(base, "trainable")
        self.pipe: StableDiffusionPipeline = load_pipeline(base, dtype=dtype, prediction_type=prediction_type)
        require_prediction_type(self.pipe, base)
        self.unet, self.vae, self.text_encoder = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        self.forward_process = training_schedule(self.pipe.scheduler)
        self._open(method)
        copied = self.loss_options.keep_unconditional > 0 and method == "full"
        self.frozen = deepcopy(self.unet).requires_grad_(False) if copied else None
        self.cache = EncodingCache() if self.memory_options.cache else None
        self.filter: LossFilter | None = None  # which rows of a batch count; see `Interventions`
        self.row_weights: Tensor | None = None  # what it said of the last batch
        decay = self.optimizer_options.ema_decay
        self.ema = EMAModel(self.trained().values(), decay=decay) if decay is not None else None

    def _save_arguments(self, **others: Any) -> None:
        """Checks the numbers, and stores the arguments as plain values: checkpoints load with `weights_only=True`."""
        groups = (self.lora_options, self.optimizer_options, self.loss_options, self.memory_options)
        lora, optimizer, loss, memory = (asdict(options) for options in groups)
        require_ranges({**lora, **optimizer, **loss, **others})
        self.save_hyperparameters({**others, "lora": lora, "optimizer": optimizer, "loss": loss, "memory": memory})

    def _open(self, method: Method) -> None:
        """Freezes everything, then opens what is to be trained."""
        parts = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}
        text, seed = self.train_text_encoder, self.seed
        for part in unfreeze(parts, method, self.lora_options, train_text_encoder=text, seed=seed):
            part.train()
            if self.memory_options.gradient_checkpointing:
                checkpoint_activations(part)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their name in the checkpoint."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Loss of one batch {"pixel_values": [B, 3, H, W] in -1..1, "caption": B texts, "index": [B]}."""
        count = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        with seeded(self.device, self.seed, count, self.global_rank):
            loss = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["caption"]))
        return loss

    def loss(self, batch: TrainingBatch) -> Tensor:
        """Draws noise and timesteps from torch's generator and returns the denoising loss, a scalar."""
        latents = self.encode_images(batch)
        embeddings = self.encode_captions(drop_captions(batch["caption"], self.loss_options.caption_dropout))
        if "embedding_noise" in batch:  # asked for by the data module's caption augmentation
            embeddings = add_noise(embeddings, float(batch["embedding_noise"][0]))
        noise = torch.randn_like(latents)
        timesteps = self.draw_timesteps(len(latents))
        loss = self.denoising_loss(latents, embeddings, noise, timesteps)
        if weight := self.loss_options.keep_unconditional:
            half = slice(0, -(-len(latents) // 2))
            loss = loss + weight * self.drift(latents[half], noise[half], timesteps[half])
        return loss

    def draw_timesteps(self, count: int) -> Tensor:
        """Training timesteps of a batch, [count]."""
        return random_timesteps(self.forward_process, count, self.device, self.loss_options.high_noise)

    def drift(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """How far the prediction for the empty prompt is from the base model's, mean square, a scalar.

        Source: prior preservation (Ruiz et al., arXiv 2208.12242, section 3.2), with the base model's own prediction
        instead of samples drawn from it.
        """
        noisy, empty = self._noisy(latents, noise, timesteps), self.encode_captions([""] * len(latents))
        with torch.no_grad(), self._base_unet() as base:
            origin = base(noisy, timesteps, empty, return_dict=False)[0]
        return weighted_mse(self.unet(noisy, timesteps, empty, return_dict=False)[0], origin)

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

    def _noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.forward_process.add_noise(latents, noise, timesteps).to(self.unet.conv_in.weight.dtype)

    def denoising_loss(self, latents: Tensor, embeddings: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Error of the UNet's prediction, a scalar.

        Args:
            latents: scaled, [B, 4, h, w].
            embeddings: of the captions, [B, tokens, width].
            noise: standard normal, like `latents`.
            timesteps: training timesteps, [B].
        """
        noisy = self._noisy(latents, noise, timesteps)
        prediction = self.unet(noisy, timesteps, embeddings, return_dict=False)[0]
        gamma = self.loss_options.min_snr_gamma
        weights = None if gamma is None else min_snr_weights(self.forward_process, timesteps, gamma)
        truth = target(self.forward_process, latents, noise, timesteps)
        if self.filter is None or not self.training:
            self.row_weights = None
            return weighted_mse(prediction, truth, weights)
        errors = row_errors(prediction, truth)
        counts = self.filter(errors.detach(), timesteps, lambda: self._gaps(prediction.detach(), noisy, timesteps))
        self.row_weights = counts
        return filtered_mean(errors if weights is None else errors * weights, counts)

    @torch.no_grad()
    def _gaps(self, conditional: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Gap of each row, [B]; one more evaluation of the UNet, with its dropout as it stands."""
        empty = self.encode_captions([""] * len(noisy))
        unconditional = self.unet(noisy, timesteps, empty, return_dict=False)[0]
        return epsilon_gaps(self.forward_process, unconditional, conditional, timesteps)

    def encode_images(self, batch: TrainingBatch) -> Tensor:
        """Draws scaled latents, [B, 4, h, w] in float32; see `encoding`."""
        return encode_images(self.pipe, batch, self.cache, self.device)

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Embeddings [B, tokens, width]; see `encoding`."""
        return encode_captions(self.pipe, captions, self.cache, self.device, trained=self.train_text_encoder)

    def configure_optimizers(self) -> Any:
        """AdamW over the trained parameters, with diffusers' learning-rate schedules."""
        options = self.optimizer_options
        updates = self.trainer.estimated_stepping_batches if options.schedule != "constant" else None
        return optimizer_and_schedule(self.trained().values(), options, updates)

    def configure_callbacks(self) -> list[Callback]:
        """Whatever stops a fit, a checkpoint stays behind; canaries are counted where they are trained on."""
        return [InterruptCheckpoint(), *canary_steps(self.trainer.datamodule)]  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """From here on the model's own size is that of its training images: probes, calibration and export use it."""
        resolution = getattr(self.trainer.datamodule, "resolution", None)  # type: ignore[attr-defined]  # set by a connector
        if resolution is not None:
            self.unet.register_to_config(sample_size=resolution // self.pipe.vae_scale_factor)

    def on_fit_start(self) -> None:
        """Refuses to cache pictures that change from epoch to epoch."""
        if self.ema is not None:
            self.ema.to(self.device)
        if self.cache is not None and getattr(self.trainer.datamodule, "augments", False):  # type: ignore[attr-defined]
            raise ValueError("memory.cache stores each image once; turn off random crop and flip, or the cache")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, then one step of the average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.step(self.trained().values())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside is what is measured and exported: averaged weights, if any; `offload_in_probes` parks the moments."""
        trainer = getattr(self, "_trainer", None)
        parks = self.memory_options.offload_in_probes
        moments = moments_of(trainer.optimizers) if trainer is not None and parks else []
        with parked(moments), averaged_parameters(self.ema, list(self.trained().values())):
            yield

    def export_pipeline(self) -> StableDiffusionPipeline:
        """A pipeline of its own: adapters merged, averaged weights if there are any, frozen. Training can go on.

        A base that holds the scheduler that adds noise (DDPM) gets a sampler on the same noise schedule.
        """
        with self.averaged_weights():
            copies = {name: merged_module(getattr(self, name)) for name in ("unet", "vae", "text_encoder")}
        pipe = StableDiffusionPipeline(
            **copies,
            tokenizer=self.pipe.tokenizer,
            scheduler=type(self.pipe.scheduler).from_config(self.pipe.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return with_sampler(pipe)  # type: ignore[no-any-return]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps trained weights only, and adds their average."""
        trained = self.trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another configuration with a ValueError."""
        require_same_weights(self.trained(), checkpoint["state_dict"])
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])
