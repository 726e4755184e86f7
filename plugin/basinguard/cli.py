"""The `basinguard` command: one function for each verb; its signature and docstring are the help (jsonargparse).

A verb whose Python function takes objects (a rule, an embedder, a data set) has a wrapper here that takes only what can
be typed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MISTAKES = (ValueError, TypeError, OSError)  # OSError: missing, existing, forbidden, read-only, full


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb; a user's mistake is one line on stderr and exit status 2, Ctrl-C is 130."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(given)
    except MISTAKES as error:
        print(f"basinguard: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run(given: list[str]) -> None:
    if given[:1] == ["--version"]:
        from . import __version__

        print(f"basinguard {__version__}")
    elif given[:1] == ["fit"]:
        from .training.fit_cli import fit_cli

        fit_cli(given[1:])
    else:
        from jsonargparse import auto_cli

        auto_cli(commands(), args=given, prog="basinguard")


def commands() -> dict[str, Callable[..., Any]]:
    """Verb -> function, in the order of the story; `fit` is LightningCLI's and handled before."""
    from .commands.demo import demo
    from .commands.export import export
    from .commands.inspect import check, inspect
    from .commands.triage import triage
    from .commands.verify import verify

    return {
        "demo": demo,
        "curate": curate,
        "calibrate": calibrate,
        "audit": audit,
        "verify": verify,
        "triage": triage,
        "export": export,
        "inspect": inspect,
        "check": check,
        "sample": sample,
        "compare": compare,
        "compare-images": compare_images,
        "metrics": metrics,
    }


def curate(
    source: Path,
    out: Path | None = None,
    heldout: Path | None = None,
    allow_list: Path | None = None,
    apply: bool = False,
    repeats: int = 1,
    resolution: int = 768,
    workers: int | None = None,
    from_run: Path | None = None,
) -> None:
    """Looks for what a fine-tune would memorize, and writes proposals beside the sources, never into them.

    Args:
        source: a folder of images with captions.
        out: folder for the report, curation.json, trainer configs and cache; beside the source by default.
        heldout: a folder of held-out images; pictures in both are leaks.
        allow_list: refusals of earlier runs, as the report downloads them.
        apply: also write metadata.curated.jsonl into the image folder; without it this is a dry run.
        repeats: how often an epoch shows an image.
        resolution: training resolution for the trainer configs, in pixels.
        workers: processes that read images; all cores by default.
        from_run: a guarded run, export or audit of a model trained on this folder: acts on what it memorized.
    """
    from .curation.curate import curate

    outcome = curate(
        source,
        out=out,
        heldout=heldout,
        allow_list=allow_list,
        apply=apply,
        repeats=repeats,
        resolution=resolution,
        workers=workers,
        from_run=from_run,
        progress=True,
    )
    print(outcome)


def calibrate(
    model: str,
    *,
    data: Path,
    base: str = "",
    lora: Path | None = None,
    alpha: float = 0.05,
    delta: float = 0.05,
    pairs: int = 128,
    before: list[float] | None = None,
    after: list[float] | None = None,
    refine: list[int] | None = None,
    anchor: bool = False,
    transitions: list[float] | None = None,
    strengths: list[float] | None = None,
    transfer: bool = False,
    scale: float = 7.5,
    timesteps: int = 20,
    alignment: str = "auto",
    heldout: Path | None = None,
    out: Path = Path("calibration"),
) -> None:
    """Finds the rule, and the strength for ordinary samplers, that keep a promise for any fine-tune; trains nothing.

    Args:
        model: a directory or hub id of a Stable Diffusion pipeline.
        data: folder of the captioned images it was trained on.
        base: what it was fine-tuned from; without it there is no safe strength.
        lora: a LoRA file on `model`, which is then the base.
        alpha: risk that may not be exceeded.
        delta: chance that the promise is broken.
        pairs: (caption, seed) pairs the promise rests on.
        before: scales above the transition to try; 0 and -1 by default.
        after: scales below it to try; `scale` by default.
        refine: how many times finer the steps below it may be; 1 by default.
        anchor: also try the base model's unconditional prediction; needs `lora`.
        transitions: timesteps to try; every one of the sampler's grid by default.
        strengths: strengths to test with ordinary guidance; 0.1 to 1 by default, [] for none.
        transfer: also measure the rule under other schedulers and step counts.
        scale: of ordinary guidance.
        timesteps: sampling steps.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        heldout: folder of like images that were not trained on, to measure quality by; the base's samples otherwise.
        out: new folder for record.json, calibration.json and plots.
    """
    from .calibration.terms import STRENGTHS, CalibrationTerms
    from .commands.calibrate import calibrate

    terms = CalibrationTerms(
        alpha, delta, pairs, tuple(before or (0.0, -1.0)), tuple(transitions or ()), tuple(after or ()),
        tuple(refine or (1,)), anchor,
    )  # fmt: skip
    tried = STRENGTHS if strengths is None else strengths
    print(
        calibrate(
            model, data, base=base, lora=lora, terms=terms, scale=scale, timesteps=timesteps, tried=tried,
            transfer=transfer, alignment=alignment, heldout=heldout, out=out,
        )
    )  # fmt: skip
    print(f"\nwritten to {out}; ship it: basinguard export {model} {out / 'record.json'} DIRECTORY")


