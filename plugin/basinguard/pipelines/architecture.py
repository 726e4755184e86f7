"""Which Stable Diffusion is this? Configurations, tensor names and shapes say it, before weights are loaded.

The true configurations of Stable Diffusion 2.1 and XL lie in `assets`, so that a single file can be opened, a
fine-tune costed and a full-size model built without the hub.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from transformers import CLIPTokenizer

from ..core.generation import XL, name_of
from ..core.safetensors_header import Header

Architecture = Literal["any", "sd1", "sd2", "sdxl", "sd3"]
SD21 = Path(__file__).parent / "assets" / "sd21"
SDXL = Path(__file__).parent / "assets" / "sdxl"
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": XL}
SD3_CLASS = "StableDiffusion3Pipeline"
SAMPLE_SIZES = {"v_prediction": 96, "epsilon": 64}  # latents of 2.1 (768 px) and 2.1-base (512 px)
CONTEXT = (  # the layer that reads the text states, as each layout names it
    "attn2.to_k.weight",
    "attn2_to_k.lora_down.weight",
    "attn2.to_k.lora_A.weight",
    "attn2.to_k.lora.down.weight",
    "attn2.processor.to_k_lora.down.weight",
)
VOCABULARY, BYTES, MARKS = 49_408, 256, 2  # CLIP's tokens: bytes, bytes that end a word, merges, start and end


def sd21_config(name: str) -> dict[str, Any]:
    """One of the packaged configurations of Stable Diffusion 2.1, such as "unet/config.json"."""
    return json.loads((SD21 / name).read_text(encoding="utf-8"))


def sdxl_config(name: str) -> dict[str, Any]:
    """One of the packaged configurations of Stable Diffusion XL 1.0, such as "unet/config.json"."""
    return json.loads((SDXL / name).read_text(encoding="utf-8"))


def sd21_tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 2.1, from the vocabulary that open_clip carries; padded with "!" as it is.

    Example:
        >>> sd21_tokenizer()(["a cat"]).input_ids
        [[49406, 320, 2368, 49407]]
    """
    spec = find_spec("open_clip")
    assert spec is not None  # a dependency
    packed = Path(str(spec.origin)).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY - 2 * BYTES - MARKS + 1]]
    letters = list(_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token="!")  # type: ignore[arg-type]


def _letters() -> Iterator[str]:
    """A visible character for each byte, in CLIP's order.

    Source: Radford et al., "Language models are unsupervised multitask learners" (2019), section 2.2.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(BYTES - len(printable)))


def context_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Width of the text states that the UNet of a file attends to; None if it has no such layer.

    Works for every layout: diffusers, the original single file, and the LoRA formats.
    """
    widths = {shape[1] for name, shape in shapes.items() if name.endswith(CONTEXT) and _of_unet(name)}
    return max(widths, default=None)


def _of_unet(name: str) -> bool:
    return not name.startswith(("cond_stage_model.", "conditioner.", "first_stage_model."))


def wrong_architecture(
    base: str, class_name: str, denoiser_config: Mapping[str, Any], accepted: Architecture
) -> Iterator[str]:
    """One line if the denoiser is not of the architecture that is accepted, or not for text to image.

    Args:
        base: how the model was named.
        class_name: of its pipeline.
        denoiser_config: of its UNet or transformer.
        accepted: by the configuration of the training.
    """
    width = denoiser_config.get("cross_attention_dim")
    own = "sd3" if class_name == SD3_CLASS else next((key for key, each in WIDTHS.items() if each == width), "")
    if accepted not in ("any", own):
        yield (
            f"base {base!r} is {_name(own) or name_of(width)}, this configuration is for {_name(accepted)}; "
            "give such a base, or set model.init_args.architecture to any"
        )
    channels = denoiser_config.get("in_channels", 4)
    if channels != (denoiser_config.get("out_channels") or channels):
        yield f"base {base!r}: its UNet takes {channels} channels (inpainting, depth?), only text to image works here"


def _name(architecture: str) -> str:
    return "Stable Diffusion 3" if architecture == "sd3" else name_of(WIDTHS.get(architecture)) if architecture else ""


def misfit(header: Header, unet_config: Mapping[str, Any]) -> str | None:
    """Why a UNet's weights are not those of its configuration, judged by the width of their text states."""
    width, expected = context_width(header.shapes), unet_config.get("cross_attention_dim")
    if width is None or width == expected:
        return None
    return f"its weights are {name_of(width)}, its configuration is {name_of(expected)}"
