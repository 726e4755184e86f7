"""Adapter files written by trainers' own saving code, each in a process of its own: see `trainer_files.py`.

    python recipes/studies/trainer_clients.py CLIENT FOLDER OUT

CLIENT is a name in `CLIENTS`, FOLDER where its source lies, OUT where each file goes, beside a `reference.safetensors`
with what the trainer's own layers make of it: weights by their answers to unit inputs, and one output of the UNet.
Packages of a trainer that are not installed and that saving does not need are replaced by empty ones, and named.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from basinguard.tinyworld import model_directory
from basinguard.tinyworld.demo_folder import write_demo_folder

ATTENTION, TEXT = ["to_q", "to_k", "to_v", "to_out.0"], ["q_proj", "k_proj", "v_proj", "out_proj"]
RANK, ALPHA = 4, 2.0


class EmptyType(type):
    """Of classes that have every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class EmptyModule(ModuleType):
    """A module whose every name is there: a class where it is capitalized, else something that can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return EmptyType(name, (), {}) if name[:1].isupper() else MagicMock(name=name)


class EmptyPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stand-ins for packages that are not installed."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.imported = names, set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Of one of the packages."""
        if name.partition(".")[0] not in self.names:
            return None
        self.imported.add(name.partition(".")[0])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        """An empty package."""
        module = EmptyModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: Any) -> None:
        """Nothing is in it."""


def base() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(model_directory(), safety_checker=None, local_files_only=True)
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    return pipe


def answers(pipe: Any) -> dict[str, Tensor]:
    """The weight of each layer that can be adapted, by what it answers to unit inputs, and one output of the UNet."""
    weights = {}
    for part in ("unet", "text_encoder"):
        for name, layer in getattr(pipe, part).named_modules():
            if "lora" in name or "base_layer" in name:
                continue
            inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
            if isinstance(inner, nn.Linear | nn.Conv2d) and (weight := answered(layer, inner)) is not None:
                weights[f"{part}.{name}"] = weight
    return weights | {"output": output(pipe)}


@torch.no_grad()
def answered(layer: Any, inner: Any) -> Tensor | None:
    if isinstance(inner, nn.Linear):
        inputs = torch.eye(inner.in_features)
        return (layer(inputs) - layer(torch.zeros(1, inner.in_features))).T.contiguous()
    side, pad = inner.kernel_size[0], inner.padding[0]
    if inner.stride != (1, 1) or side not in (1, 3) or 2 * pad + 1 != side:
        return None
    inputs = torch.zeros(inner.in_channels, inner.in_channels, side, side)
    inputs[range(inner.in_channels), range(inner.in_channels), pad, pad] = 1
    answer = layer(inputs) - layer(torch.zeros_like(inputs[:1]))
    return answer.transpose(0, 1).flip(2, 3).contiguous()


@torch.no_grad()
def output(pipe: Any) -> Tensor:
    """What the UNet predicts for fixed latents, timestep and text."""
    generator = torch.Generator().manual_seed(0)
    config = pipe.unet.config
    latents = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    tokens = pipe.tokenizer(["a red ball", "a box"], padding="max_length", truncation=True, return_tensors="pt")
    return pipe.unet(latents, 500, pipe.text_encoder(tokens.input_ids)[0]).sample


