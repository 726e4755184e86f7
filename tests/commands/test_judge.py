"""judge: a page of pairs near the threshold, and the threshold that the answers speak for."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from basinguard.commands.judge import judge
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.tinyworld.scenes import all_captions, draw_scene


@pytest.fixture
def folders(tmp_path):
    """Twelve training scenes; six samples copy theirs, six are other scenes."""
    for folder in ("samples", "data"):
        (tmp_path / folder).mkdir()
    for k, caption in enumerate(all_captions()[:12]):
        trained, other = (Image.fromarray(np.asarray(draw_scene(caption, seed + k))) for seed in (0, 500))
        trained.save(tmp_path / "data" / f"{k:02}.png")
        (trained if k < 6 else other).resize((60, 60)).save(tmp_path / "samples" / f"{k:02}.png")
    return tmp_path


def test_the_page_shows_every_pair_and_the_answers_move_the_threshold(folders):
    arguments = {"samples": folders / "samples", "data": folders / "data", "detector": CopyDetectorSettings("aligned")}
    asked = judge(**arguments, pairs=12, out=folders / "out")
    page = asked.path.read_text()
    assert page.count("<fieldset>") == 12
    assert "http" not in page.replace("http-equiv", ""), "it loads nothing"
    assert "similarity" not in page, "it does not say what the detector thinks"
    answers = {str(k): "copy" if k < 6 else "other" for k in range(12)}
    (fingerprint,) = re.findall(r'const pairs = "([0-9a-f]{16})"', page)
    (folders / "answers.json").write_text(json.dumps({"pairs": fingerprint, "answers": answers}))
    result = judge(**arguments, pairs=12, answers=folders / "answers.json", out=folders / "out")
    assert result.judged.agreement[1] == 1
    written = json.loads((folders / "out" / "judgement.json").read_text())
    assert written["metric"]["threshold"] == result.judged.threshold.value
    other = CopyDetectorSettings("aligned", 0.5)
    with pytest.raises(ValueError, match="answers about other pairs"):
        judge(**arguments | {"detector": other}, pairs=4, answers=folders / "answers.json", out=folders / "other")
    with pytest.raises(FileExistsError, match="name another folder with --out"):
        judge(**arguments, pairs=12, out=folders / "out")
