"""Are kohya's names of a LoRA for Stable Diffusion XL those of sd-scripts itself? Every layer of the true model.

    PYTHONPATH=plugin python recipes/studies/xl_kohya_names.py SD_SCRIPTS

SD_SCRIPTS is a checkout of kohya-ss/sd-scripts whose requirements are installed. Its network of LoRAs, convolutions
too, is made for its own UNet and the two text encoders without weights; beside it our name, and the numbers in and out,
of every layer of diffusers' UNet. Under transformers 5 sd-scripts leaves `text_model` out of the first encoder's names,
because transformers does; with those that it pins it writes them. Expected: `results/xl_clients.md`. Time: a minute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from basinguard.exports.lora_formats import xl_names
from basinguard.pipelines.architecture import sdxl_config


def clip_config(name: str) -> CLIPTextConfig:
    config = sdxl_config(f"{name}/config.json")
    return CLIPTextConfig(**{key: value for key, value in config.items() if key != "architectures"})


def theirs(encoders: list[Any]) -> dict[str, tuple[int, int]]:
    """Numbers in and out of each layer, by sd-scripts' name."""
    import transformers

    transformers.CLIPFeatureExtractor = CLIPImageProcessor  # its name before transformers 5
    from library.sdxl_original_unet import SdxlUNet2DConditionModel
    from networks import lora

    unet = SdxlUNet2DConditionModel()
    network = lora.create_network(1.0, 4, 4.0, None, encoders, unet, conv_dim="4", conv_alpha="1")
    layers = [*network.text_encoder_loras, *network.unet_loras]
    return {
        layer.lora_name.replace("lora_te1_encoder", "lora_te1_text_model_encoder"): (
            layer.lora_down.weight.shape[1],
            layer.lora_up.weight.shape[0],
        )
        for layer in layers
    }


def ours(encoders: list[Any]) -> dict[str, tuple[int, int]]:
    """The same by our names."""
    unet = UNet2DConditionModel.from_config(sdxl_config("unet/config.json"))
    name_of, parts = xl_names(unet), zip(("unet", "text_encoder", "text_encoder_2"), (unet, *encoders), strict=True)
    return {
        name_of(f"{part}.{name}"): (layer.weight.shape[1], layer.weight.shape[0])
        for part, module in parts
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("sd_scripts", type=Path)
    sys.path.insert(0, str(ask.parse_args().sd_scripts.resolve()))
    with torch.device("meta"):
        encoders = [
            CLIPTextModel(clip_config("text_encoder")),
            CLIPTextModelWithProjection(clip_config("text_encoder_2")),
        ]
        written, named = theirs(encoders), ours(encoders)
    for prefix in ("lora_unet_", "lora_te1_", "lora_te2_"):
        layers = {name: shape for name, shape in written.items() if name.startswith(prefix)}
        same = sum(named.get(name) == shape for name, shape in layers.items())
        print(f"{prefix}: {same} of {len(layers)} layers of sd-scripts have our name and shape")


if __name__ == "__main__":
    main()
