"""Every kind of export, opened by every client and version that is given: what each reads, beside what was exported.

    OMP_NUM_THREADS=1 PYTHONPATH=plugin python recipes/studies/loader_matrix.py --environments runs/environments \\
        "diffusers==0.32.2 transformers==4.54.1 huggingface_hub==0.34.3 tokenizers==0.21.4 peft==0.17.1" ... \\
        --comfyui COMFYUI --sd-scripts SD_SCRIPTS --forge FORGE --extra CLIENT_REQUIREMENTS

Each quoted list of versions becomes a folder below `--environments` (pip install --no-deps --target), laid over this
Python's packages by PYTHONPATH. COMFYUI, SD_SCRIPTS and FORGE are checkouts; `--extra` is a folder with what any of the
clients needs beside those (httpx for huggingface_hub 1, einops, opencv, huggingface_guess ...), `--pins` the list of
versions that sd-scripts and Forge are run with. TinyWorld is exported with a LoRA of
random weights on every attention layer of UNet and text encoder; Stable Diffusion 2.1, of random weights too, is what
those clients know (`--full`: 8 GB on disk, 12 GB of memory).

Expected: `results/loader_matrix.md`. Time: a minute a version, and 5 minutes for each of the other clients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comfyui_client import record_of
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from loader_clients import PROMPT, results_of
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from basinguard.exports.directory import export_directory
from basinguard.exports.lora import export_lora
from basinguard.exports.merge import merged
from basinguard.exports.single_file import export_single_file
from basinguard.pipelines.architecture import sd21_config, sd21_tokenizer
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.lora import TEXT_TARGETS, UNET_TARGETS
from basinguard.tinyworld import model_directory

Case = dict[str, str]
Row = Mapping[str, Any]
FORMATS = ("kohya", "diffusers", "diffusers-folded")
SMALL = {"block_out_channels": (32,) * 4, "layers_per_block": 2}  # four levels: what the layout depends on


def add_random_lora(pipe: Any, rank: int = 4) -> None:
    """A LoRA of random weights on every attention layer, whose alphas differ from layer to layer and from the rank."""
    for part, targets in ((pipe.unet, UNET_TARGETS), (pipe.text_encoder, TEXT_TARGETS)):
        odd = {targets[0]: rank * 2}
        part.add_adapter(LoraConfig(r=rank, lora_alpha=rank // 2, alpha_pattern=odd, target_modules=list(targets)))
        for name, weight in part.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.5 * weight.shape[1] ** -0.5)


def second_generation(*, full: bool) -> StableDiffusionPipeline:
    """Stable Diffusion 2.1 of random weights that float16 holds exactly, whole or narrow."""
    text = {key: value for key, value in sd21_config("text_encoder/config.json").items() if key != "architectures"}
    unet, vae = (
        {k: v for k, v in sd21_config(f"{part}/config.json").items() if k[0] != "_"} for part in ("unet", "vae")
    )
    if not full:
        text |= {"intermediate_size": 64, "num_hidden_layers": 2}
        unet |= SMALL | {"attention_head_dim": (1,) * 4}
        vae |= SMALL
    parts = (AutoencoderKL(**vae), CLIPTextModel(CLIPTextConfig(**text)), UNet2DConditionModel(**unet))
    for part in parts:
        part.half().float().eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    return StableDiffusionPipeline(
        parts[0], parts[1], sd21_tokenizer(), parts[2], scheduler, None, None, requires_safety_checker=False
    )


def write_right(pipe: Any, path: Path) -> None:
    """Inputs, and what the pipeline in memory makes of them."""
    torch.manual_seed(1)
    side = min(pipe.unet.config.sample_size, 16)
    tokens = pipe.tokenizer(PROMPT, padding="max_length", max_length=pipe.tokenizer.model_max_length)
    given = {
        "latents": torch.randn(1, 4, side, side), "tokens": torch.tensor([tokens.input_ids]),
        "pixels": torch.rand(1, 3, side * pipe.vae_scale_factor, side * pipe.vae_scale_factor) * 2 - 1,
    }  # fmt: skip
    given["text"] = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    pipe.set_progress_bar_config(disable=True)
    save_file({name: value.contiguous() for name, value in (given | dict(results_of(pipe, given))).items()}, path)


def export_all(pipe: Any, name: str, out: Path, *, single: bool, formats: Sequence[str]) -> Iterator[Case]:
    """A base model, the same with a LoRA merged into it, and the LoRA, in every format that is asked for."""
    base, right = out / f"{name}-base", {kind: str(out / f"{name}-{kind}.right") for kind in ("base", "tuned")}
    export_directory(pipe, record_of(pipe), base, overwrite=True)
    write_right(pipe, Path(right["base"]))
    yield {"name": f"{name}, directory", "kind": "directory", "directory": str(base), "right": right["base"]}
    checkpoint = {}
    if single:
        file = export_single_file(pipe, record_of(pipe), out / f"{name}.safetensors", overwrite=True)
        checkpoint = {"checkpoint": str(file)}
        kind = {"kind": "single-file", "directory": str(base), "file": str(file)}
        yield {"name": f"{name}, single file", **kind, "right": right["base"]}
    add_random_lora(pipe)
    write_right(pipe, Path(right["tuned"]))
    if not single:
        tuned, whole = out / f"{name}-tuned", merged(pipe)
        export_directory(whole, record_of(whole), tuned, overwrite=True)
        yield {
            "name": f"{name}, tuned, directory",
            "kind": "directory",
            "directory": str(tuned),
            "right": right["tuned"],
        }
    for form in formats:
        record = record_of(pipe).model_copy(update={"weights_sha256": ""})
        file = export_lora(pipe, record, out / f"{name}-{form}.safetensors", format=form, overwrite=True)
        kind = {"kind": "lora", "directory": str(base), "file": str(file), **checkpoint}
        yield {"name": f"{name}, LoRA, {form}", **kind, "right": right["tuned"]}


def environment(folder: Path, versions: str) -> Path:
    """Packages in a folder of their own, without what they depend on; installed once."""
    target = folder / "_".join(versions.replace("==", "-").split())
    if not target.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(target)]
        subprocess.run([*pip, *versions.split()], check=True)
    return target


def rows_of(
    client: str, cases: Path, before: Sequence[Path], checkout: Path | None = None
) -> Iterator[Mapping[str, Any]]:
    """What a client reads of the exports, in a process whose packages begin with those folders."""
    command = [sys.executable, str(Path(__file__).with_name("loader_clients.py")), client, str(cases)]
    place = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, before)), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [*command, *(["--checkout", str(checkout)] if checkout else [])], env=place, text=True, capture_output=True
    )
    yield from map(json.loads, filter(None, ran.stdout.splitlines()))
    if ran.returncode:
        yield {"export": "", "error": " ".join(ran.stderr.split())[-300:]}


def name_of(row: Row) -> str:
    """Client with the versions that it said it ran with."""
    versions = " ".join(f"{name} {version}" for name, version in row.get("versions", {}).items())
    return f"{row['client']}: {versions}" if versions else row["client"]


def table(rows: Sequence[Row]) -> str:
    """Markdown: client and version, export, and the largest difference of each result, or the error."""
    wide = ("text", "unet", "decoded", "encoded", "drawn")
    lines = [f"| client | export | {' | '.join(wide)} |", "|---" * (len(wide) + 2) + "|"]
    for client, export in dict.fromkeys((name_of(row), row["export"]) for row in rows):
        own = [row for row in rows if (name_of(row), row["export"]) == (client, export)]
        values = {row["what"]: f"{row['difference']:.0e}" for row in own if "what" in row}
        cells = [values.get(what, "") for what in wide]
        error = next((row["error"].replace("|", "/") for row in own if "error" in row), "")
        lines.append(f"| {client} | {export} | {' | '.join(cells)} |{f' {error}' if error else ''}")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main() -> None:
    """Exports, starts every client, writes `loader_matrix.json` and prints the table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("versions", nargs="*")
    ask.add_argument("--environments", type=Path, default=Path("runs/environments"))
    ask.add_argument("--out", type=Path, default=Path("runs/loaders"))
    for name in ("comfyui", "sd-scripts", "forge", "extra"):
        ask.add_argument(f"--{name}", type=Path)
    ask.add_argument("--pins", default="")
    ask.add_argument("--full", action="store_true")
    asked = ask.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    out, extra = asked.out.resolve(), [asked.extra.resolve()] if asked.extra else []
    rows: list[Row] = []

    def note(client: str, results: Iterator[Row]) -> None:
        for row in results:
            rows.append({"client": client, **row})
            print(json.dumps(rows[-1]), flush=True)

    if asked.versions:
        torch.manual_seed(0)
        cases = list(export_all(load_pipeline(model_directory()), "TinyWorld", out, single=False, formats=FORMATS))
        cases += export_all(second_generation(full=False), "narrow SD 2", out, single=True, formats=FORMATS[:1])
        (out / "cases.json").write_text(json.dumps(cases))
        for versions in asked.versions:
            folders = [] if versions == "here" else [environment(asked.environments, versions).resolve(), *extra]
            note("diffusers", rows_of("diffusers", out / "cases.json", folders))
    if asked.full:
        torch.manual_seed(0)
        cases = list(export_all(second_generation(full=True), "SD 2.1", out, single=True, formats=FORMATS[:1]))
        (out / "full.json").write_text(json.dumps(cases))
        for client in ("comfyui", "sd-scripts", "forge"):
            checkout = getattr(asked, client.replace("-", "_"))
            pins = [environment(asked.environments, asked.pins).resolve()] if asked.pins and client != "comfyui" else []
            if checkout:
                note(client, rows_of(client, out / "full.json", [*pins, *extra], checkout.resolve()))
    (out / "loader_matrix.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
