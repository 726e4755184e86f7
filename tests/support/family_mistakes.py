"""Models, LoRA files and wishes of one family given to another: what a user gets to read."""

import json

import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from safetensors.torch import save_file

from basinguard.calibration.terms import CalibrationTerms
from basinguard.guidance.core import SwitchAt
from basinguard.pipelines.distillation import fitting_terms
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline, require_capability
from basinguard.pipelines.protect import protect
from basinguard.training.preflight import check_fit
from support.tiny_pipeline import build_tiny_flux2, build_tiny_sd3, build_tiny_z_image


def index(root, class_name):
    """A model of a class, by its index alone."""
    folder = root / "model"
    (folder / "scheduler").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    for part in ("unet", "transformer"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps({"cross_attention_dim": 1024} if part == "unet" else {}))
    return folder


def with_lora(layer, class_name):
    """A LoRA of one layer on a model of a class."""

    def run(root):
        save_file({f"{layer}.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}, root / "mine.safetensors")
        load_pipeline(index(root, class_name), lora=root / "mine.safetensors")

    return run


def single_file_of_xl(root):
    layer = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({layer: torch.zeros(4, 2048)}, root / "xl.safetensors")
    check_fit(root / "xl.safetensors")


def another_sampler(root):
    pipe = build_tiny_sd3()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    LatentModel(pipe)


FLOW_LAYER, UNET_LAYER = "transformer.transformer_blocks.0.attn.to_q", "unet.mid_block.attentions.0.proj_in"
FAMILY_CASES = {
    "a class of pipelines that is not read": lambda root: load_pipeline(index(root, "FluxPipeline")),
    "a flow to fine-tune": lambda root: require_capability(index(root, "Flux2KleinPipeline"), "trainable"),
    "a flow to export": lambda root: require_capability(index(root, "ZImagePipeline"), "exportable"),
    "a LoRA of a flow on Stable Diffusion 2": with_lora(FLOW_LAYER, "StableDiffusionPipeline"),
    "a LoRA of Stable Diffusion on a flow": with_lora(UNET_LAYER, "StableDiffusion3Pipeline"),
    "a base of Stable Diffusion XL in one file": single_file_of_xl,
    "a flow under a sampler that is not its own": another_sampler,
    "a rule on a distilled pipeline": lambda root: protect(build_tiny_z_image(shift=3.0), SwitchAt(600)),
    "a distilled model that is to be calibrated to a rule": lambda root: fitting_terms(
        build_tiny_flux2(is_distilled=True), CalibrationTerms(before=(-2.0,), transitions=(600.0,))
    ),
    "a rule on a pipeline that calls twice": lambda root: protect(build_tiny_flux2(), SwitchAt(600)),
}