def audit(
    model: str,
    *,
    data: Path,
    base: str = "",
    lora: Path | None = None,
    alpha: float = 0.05,
    delta: float = 0.05,
    pairs: int = 128,
    per_caption: int = 4,
    transitions: list[float] | None = None,
    scale: float = 7.5,
    timesteps: int = 20,
    alignment: str = "auto",
    heldout: Path | None = None,
    out: Path = Path("audit"),
) -> None:
    """Does this model copy these images, which ones, and what would make it safe? Trains nothing.

    Args:
        model: a directory or hub id of a Stable Diffusion pipeline.
        data: folder of the captioned images it was trained on.
        base: what it was fine-tuned from; without it there is no null and no safe strength.
        lora: a LoRA file on `model`, which is then the base.
        alpha: risk that may not be exceeded.
        delta: chance that the promise is broken.
        pairs: (caption, seed) pairs the promise rests on.
        per_caption: samples of each caption that are searched for copies.
        transitions: timesteps to try; every one of the sampler's grid by default.
        scale: of ordinary guidance.
        timesteps: sampling steps.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        heldout: folder of like images that were not trained on, to measure quality by; the base's samples otherwise.
        out: new folder for audit.html, audit.json and the calibration.
    """
    from .calibration.terms import CalibrationTerms
    from .commands.audit import audit

    terms = CalibrationTerms(alpha, delta, pairs, transitions=tuple(transitions or ()))
    print(
        audit(
            model, data, base=base, lora=lora, per_caption=per_caption, terms=terms, scale=scale, timesteps=timesteps,
            alignment=alignment, heldout=heldout, out=out,
        )
    )  # fmt: skip
    print(f"\nthe page with pictures and plots: {out / 'audit.html'}")


def sample(
    model: str,
    prompts: list[str],
    seeds: list[int] | None = None,
    timesteps: int = 50,
    guidance_scale: float = 7.5,
    triage: bool = False,
    out: Path = Path("samples"),
) -> None:
    """Draws prompts by ordinary CFG and by the model's own rule; writes a contact sheet and the gap curve.

    Args:
        model: a directory or hub id that carries a record.
        prompts: a JSON list, such as '["a red ball", "a blue box"]'.
        seeds: one image of each prompt for each; 0 to 3 by default.
        timesteps: sampling steps.
        guidance_scale: of ordinary CFG, above 1.
        triage: let prompts that the record's triage takes for harmless keep ordinary CFG.
        out: folder that is created for the results.
    """
    from .commands.sample import sample

    sheet = sample(
        model,
        prompts,
        seeds=seeds or (0, 1, 2, 3),
        timesteps=timesteps,
        guidance_scale=guidance_scale,
        triage=triage,
        out=out,
    )
    print(sheet)


