"""`basinguard judge SAMPLES DATA`: does the detector call copies what you call copies?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..similarity.copy_detector_settings import CopyDetectorSettings

if TYPE_CHECKING:
    from ..sessions.judging import Judging

TYPED = {"out": Path("judge")}


def judge(
    samples: Path,
    data: Path,
    answers: Path | None = None,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    pairs: int = 40,
    out: Path = Path("judge"),
) -> Judging:
    """Do you call copies what the detector calls copies? A page to judge pairs on, then a threshold fitted to it.

    Without answers it writes judge.html: pairs near the threshold on both sides, for you to judge offline; the page
    writes answers.json. With answers, and all else as before, it fits the threshold to them.

    Args:
        samples: folder of generated images.
        data: folder of training images.
        answers: what the page wrote.
        detector: what decides that a sample is a copy, and its threshold so far.
        pairs: how many to judge, half of them on either side of the threshold.
        out: new folder for the page, or for judgement.json.

    Raises:
        FileExistsError: `out` holds a page already, or a judgement.
        FileNotFoundError: no such folder or answers.
        ValueError: pictures that cannot be read, answers of other pairs, or too few of one kind.
    """
    from ..sessions.judging import judge_folders

    return judge_folders(samples, data, answers=answers, detector=detector, pairs=pairs, out=out)
