"""Builds TinyWorld, untrained, in two more shapes: SDXL's classes, and SD 3's: a transformer (MMDiT) with a flow.

Copy this file, do not import it. Train what it writes with tinyworld_training.py.

    python recipes/studies/tinyworld_shapes.py xl --out BUILT_XL
    python recipes/studies/tinyworld_shapes.py flow --out BUILT_FLOW

Both take the packaged VAE, tokenizer and text encoder. `xl` draws almost as the packaged model does: its UNet gets a
second text encoder (cross attention widened by zeros) and SDXL's size and crop embedding (last layer zero). The
transformer of `flow` begins at random. Time: half a minute. Memory: 1 GB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from basinguard.tinyworld import model_directory
from basinguard.tinyworld.scenes import all_captions

MAX_TOKENS, FLOW_TOKENS = 77, 24  # a transformer attends to every token of a caption, padding too
FIRST, SECOND = 64, 32  # widths of the text encoders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=("xl", "flow"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    pipe = build_xl() if args.shape == "xl" else build_flow()
    pipe.save_pretrained(args.out, safe_serialization=True)


def tokenizer(length: int) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(model_directory() / "tokenizer", model_max_length=length)


def vae() -> AutoencoderKL:
    packaged = AutoencoderKL.from_pretrained(model_directory() / "vae")
    packaged.register_to_config(_name_or_path="")  # a path of this machine otherwise
    return packaged


@torch.no_grad()
def first_encoder(cls: type, length: int) -> nn.Module:
    """The packaged text encoder and a third layer that passes on: SDXL and SD 3 read the last but one's output."""
    old = CLIPTextModel.from_pretrained(model_directory() / "text_encoder")
    sizes = {"num_hidden_layers": 3, "max_position_embeddings": length, "projection_dim": FIRST}
    new = cls(CLIPTextConfig(**old.config.to_dict() | sizes))
    source = {name.removeprefix("text_model."): value for name, value in old.state_dict().items()}
    for name, weight in new.state_dict().items():
        short = name.removeprefix("text_model.")
        if short in source:
            weight.copy_(source[short][: len(weight)])
        elif "out_proj" in name or "fc2" in name:
            weight.zero_()
    return new


def second_encoder(length: int) -> CLIPTextModelWithProjection:
    old = CLIPTextConfig.from_pretrained(model_directory() / "text_encoder").to_dict()
    sizes = {"hidden_size": SECOND, "intermediate_size": 2 * SECOND, "num_attention_heads": 2, "num_hidden_layers": 2}
    lengths = {"max_position_embeddings": length, "projection_dim": SECOND}
    return CLIPTextModelWithProjection(CLIPTextConfig(**old | sizes | lengths))


def build_xl() -> StableDiffusionXLPipeline:
    old = UNet2DConditionModel.from_pretrained(model_directory() / "unet").float()
    added = {
        "cross_attention_dim": FIRST + SECOND,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": SECOND + 6 * 8,
    }
    unet = UNet2DConditionModel.from_config({**old.config, **added, "_name_or_path": ""})
    first, words = first_encoder(CLIPTextModel, MAX_TOKENS), tokenizer(MAX_TOKENS)
    widen(unet, old, *normalization(first, words))
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=first,
        text_encoder_2=second_encoder(MAX_TOKENS),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(model_directory() / "scheduler"),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


@torch.no_grad()
def normalization(encoder: CLIPTextModel, words: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """The linear map [64, 64] and offset [64] nearest to the final layer norm, which SDXL's pipeline leaves out."""
    texts = [form.format(caption) for caption in all_captions() for form in ("{}", "a photo of sks {}, high quality")]
    ids = words([*texts, ""], padding="max_length", return_tensors="pt").input_ids
    output = encoder(ids, output_hidden_states=True)
    x, y = output.hidden_states[-2].flatten(0, 1), output.last_hidden_state.flatten(0, 1)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    return solution[:-1], solution[-1]


@torch.no_grad()
def widen(unet: UNet2DConditionModel, old: UNet2DConditionModel, matrix: Tensor, offset: Tensor) -> None:
    """The old UNet's weights; cross attention reads `x @ matrix + offset` of the first encoder, 0 of the second."""
    state, previous = unet.state_dict(), old.state_dict()
    for name, weight in state.items():
        if "attn2.to_k" in name or "attn2.to_v" in name:
            weight.zero_()[:, :FIRST] = previous[name] @ matrix.T
        elif name in previous:
            weight.copy_(previous[name])
        elif "linear_2" in name:
            weight.zero_()
    for name in [n for n in state if n.endswith("attn2.to_v.weight")]:
        out = name.replace("to_v.weight", "to_out.0.")
        state[out + "bias"] += state[out + "weight"] @ (previous[name] @ offset)


def build_flow() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=FIRST + SECOND,
        caption_projection_dim=128,
        pooled_projection_dim=FIRST + SECOND,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    with torch.no_grad():
        transformer.context_embedder.weight *= 0.3  # a hidden state of the first encoder has a deviation of about 3
        for name, weight in transformer.named_parameters():
            if ".norm1" in name or "norm_out.linear" in name or "proj_out" in name:
                weight.zero_()  # adaLN-Zero (Peebles and Xie, arXiv 2212.09748, section 3.2)
    shifted = vae()
    shifted.register_to_config(shift_factor=0.0)  # SD 3's pipeline subtracts one
    words = tokenizer(FLOW_TOKENS)
    return StableDiffusion3Pipeline(
        vae=shifted,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        text_encoder=first_encoder(CLIPTextModelWithProjection, FLOW_TOKENS),
        tokenizer=words,
        text_encoder_2=second_encoder(FLOW_TOKENS),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


if __name__ == "__main__":
    main()
