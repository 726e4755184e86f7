"""A folder of pictures in use: judged once each, counted on where it stopped, refused where it is another export's."""

import json

import pytest
import torch
from PIL import Image

from basinguard.commands.monitor import gate_of, monitor
from basinguard.core.metric import Metric
from basinguard.core.record import read_record
from basinguard.core.stats import wilson
from basinguard.exports.fingerprints import dataset_sha256
from basinguard.exports.layout import RECORD_FILE
from basinguard.pipelines.evaluation import Evaluation
from basinguard.sessions.monitoring import detector_of, similarities_of
from basinguard.similarity.copy_detector_settings import RECORDED
from support.export_fixtures import pipe, record

__all__ = ["pipe", "record"]
EVALUATION = Evaluation(
    risk=wilson(0, 3),
    similarity_p95=wilson(0, 3),
    alignment=None,
    unet_evals=1,
    seconds=1,
    similarities=(0.1, 0.2, 0.3),
)


def picture(seed):
    pixels = torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(seed)).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)


@pytest.fixture
def deployment(tmp_path, record):
    for name in ("export", "photos", "drawn"):
        (tmp_path / name).mkdir()
    judged = record.model_copy(
        update={"metric": Metric(embedder="structure-colour-v1", threshold=0.8, source="given"), "alpha": 0.1}
    )
    sampler = judged.sampler.model_copy(update={"resolution": 64})
    (tmp_path / "export" / RECORD_FILE).write_text(judged.model_copy(update={"sampler": sampler}).to_json())
    for number in range(3):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"picture {number}")
    return tmp_path


def look(root, **options):
    folders = {"data": root / "photos", "samples": root / "drawn", "state": root / "monitor.json"}
    return monitor(root / "export", **folders | options)


def test_each_picture_is_judged_once_whenever_the_command_is_run(deployment):
    for number in range(4):
        picture(50 + number).save(deployment / "drawn" / f"a{number}.png")
    picture(1).save(deployment / "drawn" / "copy.png")
    first = look(deployment)
    assert (first.new, first.reading.samples, first.reading.copies) == (5, 5, 1)
    picture(1).save(deployment / "drawn" / "the same again.png")
    picture(99).save(deployment / "drawn" / "b.png")
    second = look(deployment)
    assert (second.new, second.reading.samples, second.reading.copies) == (1, 6, 1)
    assert gate_of(second, {}).passed
    assert "1 new samples. 1 copies among 6 samples" in str(second)


def test_the_samples_of_the_promise_are_compared_with_where_the_record_holds_them(deployment):
    picture(50).save(deployment / "drawn" / "a.png")
    without = look(deployment)
    assert without.reading.shift is None
    assert "not compared with the samples of the promise: the record holds no similarities" in str(without)
    path = deployment / "export" / RECORD_FILE
    record = read_record(path)
    judge = detector_of(record, deployment / "photos", RECORDED)
    own = dataset_sha256(judge.images, judge.captions)
    path.write_text(record.model_copy(update={"similarities": (0.1, 0.2), "dataset_sha256": own}).to_json())
    beside = look(deployment)
    assert beside.reading.shift is not None
    assert "compared with 2 samples that the promise was measured on" in str(beside)
    verification = deployment / "verification.json"
    verification.write_text(json.dumps({"guarded": json.loads(EVALUATION.to_json())}))
    assert f"compared with 3 samples of {verification}" in str(look(deployment, calibration=verification))


def test_a_stream_of_copies_closes_the_gate(deployment):
    for number in range(5):
        copy = picture(number % 3)
        copy.putpixel((0, 0), (number, 0, 0))  # files of their own
        copy.save(deployment / "drawn" / f"{number}.png")
    watch = look(deployment)
    assert watch.reading.breached
    assert not gate_of(watch, {}).passed


def test_a_state_of_another_export_is_refused(deployment):
    picture(50).save(deployment / "drawn" / "a.png")
    look(deployment)
    path = deployment / "export" / RECORD_FILE
    path.write_text(path.read_text().replace('"threshold": 0.8', '"threshold": 0.9'))
    with pytest.raises(ValueError, match=r"monitor\.json: it remembers another export or copy detector"):
        look(deployment)
    (deployment / "monitor.json").write_text("[]")
    with pytest.raises(ValueError, match=r"monitor\.json: not a valid MonitorState"):
        look(deployment)


def test_a_verification_without_similarities_is_refused(tmp_path):
    path = tmp_path / "verification.json"
    path.write_text('{"guarded": {}}')
    with pytest.raises(ValueError, match="no similarities of the guarded samples"):
        similarities_of(path)
