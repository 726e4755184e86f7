import json

import pytest
from PIL import Image

from basinguard.commands.sample import sample
from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.guidance.core import Constant
from basinguard.pipelines.paired_samples import draw_pairs
from support import tiny_pipelines as tiny

PROMPTS = ["red circle", "blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipe = tiny.pipeline()
    pipe.save_pretrained(folder)
    (folder / "basinguard.json").write_text(tiny.make_record(transition=600.0, before=0.0).to_json())
    return folder


@pytest.mark.usefixtures("drawn_figures")
def test_a_contact_sheet_and_a_curve(folder, tmp_path):
    path = sample(folder, PROMPTS, seeds=(0, 1, 2), sampling=SamplingOptions(timesteps=5), out=tmp_path / "out")
    with Image.open(path) as sheet:
        assert sheet.size == (10 + 2 * 3 * 154, 30 + 2 * 176)
        colours = sheet.convert("RGB").getcolors(2**24)
        assert len(colours) > 100
    with Image.open(tmp_path / "out" / "gap.png") as figure:
        assert figure.size == (840, 480)
    numbers = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [entry["prompt"] for entry in numbers] == PROMPTS
    assert numbers[0]["scale"] == [[0.0] * 3] * 2 + [[7.5] * 3] * 3
    assert numbers[0]["unet_evals"] == {"cfg": 30, "rule": 24}
    assert all(len(row) == 3 and min(row) > 0 for row in numbers[0]["gap"])


def test_a_rule_of_ones_own(folder, tmp_path):
    draw_pairs(
        folder, PROMPTS[:1], seeds=(0,), sampling=SamplingOptions(timesteps=3), rule=Constant(-1.0), out=tmp_path
    )
    assert json.loads((tmp_path / "samples.json").read_text())[0]["scale"] == [[-1.0]] * 3


def test_nothing_is_overwritten(folder, tmp_path):
    (tmp_path / "gap.png").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds gap"):
        sample(folder, PROMPTS, out=tmp_path)
    assert (tmp_path / "gap.png").read_text() == "mine"


@pytest.mark.parametrize("change", [{"prompts": []}, {"prompts": "red"}, {"seeds": ()}])
def test_bad_input_is_refused_before_anything_is_loaded(tmp_path, change):
    with pytest.raises(ValueError, match="expected"):
        sample("no such folder", **{"prompts": PROMPTS} | change, out=tmp_path)
