import json

import numpy as np
import pytest

from basinguard.core.metric import Metric
from basinguard.similarity.judgement import near_threshold, read_answers, refit

METRIC = Metric(embedder="eye", threshold=0.7, source="published")


def test_pairs_stand_on_both_sides_and_one_side_fills_up_for_the_other():
    values = np.linspace(0, 1, 101)
    chosen = values[near_threshold(values, 0.7, 10)]
    np.testing.assert_allclose(chosen, [0.65, 0.66, 0.67, 0.68, 0.69, 0.7, 0.71, 0.72, 0.73, 0.74])
    assert near_threshold([0.1, 0.2, 0.8], 0.7, 3).tolist() == [0, 1, 2]
    assert near_threshold([0.9, 0.8, 0.75], 0.7, 2).tolist() == [1, 2]


def test_the_threshold_moves_to_where_the_owner_puts_it():
    values = [0.5, 0.55, 0.6, 0.65, 0.8, 0.85, 0.9, 0.95]
    judged = refit(values, [False] * 5 + [True] * 3, METRIC)
    assert judged.metric.threshold == pytest.approx(0.825)
    assert judged.threshold.low <= 0.825 <= judged.threshold.high
    assert judged.agreement == (pytest.approx(7 / 8), 1.0)
    assert "--threshold 0.825" in str(judged)


def test_contradictions_are_counted_and_widen_the_interval():
    values = np.linspace(0.4, 1, 60)
    clear = values >= 0.7
    mixed = clear ^ (np.arange(60) % 5 == 0)
    sharp, blurred = refit(values, clear, METRIC), refit(values, mixed, METRIC)
    assert sharp.agreement[1] == 1
    assert blurred.agreement[1] <= 0.85
    assert blurred.threshold.high - blurred.threshold.low > sharp.threshold.high - sharp.threshold.low


def test_too_few_answers_of_one_kind_are_refused():
    with pytest.raises(ValueError, match=r"2 pairs called copies and 6 not: .* at least 3 of each"):
        refit(np.linspace(0, 1, 8), [False] * 6 + [True] * 2, METRIC)


def test_answers_are_read_and_unsure_ones_left_out(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"pairs": "ab12", "answers": {"0": "copy", "3": "other", "4": "unsure"}}))
    assert read_answers(path, 5, "ab12") == {0: True, 3: False}
    for pairs, fingerprint in ((4, "ab12"), (5, "cd34")):
        with pytest.raises(ValueError, match=r"answers about other pairs \(ab12, these are"):
            read_answers(path, pairs, fingerprint)
    for broken in ("[]", "{", '{"answers": 3}', '{"answers": {"x": "copy"}}', '{"answers": {"0": "copy"}}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"expected the answers that judge\.html writes down"):
            read_answers(path, 5, "ab12")
