"""Pairs near the threshold, put before the owner of the images, and the threshold that the answers speak for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..audits.judge_page import render_judge_page
from ..core.files import file_sha256, write_text
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.folder_matches import FolderMatches, match_folders
from ..similarity.image_files import load_image
from ..similarity.judgement import FittedThreshold, near_threshold, read_answers, refit

PAGE, JUDGEMENT = "judge.html", "judgement.json"


@dataclass(frozen=True)
class Judging:
    """A page to judge on, or what the answers came to, and where it was written."""

    path: Path
    pairs: int
    judged: FittedThreshold | None = None

    def __str__(self) -> str:
        if self.judged is not None:
            return f"{self.judged}\n\nwritten to {self.path}"
        return (
            f"{self.pairs} pairs to judge: open {self.path} in a browser, then run the same command with "
            "--answers answers.json"
        )


def judge_folders(
    samples: Path, data: Path, *, answers: Path | None, detector: CopyDetectorSettings, pairs: int, out: Path
) -> Judging:
    """Writes the page, or fits the threshold to its answers; see `commands.judge`."""
    if pairs < 2:
        raise ValueError(f"pairs={pairs}: expected at least 2, one on either side of the threshold")
    path = out / (PAGE if answers is None else JUDGEMENT)
    if path.exists():
        raise FileExistsError(f"{path}: exists already; name another folder with --out")
    matched = match_folders(samples, data, detector)
    rows = near_threshold(matched.similarity, matched.metric.threshold, pairs).tolist()
    asked = _fingerprint(matched, rows)
    if answers is None:
        title = f"{samples.name} beside {data.name}"
        shown = [[load_image(paths[k]) for k in rows] for paths in (matched.samples, matched.training)]
        return Judging(_write(path, render_judge_page(title, asked, *shown)), len(rows))
    said = read_answers(answers, len(rows), asked)
    judged = refit([float(matched.similarity[rows[k]]) for k in said], list(said.values()), matched.metric)
    form = asdict(judged) | {"metric": judged.metric.model_dump(), "threshold": judged.threshold.model_dump()}
    return Judging(_write(path, json.dumps(form, indent=1) + "\n"), len(rows), judged)


def _fingerprint(matched: FolderMatches, rows: Sequence[int]) -> str:
    """Of the pictures of these pairs, in their order: what answers belong to."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(bytes.fromhex(file_sha256(matched.samples[row]) + file_sha256(matched.training[row])))
    return digest.hexdigest()[:16]


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path