def compare(
    model: str,
    data: Path | None = None,
    mitigations: str = "all",
    base: str | None = None,
    heldout: Path | None = None,
    checkpoints: list[Path] | None = None,
    captions: int | None = None,
    per_caption: int = 4,
    timesteps: int = 50,
    scale: float = 7.5,
    align: str = "auto",
    metric: Path | None = None,
    first_look: bool = False,
    costs: bool = True,
    out: Path = Path("comparison"),
) -> None:
    """Every mitigation of the field beside ours, on the same prompts and noise: a table, a trade-off plot, JSON.

    Args:
        model: the fine-tuned model: a directory, a hub id or "tinyworld".
        data: the training images it must not reproduce, with captions.
        mitigations: names with commas between them, or "all".
        base: what was fine-tuned; mitigations that need it are skipped, with the reason, when it is not known.
        heldout: images of the same subject that were not trained on, with captions: is the subject still learnt?
        checkpoints: a JSON list of earlier states of the run, most trained first.
        captions: how many training captions, spread evenly; all by default.
        per_caption: seeds for each caption.
        timesteps: sampling steps.
        scale: guidance scale of plain CFG, above 1.
        align: an open_clip model that scores captions; "auto" has one for TinyWorld alone, "none" leaves it out.
        metric: JSON file that says what a copy is, for images that need a threshold of their own.
        first_look: each mitigation at its default intensity alone, without the table of costs: a fifth of the time.
        costs: also measure time and memory of each mitigation beside plain CFG, in turns.
        out: folder of the results; a run that was stopped goes on there.
    """
    from .core.metric import Metric
    from .mitigations.report import table
    from .mitigations.runner import command_line
    from .mitigations.runner import compare as run
    from .mitigations.settings import ComparisonOptions

    if data is None:
        raise ValueError("compare needs the training images: --data DIR")
    options = ComparisonOptions(
        captions,
        per_caption,
        timesteps,
        scale,
        first_look,
        costs,
        align,
        Metric.from_json(metric.read_text(encoding="utf-8")) if metric else None,
    )
    result = run(
        model,
        data,
        mitigations=[name.strip() for name in mitigations.split(",")],
        base=base,
        heldout=heldout,
        checkpoints=checkpoints or (),
        options=options,
        out=out,
        command=command_line(sys.argv[1:]),
    )
    print(table(result))
    print(f"\n{out / 'comparison.html'}   {out / 'comparison.json'}")


def compare_images(a: Path, b: Path, picture: Path | None = None, embedder: str = "structure") -> None:
    """Are these two images the same, and which part of one is in the other?

    Args:
        a: an image, such as a sample.
        b: another, such as the training image it may come from.
        picture: where to write A with the copied part marked (PNG).
        embedder: the eye: structure (no weights), structure-figure (no weights, for figures on an empty ground),
            sscd_disc_mixup_320=FILE, timm/MODEL=FILE, clip=FOLDER, ...
    """
    from .similarity.image_pair import compare_images
    from .similarity.registry import load_embedder

    print(json.dumps(compare_images(a, b, embedder=load_embedder(embedder), picture=picture), indent=2))


def metrics(
    samples: Path,
    data: Path,
    heldout: Path | None = None,
    base: Path | None = None,
    groups: Path | None = None,
    embedder: str = "structure",
    cache: Path | None = None,
) -> None:
    """How many of these samples are copies of these training images? JSON; a summary for people goes to stderr.

    Args:
        samples: folder of generated images; those of one prompt in one subfolder.
        data: folder of training images.
        heldout: folder of like images that were not trained on: a threshold of their own, and likeness.
        base: folder of the base model's samples under the same names: another threshold, and the floor.
        groups: curation.json of `basinguard curate`, so that duplicates are known.
        embedder: the eye: structure (no weights), structure-figure (no weights, for figures on an empty ground),
            sscd_disc_mixup_320=FILE, timm/MODEL=FILE, clip=FOLDER, ...
        cache: folder in which the training images' embeddings are kept.
    """
    from .similarity.duplicate_groups import duplicate_groups
    from .similarity.folder_metrics import metrics
    from .similarity.registry import load_embedder
    from .similarity.scores import metrics_lines

    owner = duplicate_groups(data, groups) if groups else None
    eye = load_embedder(embedder)
    found = metrics(samples, data, embedder=eye, heldout=heldout, base=base, groups=owner, cache=cache)
    print("\n".join(metrics_lines(found)), file=sys.stderr)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
