"""Fine-tunes a Stable Diffusion of any family: LoRA or full, noise, velocity or flow, in one LightningModule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from ..exports.merge import merged
from ..pipelines.architecture import Architecture
from ..pipelines.families.registry import family_of
from ..pipelines.loading import load_pipeline, require_capability
from ..pipelines.lora import merged_module
from ..pipelines.lora_apart import require_whole_model
from ..pipelines.prediction_type import require_prediction_type
from .canary_steps import canary_steps
from .checkpoints import InterruptCheckpoint, require_same_training
from .encoding import CaptionStates, EncodingCache, encode_images, native_sizes, sizes_of, text_states
from .finetune_options import LoraOptions, LossOptions, MemoryOptions, OptimizerOptions, as_options, require_ranges
from .forward_processes import forward_process
from .loss_filters import LossFilter, filtered_mean
from .objective import drop_captions, epsilon_gaps, row_errors, weighted_mse
from .optimizer import averaged_parameters, moments_of, optimizer_and_schedule, parked
from .prior_preservation import PriorSamples, base_pipeline, prior_samples
from .protocols import with_parts, with_sampler
from .rank_mask import RankMask
from .trained_weights import Method, checkpoint_activations, seeded, trained_layers, unfreeze

TrainingBatch = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOT_TRAINED = ("safety_checker", "feature_extractor", "image_encoder")  # components that no export has


class FineTune(LightningModule):
    """Trains the denoiser, and the text encoders if asked to, of a Stable Diffusion model on captioned images.

    What differs between SD 1.x and 2.x, SDXL and SD 3 is asked of their `pipelines.families`.

    Randomness of a batch depends on `seed` and the count of batches before it alone, and the global generators are
    left as they were: a resumed run equals an uninterrupted one, and what a callback draws changes no weight.
    Checkpoints hold trained weights only (a LoRA's few megabytes), load with `weights_only=True`, and resume.

    Args:
        base: a diffusers directory, a .safetensors file (Stable Diffusion 2), a hub id, or "tinyworld".
        method: "lora" trains a low-rank adapter; "full" trains every weight of the UNet or transformer.
        lora: rank, alpha, dropout, targets and rank by timestep of the adapter.
        optimizer: learning rate, weight decay, schedule, averaged weights.
        loss: weights of timesteps, dropped captions, and what holds the model near its base.
        memory: precision of the weights, and what is recomputed, cached or moved away.
        train_text_encoder: also train the text encoder, with the same method; both of SDXL and SD 3. SDXL never asks
            the first one's last layer, so several processes need `strategy: ddp_find_unused_parameters_true`.
        architecture: refuse a base of another one: "sd1", "sd2", "sdxl", "sd3", or "any".
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
        prediction_type: Literal["epsilon", "v_prediction", "flow_prediction"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base_id, self.train_text_encoder, self.seed = base, train_text_encoder, seed
        self.lora_options = as_options(LoraOptions, lora)
        self.optimizer_options = as_options(OptimizerOptions, optimizer)
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
        require_whole_model(base)
        self.pipe: Any = load_pipeline(base, dtype=dtype, prediction_type=prediction_type)
        require_prediction_type(self.pipe, base)
        self.family = family_of(self.pipe)
        self.parts = (self.family.denoiser_name, "vae", *self.family.text_encoders(self.pipe))
        for name in self.parts:
            setattr(self, name, getattr(self.pipe, name))
        kind = self.family.prediction_type(self.pipe)
        self.forward_process = forward_process(kind, self.pipe.scheduler, self.loss_options)
        self._open(method)
        copied = self.loss_options.keep_unconditional > 0 and method == "full"
        self.frozen = deepcopy(self.denoiser).requires_grad_(False) if copied else None
        self.rank_mask = RankMask(self.denoiser, self.lora_options)
        self.prior: PriorSamples | None = None  # drawn when a fit starts
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
        parts = {name: getattr(self, name) for name in self.parts}
        layers = trained_layers(self.family, parts, self.lora_options, train_text_encoder=self.train_text_encoder)
        for part in unfreeze(parts, layers, method, self.lora_options, seed=self.seed):
            part.train()
            if self.memory_options.gradient_checkpointing:
                checkpoint_activations(part)

    @property
    def denoiser(self) -> Any:
        """The network that denoises: a UNet or a transformer."""
        return getattr(self, self.family.denoiser_name)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their name in the checkpoint."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Loss of one batch {"pixel_values": [B, 3, H, W] in -1..1, "caption": B texts, "index": [B]}.

        With "sizes" [B, 6] (see `Crop.sizes`) SDXL is told of them; without, of the pixels' own.
        """
        count = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        with seeded(self.device, self.seed, count, self.global_rank):
            loss = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["caption"]))
        return loss

    def loss(self, batch: TrainingBatch) -> Tensor:
        """Draws noise and timesteps from torch's generator and returns the denoising loss, a scalar."""
        latents = self.encode_images(batch)
        captions = drop_captions(batch["caption"], self.loss_options.caption_dropout)
        sizes = sizes_of(batch, self.device)
        states = self.encode_captions(captions, sizes)
        if "embedding_noise" in batch:  # asked for by the data module's caption augmentation
            states = states.noised(float(batch["embedding_noise"][0]))
        noise = torch.randn_like(latents)
        timesteps = self.draw_timesteps(len(latents))
        loss = self.denoising_loss(latents, states, noise, timesteps)
        if weight := self.loss_options.keep_unconditional:
            half = slice(0, -(-len(latents) // 2))
            loss = loss + weight * self.drift(latents[half], noise[half], timesteps[half], sizes[half])
        if self.prior is not None:
            loss = loss + self.loss_options.prior_weight * self.prior.loss(self, -(-len(latents) // 2))
        return loss

    def draw_timesteps(self, count: int) -> Tensor:
        """Training timesteps of a batch, [count]."""
        return self.forward_process.draw_timesteps(count, self.device)

    def drift(self, latents: Tensor, noise: Tensor, timesteps: Tensor, sizes: Tensor | None = None) -> Tensor:
        """How far the prediction for the empty prompt is from the base model's, mean square, a scalar.

        Source: prior preservation (Ruiz et al., arXiv 2208.12242, section 3.2), with the base model's own prediction
        instead of samples drawn from it.
        """
        noisy, empty = self.noisy(latents, noise, timesteps), self.encode_captions([""] * len(latents), sizes)
        with torch.no_grad(), base_pipeline(self) as base:
            origin = self.predict(base, noisy, timesteps, empty)
        return weighted_mse(self.predict(self.pipe, noisy, timesteps, empty), origin)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, states: CaptionStates) -> Tensor:
        """What a pipeline's denoiser predicts, its adapter masked by `lora.rank_at_noise`, [B, C, h, w]."""
        with self.rank_mask.at(timesteps):
            return self.family.forward(pipe, noisy, timesteps, self.family.arguments(states.texts, states.sizes))

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents [B, C, h, w] at timesteps [B], in the precision of the denoiser."""
        dtype = next(self.denoiser.parameters()).dtype
        return self.forward_process.add_noise(latents, noise, timesteps).to(dtype)

    def denoising_loss(self, latents: Tensor, states: CaptionStates, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Error of the denoiser's prediction, a scalar.

        Args:
            latents: as the sampler carries them, [B, C, h, w].
            states: of the captions.
            noise: standard normal, like `latents`.
            timesteps: training timesteps, [B].
        """
        noisy = self.noisy(latents, noise, timesteps)
        prediction = self.predict(self.pipe, noisy, timesteps, states)
        weights = self.forward_process.weights(timesteps)
        truth = self.forward_process.target(latents, noise, timesteps)
        if self.filter is None or not self.training:
            self.row_weights = None
            return weighted_mse(prediction, truth, weights)
        errors = row_errors(prediction, truth)
        gaps = partial(self._gaps, prediction.detach(), noisy, timesteps, states.sizes)
        counts = self.filter(errors.detach(), timesteps, gaps)
        self.row_weights = counts
        return filtered_mean(errors if weights is None else errors * weights, counts)

    @torch.no_grad()
    def _gaps(self, conditional: Tensor, noisy: Tensor, timesteps: Tensor, sizes: Tensor) -> Tensor:
        """Gap of each row, [B]; one more evaluation of the denoiser, with its dropout as it stands."""
        empty = self.encode_captions([""] * len(noisy), sizes)
        unconditional = self.predict(self.pipe, noisy, timesteps, empty)
        return epsilon_gaps(self.forward_process.schedule, unconditional, conditional, timesteps)

    def encode_images(self, batch: TrainingBatch) -> Tensor:
        """Draws latents as the sampler carries them, [B, C, h, w] in float32; see `encoding`."""
        return encode_images(self.pipe, batch, self.cache, self.device)

    def encode_captions(self, captions: list[str], sizes: Tensor | None = None) -> CaptionStates:
        """What the denoiser is told, of pictures of these sizes [B, 6] or of its own size; see `encoding`."""
        texts = text_states(self.pipe, captions, self.cache, self.device, trained=self.train_text_encoder)
        return CaptionStates(texts, native_sizes(self.pipe, len(captions)) if sizes is None else sizes)

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
            self.denoiser.register_to_config(sample_size=resolution // self.pipe.vae_scale_factor)

    def on_fit_start(self) -> None:
        """Refuses to cache pictures that change from epoch to epoch; draws the base model's own."""
        if self.ema is not None:
            self.ema.to(self.device)
        if self.cache is not None and getattr(self.trainer.datamodule, "augments", False):  # type: ignore[attr-defined]
            raise ValueError("memory.cache stores each image once; turn off random crop and flip, or the cache")
        self.prior = prior_samples(self)

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

    def export_pipeline(self) -> Any:
        """A pipeline of its own: adapters merged, averaged weights if there are any, frozen. Training can go on.

        A base that holds the scheduler that adds noise (DDPM) gets a sampler on the same noise schedule.
        """
        with self.averaged_weights():
            copies = {name: merged_module(getattr(self, name)) for name in self.parts}
        absent = {name: None for name in NOT_TRAINED if name in self.pipe.components}
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        pipe = with_parts(self.pipe, **copies, **absent, scheduler=scheduler)
        return with_sampler(merged(pipe))  # built anew: what its class derives from its parts is of these

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps trained weights only, and adds their average."""
        trained = self.trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of other weights with a ValueError; warns of one that was trained otherwise."""
        require_same_training(self, self.trained(), checkpoint)
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])
