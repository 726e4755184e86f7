"""Adapters by sd-scripts and LyCORIS: networks of kohya's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapter_answers import ALPHA, RANK, Written, base, randomize


def sd_scripts(source: Path) -> Iterator[Written]:
    import transformers

    transformers.CLIPFeatureExtractor = transformers.CLIPImageProcessor  # its name before transformers 5
    from networks import lora

    for layout, more in (("LoRA", {}), ("LoCon", {"conv_dim": "3", "conv_alpha": "1"})):
        pipe = base()
        network = lora.create_network(1.0, RANK, ALPHA, pipe.vae, pipe.text_encoder, pipe.unet, **more)
        yield layout, pipe, saver_of_network(network, pipe, "ink-step00000400.safetensors")


def saver_of_network(network: Any, pipe: Any, name: str) -> Callable[[Path], Path]:
    network.apply_to(pipe.text_encoder, pipe.unet, True, True)
    randomize(dict(network.named_parameters()))
    metadata = {"ss_steps": "400", "ss_epoch": "2"}  # as train_network.py fills them in
    return lambda folder: (network.save_weights(str(folder / name), None, metadata), folder / name)[1]


CONVOLUTIONS = "unet-convblock-only"
LYCORIS = {
    "LoCon with a core": {"algo": "locon", "conv_dim": 2, "use_tucker": True, "preset": CONVOLUTIONS},
    "LoHa": {"algo": "loha", "conv_dim": 2},
    "LoHa with cores": {"algo": "loha", "conv_dim": 2, "use_tucker": True, "preset": CONVOLUTIONS},
    "LoKr": {"algo": "lokr", "conv_dim": 2, "factor": 4},
    "LoKr of two products": {"algo": "lokr", "decompose_both": True, "conv_dim": 2},
    "LoKr without low rank": {"algo": "lokr", "full_matrix": True, "conv_dim": 2},
    "IA3": {"algo": "ia3"},
    "DoRA, by output": {"algo": "locon", "conv_dim": 2, "dora_wd": True},
    "DoRA, by input": {"algo": "locon", "conv_dim": 2, "dora_wd": True, "wd_on_output": False, "preset": CONVOLUTIONS},
    "DoRA of a LoHa": {"algo": "loha", "conv_dim": 2, "dora_wd": True},
    "DoRA of a LoKr": {"algo": "lokr", "conv_dim": 2, "factor": 4, "dora_wd": True},
    "LoRA, rank-stabilized": {"algo": "locon", "conv_dim": 2, "rs_lora": True},
}


def lycoris(source: Path) -> Iterator[Written]:
    from lycoris import kohya

    for layout, more in LYCORIS.items():
        pipe = base()
        options = {"preset": "attn-mlp", "conv_alpha": 1, **more}
        network = kohya.create_network(1.0, RANK, ALPHA, pipe.vae, pipe.text_encoder, pipe.unet, **options)
        yield layout, pipe, saver_of_network(network, pipe, "ink-000002.safetensors")