def randomize(parameters: Mapping[str, nn.Parameter]) -> None:
    """Weights of an adapter as training might have left them: none of them zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "magnitude" in name or "dora_scale" in name:
            parameter.data.mul_(1 + 0.2 * noise.tanh())
        else:
            parameter.data.copy_(0.1 * noise)


Written = tuple[str, Any, Callable[[Path], Path]]  # layout, pipeline with the adapter on it, saves it to a folder


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


def onetrainer(source: Path) -> Iterator[Written]:
    from modules.model.StableDiffusionModel import StableDiffusionModel
    from modules.modelSaver.stableDiffusion.StableDiffusionLoRASaver import StableDiffusionLoRASaver
    from modules.module.LoRAModule import LoRAModuleWrapper
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.ModelFormat import ModelFormat
    from modules.util.enum.ModelType import ModelType, PeftType

    kinds = {
        "LoRA": {}, "DoRA, by input": {"lora_decompose": True},
        "DoRA, by output": {"lora_decompose": True, "lora_decompose_output_axis": True},
        "LoHa": {"peft_type": PeftType.LOHA}, "LoKr": {"peft_type": PeftType.LOKR, "lokr_dim": 2},
        "LoKr with cores, DoRA": {
            "peft_type": PeftType.LOKR, "lokr_dim": 2, "lokr_use_tucker": True, "lokr_weight_decompose": True
        },
    }  # fmt: skip
    formats = [ModelFormat.KOHYA_LORA, ModelFormat.DIFFUSERS_LORA]
    cases = [(kind, form) for kind in kinds for form in formats]
    cases += [("LoRA", form) for form in (ModelFormat.LEGACY_LORA, ModelFormat.ORIGINAL_LORA, ModelFormat.COMFY_LORA)]
    for kind, form in cases:
        pipe, config = base(), TrainConfig.default_values()
        config.lora_rank, config.lora_alpha, config.train_device = RANK, ALPHA, "cpu"
        for name, value in kinds[kind].items():
            setattr(config, name, value)
        model = StableDiffusionModel(ModelType.STABLE_DIFFUSION_21)
        model.train_config, model.unet, model.text_encoder = config, pipe.unet, pipe.text_encoder
        both = form is not ModelFormat.ORIGINAL_LORA
        model.unet_lora = LoRAModuleWrapper(pipe.unet, "unet", config, ["attentions", "resnets.0.conv1"])
        model.text_encoder_lora = LoRAModuleWrapper(pipe.text_encoder, "text_encoder", config) if both else None
        for wrapper in filter(None, (model.unet_lora, model.text_encoder_lora)):
            wrapper.hook_to_module()
            randomize({f"{n}.{p}": v for n, m in wrapper.lora_modules.items() for p, v in m.named_parameters()})

        def save(folder: Path, model: Any = model, form: Any = form) -> Path:
            path = folder / "2026-01-02_03-04-05-save-90-2-10.safetensors"
            StableDiffusionLoRASaver().save(model, form, str(path), torch.float32)
            return path

        yield f"{kind}, {form}", pipe, save


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


def ai_toolkit(source: Path) -> Iterator[Written]:
    from toolkit.lora_special import LoRASpecialNetwork

    for layout, more in (
        ("LoRA", {}), ("LoRA, its peft format", {"peft_format": True}), ("LoKr", {"network_type": "lokr"}),
        ("DoRA", {"network_type": "dora", "attn_only": True}),
    ):  # fmt: skip
        pipe = base()
        config = SimpleNamespace(lokr_full_rank=False, lokr_factor=4, **{"old_lokr_format": False})
        network = LoRASpecialNetwork(
            pipe.text_encoder, pipe.unet, lora_dim=RANK, alpha=ALPHA, train_unet=True, train_text_encoder=True,
            network_config=config, **more,
        )  # fmt: skip
        network.apply_to(pipe.text_encoder, pipe.unet, True, True)
        network.force_to("cpu", torch.float32)
        network.is_active = True
        network._update_torch_multiplier()
        randomize(dict(network.named_parameters()))

        def save(folder: Path, network: Any = network) -> Path:
            path = folder / "cat_000000250.safetensors"
            metadata = {"training_info": '{"step": 250, "epoch": 0}'}
            network.save_weights(str(path), dtype=torch.float32, metadata=metadata)
            return path

        yield layout, pipe, save


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


CLIENTS: dict[str, tuple[Callable[[Path], Iterator[Written]], set[str]]] = {
    "sd-scripts": (sd_scripts, {"cv2", "imagesize"}),
    "LyCORIS": (lycoris, set()),
    "OneTrainer": (onetrainer, {"gguf", "bitsandbytes", "mgds"}),
    "SimpleTuner": (simpletuner, set()),
    "diffusers": (diffusers, set()),
    "ai-toolkit": (ai_toolkit, {"optimum", "torchao", "torchaudio", "cv2", "oyaml", "av"}),
}


def main(client: str, source: Path, out: Path) -> None:
    written, missing = CLIENTS[client]
    empty = EmptyPackages({name for name in missing if importlib.util.find_spec(name) is None})
    sys.meta_path.append(empty)
    sys.path.insert(0, str(source))
    for number, (layout, pipe, save) in enumerate(written(source)):
        folder = out / f"{number:02}"
        folder.mkdir(parents=True)
        row = {"layout": layout}
        try:
            row["file"] = str(save(folder).relative_to(folder))
            save_file(answers(pipe), folder / "reference.safetensors")
        except Exception as error:
            row["problem"] = f"{type(error).__name__}: {error}"[:300]
        row["empty"] = ", ".join(sorted(empty.imported))
        (folder / "row.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
