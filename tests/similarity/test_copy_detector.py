import torch

from basinguard.core.metric import Metric
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.embedder import unit


class Corner:
    """Sees two pixels of the first row: images whose unit vectors are known by construction."""

    name = "corner"
    metric = Metric(embedder="corner", threshold=0.9, source="given")

    def __call__(self, images):
        return unit(images[:, 0, 0, :2])


def pictures(*angles):
    """Pictures whose vectors stand at these angles, in degrees; both ways round they look the same to `Corner`."""
    radians = torch.tensor(angles, dtype=torch.float32).deg2rad()
    images = torch.zeros(len(angles), 3, 16, 16)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = radians.cos(), radians.sin()
    images[:, 0, 0, -1], images[:, 0, 0, -2] = radians.cos(), radians.sin()
    return images


def test_a_duplicate_under_another_caption_is_ones_own_copy():
    detector = CopyDetector(pictures(0, 5, 80), ("a cat", "a kitten", "a dog"), Corner())
    matches = detector.matches(pictures(4, 4, 4, 78, 40))
    assert [match.index for match in matches][:4] == [1, 1, 1, 2]
    own = detector.is_own_copy(matches, ["a kitten", "a cat", "a dog", "a dog", "a dog"])
    assert own.tolist() == [True, True, False, True, False], "the last is like no training image"
    assert detector.own_images("a cat") == {0, 1}
    assert detector.own_images("a dog") == {2}


def test_duplicates_are_not_chained():
    detector = CopyDetector(pictures(0, 20, 40), ("a", "b", "c"), Corner())  # cos 20 degrees is 0.94, cos 40 is 0.77
    assert detector.own_images("a") == {0, 1}
    assert detector.own_images("b") == {0, 1, 2}


def test_one_caption_for_all_makes_every_image_its_own_and_a_strange_caption_none():
    detector = CopyDetector(pictures(0, 45, 90), ("a photo of sks dog",) * 3, Corner())
    assert detector.own_images("a photo of sks dog") == {0, 1, 2}
    assert detector.own_images("a house") == frozenset()
    matches = detector.matches(pictures(1, 46, 89))
    assert detector.is_own_copy(matches, ["a photo of sks dog"] * 3).all()
    assert not detector.is_own_copy(matches, ["a house"] * 3).any()


def test_a_mirrored_duplicate_is_a_duplicate():
    image = pictures(0)
    image[:, 0, 0, -1], image[:, 0, 0, -2] = 0.0, 1.0  # from the other side it stands at 90 degrees
    detector = CopyDetector(torch.cat([image, pictures(90)]), ("a", "b"), Corner())
    assert detector.own_images("a") == {0, 1}
