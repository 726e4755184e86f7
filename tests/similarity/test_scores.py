import math

import numpy as np
import pytest
import torch

from basinguard.similarity.diversity import pairwise, vendi, vendi_per_prompt
from basinguard.similarity.scores import above_floor, summarise, summary_lines

SIMILARITIES = [0.1, 0.2, 0.9, 0.3, 0.3, 0.4]
PROMPTS = ["a", "a", "a", "b", "b", "b"]


def test_aggregates_of_known_numbers():
    aggregates = summarise(SIMILARITIES, PROMPTS, threshold=0.9)
    assert aggregates["sim95"].value == pytest.approx(np.percentile(SIMILARITIES, 95))
    assert aggregates["share"].value == pytest.approx(1 / 6)
    assert aggregates["median_median"].value == pytest.approx((0.2 + 0.3) / 2)
    assert aggregates["median_max"].value == pytest.approx((0.9 + 0.4) / 2)
    assert aggregates["share_any"].value == 0.5
    assert all(e.low <= e.value <= e.high for e in aggregates.values())
    assert aggregates["share_any"].n == 2


def test_no_copy_at_all_still_has_an_upper_end():
    share = summarise(SIMILARITIES, PROMPTS, threshold=0.95)["share"]
    assert (share.value, share.low) == (0.0, 0.0)
    assert share.high > 0.1


def test_floor_is_paired():
    excess = above_floor([0.5, 0.7, 0.6], [0.4, 0.4, 0.4], ["a", "b", "c"])
    assert excess.value == pytest.approx(0.2)
    with pytest.raises(ValueError, match="pairs"):
        above_floor([0.5], [0.4, 0.4], ["a"])


def test_every_line_names_the_metric():
    shown = summary_lines(summarise(SIMILARITIES, PROMPTS, threshold=0.9), metric="eye v1")
    assert len(shown) == 5
    assert all(line.endswith("eye v1") for line in shown)


@pytest.mark.parametrize("bad", [[], [math.nan] * 6, [0.1]])
def test_refuses_what_cannot_be_summarised(bad):
    with pytest.raises(ValueError, match="finite numbers"):
        summarise(bad, PROMPTS, threshold=0.5)


def test_vendi_counts_different_images():
    eye = torch.eye(5)
    assert vendi(eye) == pytest.approx(5)
    assert vendi(eye[[0, 0, 0]]) == pytest.approx(1)
    assert vendi(eye[[0, 0, 1, 1]]) == pytest.approx(2)
    skewed = vendi(eye[[0, 0, 0, 1]])
    assert skewed == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_vendi_equals_the_authors_package():
    theirs = pytest.importorskip("vendi_score.vendi")
    vectors = torch.nn.functional.normalize(torch.rand(12, 5, generator=torch.Generator().manual_seed(0)))
    assert vendi(vectors) == pytest.approx(float(theirs.score_dual(vectors.numpy())), rel=1e-4)


@pytest.mark.parametrize("way", [vendi, lambda e: vendi_per_prompt(e, [0, 0]), lambda e: pairwise(e, [0, 0])])
def test_diversity_of_what_is_not_finite_is_refused(way):
    with pytest.raises(ValueError, match=r"NaN|not finite"):
        way(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]))


def test_diversity_is_per_prompt():
    vectors = torch.eye(4)[[0, 0, 1, 2]]
    assert vendi_per_prompt(vectors, [0, 0, 1, 1]).value == pytest.approx(1.5)
    assert pairwise(vectors, [0, 0, 1, 1]).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 2 samples"):
        pairwise(vectors, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="4 embeddings and 3 prompts"):
        vendi_per_prompt(vectors, [0, 1, 2])
    with pytest.raises(ValueError, match="n >= 1"):
        vendi(torch.zeros(0, 3))
