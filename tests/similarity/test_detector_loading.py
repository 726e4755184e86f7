import pytest
import torch

from basinguard.core.metric import Metric
from basinguard.similarity.copy_detector_settings import RECORDED, CopyDetectorSettings
from basinguard.similarity.detector_loading import fitted_embedder, load_detector, load_recorded
from basinguard.similarity.structure import Structure


def test_a_number_is_the_threshold():
    metric = load_detector(CopyDetectorSettings(threshold=0.8)).metric
    assert (metric.embedder, metric.threshold) == (Structure().name, 0.8)
    for wrong in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=r"expected a similarity in \(0, 1\]"):
            CopyDetectorSettings(threshold=wrong)
    with pytest.raises(ValueError, match="expected one of published, neighbours, heldout, recorded, or a number"):
        CopyDetectorSettings(threshold="often")


def test_a_record_is_judged_under_the_detector_it_names():
    record = Metric(embedder=Structure().name, threshold=0.83, source="measured there")
    assert load_recorded(RECORDED, record).metric == record
    published = load_recorded(CopyDetectorSettings(), record)
    assert published.metric == Structure().metric, "a second opinion"
    with pytest.raises(ValueError, match=r"threshold 0\.83 belongs to 'structure-colour-v1'"):
        load_recorded(CopyDetectorSettings("structure-figure", "recorded"), record)
    with pytest.raises(FileNotFoundError, match=r"--embedder sscd_disc_mixup_320=FILE, the file whose sha256 starts"):
        load_recorded(RECORDED, Metric(embedder="sscd disc_mixup_320 sha256:0123456789ab", threshold=0.7, source=""))


def test_without_a_record_recorded_means_nothing():
    for settings in (RECORDED, CopyDetectorSettings(threshold="recorded"), CopyDetectorSettings("recorded")):
        with pytest.raises(ValueError, match="there is no record here to go by; name an embedder"):
            load_detector(settings)


def test_a_threshold_on_heldout_images_needs_some():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="there are no held-out images here"):
        fitted_embedder(CopyDetectorSettings(threshold="heldout"), Structure(), images, None)
