"""Adapters by SimpleTuner and by diffusers' own scripts: peft's layers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from adapter_answers import ALPHA, RANK, Written, base, randomize
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from basinguard.tinyworld import model_directory
from basinguard.tinyworld.demo_folder import write_demo_folder

ATTENTION, TEXT = ["to_q", "to_k", "to_v", "to_out.0"], ["q_proj", "k_proj", "v_proj", "out_proj"]


def simpletuner(source: Path) -> Iterator[Written]:
    from lycoris import LycorisNetwork, create_lycoris
    from simpletuner.helpers.training.save_hooks import SaveHookManager

    def manager(pipe: Any, **more: Any) -> Any:
        hooks = object.__new__(SaveHookManager)
        hooks.args = SimpleNamespace(use_ema=False, controlnet=False, **more)
        hooks.model = MagicMock(MODEL_SUBFOLDER="unet", save_lora_weights=StableDiffusionPipeline.save_lora_weights)
        hooks.model.get_trained_component = lambda **_: pipe.unet
        hooks.model.get_text_encoder = lambda k: pipe.text_encoder if k == 0 else None
        hooks.accelerator = MagicMock(unwrap_model=lambda model, *_, **__: model)
        hooks.use_deepspeed_optimizer, hooks.ema_model = False, None
        hooks._build_modelspec_metadata = lambda **_: {}
        hooks._apply_modelspec_metadata_to_lora = lambda *_: None
        return hooks

    for layout, more in (("LoRA", {}), ("DoRA", {"use_dora": True}), ("LoRA, rank-stabilized", {"use_rslora": True})):
        pipe = with_peft(base(), **more)

        def save(folder: Path, pipe: Any = pipe) -> Path:
            manager(pipe)._save_lora([pipe.unet], [pipe.unet], str(folder))
            return folder / "pytorch_lora_weights.safetensors"

        yield layout, pipe, save
    for layout, own in (("LyCORIS LoKr", {"algo": "lokr", "factor": 4}), ("LyCORIS LoHa", {"algo": "loha"})):
        pipe = base()
        LycorisNetwork.apply_preset({"target_module": ["Attention", "FeedForward"]})
        network = create_lycoris(pipe.unet, 1.0, linear_dim=RANK, linear_alpha=ALPHA, **own)
        network.apply_to()
        randomize(dict(network.named_parameters()))

        def save(folder: Path, pipe: Any = pipe, network: Any = network, own: Any = own) -> Path:
            config = folder / "config.json"
            config.write_text(json.dumps(own))
            hooks = manager(pipe, lycoris_config=str(config))
            hooks.accelerator._lycoris_wrapped_network = network
            hooks._save_lycoris([pipe.unet], [pipe.unet], str(folder))
            return folder / "pytorch_lora_weights.safetensors"

        yield layout, pipe, save


def with_peft(pipe: Any, text: bool = False, **more: Any) -> Any:
    """A pipeline with peft's adapter on it, as diffusers' scripts and SimpleTuner add it."""
    patterns = {"rank_pattern": {"attn2.to_k": 2}, "alpha_pattern": {r"down_blocks\..*attn2\.to_(k|v)": 6.0}}
    for part, targets in (("unet", ATTENTION), *((("text_encoder", TEXT),) if text else ())):
        own = patterns if part == "unet" else {}
        getattr(pipe, part).add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **own, **more))
        named = getattr(pipe, part).named_parameters()
        randomize({name: parameter for name, parameter in named if "lora_" in name})
    return pipe


SCRIPTS = {  # each run to its end: four updates on TinyWorld's drawings
    "LoRA": ("text_to_image/train_text_to_image_lora.py", "--train_data_dir", ["--rank=4"], "checkpoint-4"),
    "LoRA, text encoder too": (
        "dreambooth/train_dreambooth_lora.py", "--instance_data_dir", ["--rank=4", "--train_text_encoder"],
        "checkpoint-4",
    ),
    "UNet": ("text_to_image/train_text_to_image.py", "--train_data_dir", ["--use_ema"], "checkpoint-4"),
    "whole pipeline": ("dreambooth/train_dreambooth.py", "--instance_data_dir", ["--train_text_encoder"], "."),
}  # fmt: skip


def diffusers(source: Path) -> Iterator[Written]:
    for layout, (script, data, more, place) in SCRIPTS.items():
        run = Path(tempfile.mkdtemp())
        train, _ = write_demo_folder(run / "data")
        if data == "--instance_data_dir":
            (train / "metadata.jsonl").unlink()
            more = [*more, "--instance_prompt=a toy"]
        command = [sys.executable, "-P", str(source / "examples" / script), data, str(train)]
        command += ["--pretrained_model_name_or_path", str(model_directory()), "--output_dir", str(run / "out")]
        command += ["--resolution=32", "--max_train_steps=4", "--checkpointing_steps=2", "--learning_rate=1e-2", *more]
        subprocess.run(command, check=True, capture_output=True)
        pipe, saved = base(), run / "out" / place
        if "LoRA" in layout:
            pipe.load_lora_weights(saved)
        elif layout == "UNet":
            pipe.unet = type(pipe.unet).from_pretrained(saved / "unet")
        else:
            pipe = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)

        def save(folder: Path, saved: Path = saved, layout: str = layout) -> Path:
            shutil.copytree(saved, folder / saved.name)
            inside = "pytorch_lora_weights.safetensors" if "LoRA" in layout else ""
            return folder / saved.name / inside

        yield layout, pipe, save
