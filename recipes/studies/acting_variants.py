"""The options of `Interventions` on one fine-tune of `acting_study.py`, at equal updates."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from acting_runs import PLAN, Run, folders, guard_for, images_of, style
from acting_shipped import shipped
from safetensors.torch import load_file

from basinguard.core.estimate import Estimate
from basinguard.core.report import Report
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.training.breach_responder import AppliedInterventions
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LoraOptions
from basinguard.training.guard_options import BreachResponse, ControlGroup, Interventions
from basinguard.training.lightning import MemorizationGuard
from basinguard.training.loss_filters import LargeGap

ACTED, ADAPTER, EPOCHS = Run(8, "full", 1.6e-3), Run(8, "lora", 5e-3), 120  # long enough to memorize without acting
VARIANTS: dict[str, tuple[Run, dict[str, Any], Interventions | None]] = {
    "full, nothing": (ACTED, {}, None),
    "rest found images": (ACTED, {}, Interventions(rest=0.0)),
    "draw among captions": (ACTED, {}, Interventions(vary_captions=True)),
    "half the learning rate": (ACTED, {}, Interventions(learning_rate=0.5)),
    "skip low losses": (ACTED, {}, Interventions(low_loss=2.0)),
    "skip large gaps": (ACTED, {}, Interventions(large_gap=1.0)),  # its threshold is measured, see `usual_gap`
    "lora rank 16, nothing": (ADAPTER, {}, None),
    "lora rank 4": (ADAPTER, {"lora": LoraOptions(rank=4)}, None),
    "lora dropout 0.1": (ADAPTER, {"lora": LoraOptions(dropout=0.1)}, None),
}


def several_captions(data: Path, size: int) -> Path:
    """The training scenes with four captions each: its own, without the detail, without the texture, without both."""
    source, target = folders(data, size)[0], data / f"train-{size}-captions"
    if not (target / "metadata.jsonl").exists():
        target.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
        for row in rows:
            (target / row["file_name"]).write_bytes((source / row["file_name"]).read_bytes())
            _, texture, kind, *detail = row["text"].split()
            texts = [row["text"], f"a {texture} {kind}", " ".join(["a", kind, *detail]), f"a {kind}"]
            row["text"] = list(dict.fromkeys(texts))
        (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return target


@torch.no_grad()
def usual_gap(data: ImageFolder) -> float:
    """The gap of the base model on the training images that 95 % of (image, timestep) pairs do not exceed."""
    module, recorded = FineTune("tinyworld", **ACTED.settings), []
    module.train()

    class Note(LargeGap):
        """Lets everything pass and writes the gaps down."""

        def __call__(self, errors: torch.Tensor, timesteps: torch.Tensor, gaps: Any) -> torch.Tensor:
            """All rows count."""
            recorded.append(gaps())
            return torch.ones(len(errors))

    module.filter = Note()
    latents = module.pipe.vae.encode(data.all_pixels() * 2 - 1).latent_dist.mean * module.pipe.vae.config.scaling_factor
    embeddings, dice = module.encode_captions([text for _, text in data.items]), torch.Generator().manual_seed(0)
    for _ in range(8):
        noise = torch.randn(latents.shape, generator=dice)
        module.denoising_loss(latents, embeddings, noise, torch.randint(0, 1000, (len(latents),), generator=dice))
    return float(torch.cat(recorded).quantile(0.95))


def act(name: str, out: Path) -> None:
    """One variant of the same fine-tune, at equal updates; its last epoch, on fresh seeds and all captions."""
    target = out / f"act-{name.replace(' ', '-').replace(',', '')}.json"
    if target.exists():
        return
    started = time.process_time()
    run, changes, acting = VARIANTS[name]
    own, held = folders(out / "data", run.size)
    folder = several_captions(out / "data", run.size) if acting and acting.vary_captions else own
    data, controls = images_of(folder), images_of(held)
    if acting and acting.large_gap:
        acting = Interventions(large_gap=usual_gap(data))
    watched = acting is not None and not (acting.low_loss or acting.large_gap)
    weights = out / run.name / f"epoch-{EPOCHS - 1}.safetensors"
    module = FineTune("tinyworld", **{**run.settings, **changes})
    history: list[Report] = []
    did = ""
    if acting is None and not changes and weights.exists():
        for key, value in load_file(weights).items():
            module.trained()[key].data.copy_(value)
    else:
        callbacks: list[pl.Callback] = []
        if watched:
            control = ControlGroup([text for _, text in controls.items][:8])
            plan, respond = ProbePlan(run.size, **PLAN), BreachResponse("act", interventions=acting)
            guard = MemorizationGuard(plan, control, respond=respond, every_n_epochs=20, alignment="none")
            callbacks.append(guard)
        elif acting is not None:
            AppliedInterventions(acting, module, data)
        pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, callbacks=callbacks,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, default_root_dir=out,
        ).fit(module, datamodule=data)  # fmt: skip
        if watched:
            history, did = guard.history, str(guard.run.responder.applied)
    estimates = shipped(guard_for(images_of(own), controls), LatentModel(module.eval().pipe), style(), pairs=48, each=2)
    summary = {"name": name, "acting": vars(acting) if acting else None, "changes": changes, "did": did, **estimates}
    summary |= {"history": [json.loads(report.to_json()) for report in history]}
    target.write_text(json.dumps({**summary, "cpu_seconds": round(time.process_time() - started)}, indent=1))
    print(name, did, {k: str(Estimate(**v)) for k, v in estimates.items()}, flush=True)
