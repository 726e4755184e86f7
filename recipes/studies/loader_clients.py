"""How far what a client reads of an export is from what was exported; `loader_matrix.py` starts it with each client.

    PYTHON recipes/studies/loader_clients.py CLIENT CASES [--checkout FOLDER]

CASES is the JSON of `loader_matrix`: of each case its kind, its files, and a safetensors file with inputs and right
results. One JSON line a comparison is printed; a client that fails prints its error. It imports nothing of basinguard:
it runs where only the client is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PROMPT, TIMESTEP, STEPS, SCALE = "a red circle on a table", 500, 3, 4.0
PACKAGES = ("diffusers", "transformers", "huggingface_hub", "tokenizers", "peft")
Results = Mapping[str, torch.Tensor]


def results_of(pipe: Any, given: Results) -> Iterator[tuple[str, torch.Tensor]]:
    """What a diffusers pipeline makes of the inputs: text states, prediction, both ways of the VAE, and latents drawn.

    Args:
        pipe: a `StableDiffusionPipeline`.
        given: `latents` [1, 4, h, w], `pixels` [1, 3, H, W] in -1..1 and the right `text`, so that the prediction of
            the UNet does not hang on that of the text encoder.
    """
    latents, states = given["latents"], pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    yield "text", states
    yield "unet", pipe.unet(latents, TIMESTEP, given.get("text", states)).sample
    yield "decoded", pipe.vae.decode(latents).sample
    yield "encoded", pipe.vae.encode(given["pixels"]).latent_dist.mean
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    side = latents.shape[-1] * pipe.vae_scale_factor
    yield "drawn", pipe(PROMPT, height=side, width=side, latents=latents.clone(), **options).images


def diffusers(case: Mapping[str, str], given: Results) -> Iterator[tuple[str, torch.Tensor]]:
    """Stock diffusers: a directory, a single file with the configuration of one, or a LoRA on a directory."""
    from diffusers import StableDiffusionPipeline

    if case["kind"] == "single-file":
        pipe = StableDiffusionPipeline.from_single_file(case["file"], config=case["directory"], local_files_only=True)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(case["directory"], local_files_only=True)
    if case["kind"] == "lora":
        path = Path(case["file"])
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.set_progress_bar_config(disable=True)
    yield from results_of(pipe.to(torch.float32), given)


def comfyui(case: Mapping[str, str], given: Results) -> Iterator[tuple[str, torch.Tensor]]:
    """ComfyUI's CheckpointLoaderSimple, DiffusersLoader and LoraLoader, by the functions behind them."""
    import comfy.diffusers_load
    import comfy.sd
    import comfy.utils

    options = {"output_vae": True, "output_clip": True, "embedding_directory": None}
    if case["kind"] == "directory":
        model, clip, vae = comfy.diffusers_load.load_diffusers(case["directory"], **options)
    else:
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(case.get("checkpoint", case["file"]), **options)[:3]
    if case["kind"] == "lora":
        lora = comfy.utils.load_torch_file(case["file"], safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    yield "text", clip.encode_from_tokens(clip.tokenize(PROMPT)).float()
    model.patch_model(torch.device("cpu"))
    network = model.model.diffusion_model.float()
    yield "unet", network(given["latents"], torch.tensor([TIMESTEP]), context=given["text"])
    yield "decoded", vae.first_stage_model.float().decode(given["latents"])
    yield "encoded", vae.first_stage_model.encode(given["pixels"])


def sd_scripts(case: Mapping[str, str], given: Results) -> Iterator[tuple[str, torch.Tensor]]:
    """kohya's sd-scripts: its reader of single files, and its LoRA network."""
    from library.model_util import load_models_from_stable_diffusion_checkpoint
    from networks.lora import create_network_from_weights

    text, vae, unet = load_models_from_stable_diffusion_checkpoint(True, case.get("checkpoint", case["file"]))
    if case["kind"] == "lora":
        network, weights = create_network_from_weights(1.0, case["file"], vae, text, unet)
        network.apply_to(text, unet)
        print(network.load_state_dict(weights, strict=True), file=sys.stderr)
    yield "text", text.float()(given["tokens"])[0]
    yield "unet", unet.float()(given["latents"], torch.tensor([TIMESTEP]), given["text"]).sample
    yield "decoded", vae.float().decode(given["latents"]).sample
    yield "encoded", vae.encode(given["pixels"]).latent_dist.mean


def forge(case: Mapping[str, str], given: Results) -> Iterator[tuple[str, torch.Tensor]]:
    """Forge's loader of single files and of LoRAs, without its window; its settings are the only part replaced."""
    settings = types.ModuleType("modules.shared")
    settings.opts = types.SimpleNamespace(emphasis="Original", CLIP_stop_at_last_layers=1)  # type: ignore[attr-defined]
    sys.modules |= {"modules": types.ModuleType("modules"), "modules.shared": settings}
    from backend.args import dynamic_args
    from backend.loader import forge_loader

    dynamic_args.update(embedding_dir=None, emphasis_name="Original")
    engine = forge_loader(case.get("checkpoint", case["file"]))
    parts = engine.forge_objects
    if case["kind"] == "lora":
        apply_in_forge(load_file(case["file"]), parts.unet, parts.clip)
    yield "text", engine.get_learned_conditioning([PROMPT]).float()
    network = parts.unet.model.diffusion_model.float()
    yield "unet", network(given["latents"], torch.tensor([TIMESTEP]), context=given["text"])
    yield "decoded", parts.vae.first_stage_model.float().decode(given["latents"])


def apply_in_forge(lora: Results, unet: Any, clip: Any) -> None:
    """What `load_lora_for_models` of Forge's extension does, which cannot be imported without the window."""
    from backend.patcher.lora import load_lora, model_lora_keys_clip, model_lora_keys_unet

    of_unet, rest = load_lora(lora, model_lora_keys_unet(unet.model, {}))
    of_clip, rest = load_lora(rest, model_lora_keys_clip(clip.cond_stage_model, {}))
    if rest:
        raise ValueError(f"{len(rest)} of {len(lora)} tensors are not known, such as {min(rest)}")
    unet.add_patches(filename="lora", patches=of_unet, strength_patch=1.0)
    clip.add_patches(filename="lora", patches=of_clip, strength_patch=1.0)
    for patcher in (unet, clip.patcher):
        patcher.refresh_loras()


CLIENTS: Mapping[str, Callable[..., Iterator[tuple[str, torch.Tensor]]]] = {
    "diffusers": diffusers, "comfyui": comfyui, "sd-scripts": sd_scripts, "forge": forge,
}  # fmt: skip


def compared(client: str, case: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A row for each result: how many numbers were compared, and the largest difference."""
    right = load_file(case["right"])
    row: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}, "export": case["name"]}
    try:
        for what, value in CLIENTS[client](case, right):
            expected = right[what]
            value = value.reshape(expected.shape) if value.numel() == expected.numel() else value
            difference = float((value.float() - expected).abs().max())
            yield row | {"what": what, "n": expected.numel(), "largest": float(expected.abs().max()),
                         "difference": difference}  # fmt: skip
    except Exception as error:
        yield row | {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


@torch.no_grad()
def main() -> None:
    """Prints one JSON line for each comparison; what the client itself says goes to standard error."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("client", choices=CLIENTS)
    ask.add_argument("cases", type=Path)
    ask.add_argument("--checkout", type=Path)
    asked = ask.parse_args()
    if asked.checkout:
        folders = [asked.checkout, *(asked.checkout / below for below in BELOW[asked.client])]
        sys.path[:0] = [str(folder) for folder in folders]
    sys.argv = [sys.argv[0], *ARGUMENTS.get(asked.client, ())]
    if asked.client == "comfyui":
        import comfy.options

        comfy.options.enable_args_parsing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in json.loads(asked.cases.read_text("utf-8")):
            if asked.client in FILES_ALONE and case["kind"] == "directory":
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                rows = list(compared(asked.client, case))
            print("\n".join(map(json.dumps, rows)), flush=True)


BELOW = {"forge": ("packages_3rdparty",), "comfyui": (), "sd-scripts": ()}
WINDOW = (
    "cache",
    "errors",
    "scripts",
    "sd_models",
    "processing",
    "paths",
    "extra_networks",
    "hashes",
)  # nothing of it is used
FILES_ALONE = ("sd-scripts", "forge")  # clients that open no directories
ARGUMENTS = {"comfyui": ("--cpu",), "forge": ("--always-cpu", "--all-in-fp32")}


if __name__ == "__main__":
    main()
