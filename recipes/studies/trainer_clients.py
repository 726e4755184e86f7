"""Adapter files written by trainers' own saving code, each in a process of its own: see `trainer_files.py`.

    python recipes/studies/trainer_clients.py CLIENT FOLDER OUT

CLIENT is a name in `CLIENTS`, FOLDER where its source lies, OUT where each file goes, beside a `reference.safetensors`
with what the trainer's own layers make of it: weights by their answers to unit inputs, and one output of the UNet.
Packages of a trainer that are not installed and that saving does not need are replaced by empty ones, and named.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from adapter_answers import ALPHA, RANK, Written, answers, base, randomize
from empty_packages import EmptyPackages
from kohya_clients import lycoris, sd_scripts
from peft_clients import diffusers, simpletuner
from safetensors.torch import save_file


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
