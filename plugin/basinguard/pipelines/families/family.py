"""What the guard needs to know of a family of pipelines; everything else is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ...diffusion.noise_schedule import NoiseSchedule

Guidance = Literal["batched", "guider"]


class Conditioning(Protocol):
    """What a denoiser is told of several prompts, the empty one last: `diffusion.sampling.EMPTY` indexes it."""

    def arguments(self, rows: Tensor) -> dict[str, Any]:
        """The denoiser's keyword arguments for rows of these prompts, indices [B]."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """What can be done with a family here, beside measuring it; each is true only where a test or recipe runs it.

    Attributes:
        guidance: how a rule is delivered: to a stock pipeline that evaluates both branches in one call ("batched",
            by `protect`), or by `RuleGuider` in the modular pipeline of the family ("guider").
        trainable: by `FineTune`.
        comparable: with the mitigations of others, by `compare`.
        exportable: as a guarded directory, with all that ships beside it.
        comfyui: as a workflow for ComfyUI.
        scheduled: a LoRA whose strength follows the timestep, by `protect`.
    """

    guidance: Guidance = "batched"
    trainable: bool = False
    comparable: bool = False
    exportable: bool = False
    comfyui: bool = False
    scheduled: bool = False


class Family(ABC):
    """A family of pipelines; it holds nothing of a pipeline, so there is one object of each.

    Attributes:
        class_name: of the pipeline, in diffusers.
        models: the released models of this class, as a user calls them.
        denoiser_name: of the component that denoises, "unet" or "transformer".
        encoder_names: of the text encoders, in their order; a pipeline may lack some.
        capabilities: see there.
        loading_options: that `from_pretrained` of this class takes beside the usual ones.
        lora_targets: layers of the denoiser that get an adapter: its attention's projections.
        in_lists: whether its denoiser takes and gives lists, a picture each.
        usual_scale: guidance scale of plain CFG that a call of the pipeline has where none is given.
    """

    class_name: ClassVar[str]
    models: ClassVar[str]
    denoiser_name: ClassVar[str]
    encoder_names: ClassVar[tuple[str, ...]]
    capabilities: ClassVar[Capabilities]
    loading_options: ClassVar[dict[str, Any]] = {}
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    in_lists: ClassVar[bool] = False
    usual_scale: ClassVar[float]

    def denoiser(self, pipe: Any) -> Any:
        """The network that denoises."""
        return getattr(pipe, self.denoiser_name)

    def text_encoders(self, pipe: Any) -> dict[str, nn.Module]:
        """The text encoders that the pipeline has, by component name."""
        named = {name: getattr(pipe, name, None) for name in self.encoder_names}
        return {name: module for name, module in named.items() if module is not None}

    def network_names(self, index: Mapping[str, Any]) -> list[str]:
        """The components with weights of a model, the denoiser first, by its `model_index.json`: encoders may lack."""
        encoders = [name for name in self.encoder_names if (index.get(name) or [None])[0] is not None]
        return [self.denoiser_name, "vae", *encoders]

    def tuned_parts(self, pipe: Any) -> tuple[str, ...]:
        """The components that a fine-tune may change."""
        return (self.denoiser_name, *self.text_encoders(pipe))

    def networks(self, pipe: Any) -> list[Any]:
        """Every network of the pipeline that a measurement runs."""
        return [pipe.vae, self.denoiser(pipe), *self.text_encoders(pipe).values()]

    def pixels_per_latent(self, pipe: Any) -> int:
        """How many pixels wide one position of the latents is."""
        return int(pipe.vae_scale_factor)

    def side_unit(self, pipe: Any) -> int:
        """What the side of an image must be a multiple of, in pixels."""
        return self.pixels_per_latent(pipe)

    def distilled(self, pipe: Any) -> bool:
        """Whether guidance was distilled into the weights, so that there is no unconditional branch to guide by.

        The denoiser says so, or the folder or hub id that the pipeline was loaded from says turbo, as those of
        distilled releases do; in the hub's cache the id is a folder above.
        """
        config = self.denoiser(pipe).config
        by_config = config.get("time_cond_proj_dim") is not None or bool(config.get("guidance_embeds"))
        *above, last = PurePath(str(pipe.config.get("_name_or_path") or "")).parts or ("",)
        return by_config or any(
            "turbo" in name.lower() for name in (last, *(n for n in above if n.startswith("models--")))
        )

    def call_options(self, pipe: Any, scale: float) -> dict[str, Any]:
        """What a call of the pipeline is given so that it draws at its native side by plain CFG of a scale."""
        return {"guidance_scale": scale}

    @abstractmethod
    def native_side(self, pipe: Any) -> int:
        """Side of the images that the pipeline draws unless asked otherwise, in pixels."""

    @abstractmethod
    def prediction_type(self, pipe: Any) -> str:
        """ "epsilon", "v_prediction" or "flow_prediction" (velocity eps - x_0).

        Raises:
            ValueError: the scheduler says something else.
        """

    @abstractmethod
    def schedule(self, pipe: Any, side: int) -> NoiseSchedule:
        """The noise schedule of images of `side` pixels; a flow's grid is the pipeline's own.

        Raises:
            ValueError: the scheduler's timesteps cannot be followed.
        """

    def latent_shape(self, pipe: Any, side: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of one image of `side` pixels, as the sampler carries them."""
        latent_side = side // self.pixels_per_latent(pipe)
        return int(self.denoiser(pipe).config.in_channels), latent_side, latent_side

    def encode(self, pipe: Any, images: Tensor) -> Tensor:
        """Latents [B, C, h, w] in float32 of images [B, 3, H, W] in [0, 1]: the mean of the encoder's distribution."""
        x = (images * 2 - 1).to(self.denoiser(pipe).device, pipe.vae.dtype)
        return self.to_sampler(pipe, pipe.vae.encode(x).latent_dist.mean.float())

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W], where -1 is black and 1 is white, in the VAE's precision."""
        place = self.denoiser(pipe).device, pipe.vae.dtype
        decoded: Tensor = pipe.vae.decode(self.to_vae(pipe, latents).to(*place)).sample
        return decoded

    def to_sampler(self, pipe: Any, latents: Tensor) -> Tensor:
        """Latents of the VAE's encoder as the sampler carries them: of unit scale, and packed where it packs them."""
        return latents * pipe.vae.config.scaling_factor

    def to_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        """The inverse of `to_sampler`."""
        return latents / pipe.vae.config.scaling_factor

    @abstractmethod
    def condition(self, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> Conditioning:
        """Encodes prompts, and the empty one after them.

        Args:
            pipe: of this family.
            prompts: texts.
            side: of the images to draw, in pixels.
            dtype: of the denoiser.
        """

    def text_states(self, pipe: Any, texts: list[str]) -> dict[str, Tensor]:
        """What the text encoders say of texts, by name, a row each, as the pipeline asks them; gradients flow.

        The empty text is the unconditional branch's, whatever the pipeline has for that.

        Raises:
            NotImplementedError: the family is not trained here.
        """
        raise NotImplementedError(f"{self.class_name} is not trained here")

    def state_shapes(self, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """Shape of a row of each of `text_states`, by configuration files alone.

        Args:
            configs: of the parts, by component name.
        """
        raise NotImplementedError(f"{self.class_name} is not trained here")

    def arguments(self, states: dict[str, Tensor], sizes: Tensor) -> dict[str, Any]:
        """The denoiser's keyword arguments for rows of `text_states`.

        Args:
            states: by name, [B, ...].
            sizes: of each picture and of its crop, [B, 6], see `training.cropping.Crop.sizes`; used where the denoiser
                is told of them.
        """
        return dict(states)

    @abstractmethod
    def forward(self, pipe: Any, x: Tensor, timestep: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The denoiser's prediction in `prediction_type`, [B, C, h, w].

        Args:
            pipe: of this family.
            x: latents in the denoiser's precision and on its device, [B, C, h, w].
            timestep: of each row, in 0..1000 (high = noisy), [B], on the same device.
            arguments: of `Conditioning.arguments`.
        """
