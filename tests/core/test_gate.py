"""A gate opens on the upper bound of a risk, never on its value, and refuses to be asked what cannot pass."""

import json

import pytest

from basinguard.core.gate import CLOSED, Gate, require_passable
from basinguard.core.stats import wilson


def test_the_upper_bound_decides_not_the_value():
    rate = wilson(3, 96)  # 3.1 %, up to 8.8 %
    assert not Gate("verify", rate, 0.05, "guarded").passed
    assert Gate("verify", rate, 0.1, "guarded").passed
    line = json.loads(Gate("audit", rate, 0.05, "plain").line)
    assert line == {
        "gate": "closed", "verb": "audit", "what": "plain", "risk": 0.0312, "upper": 0.0879, "alpha": 0.05,
        "level": 0.95, "n": 96,
    }  # fmt: skip


def test_what_was_not_measured_does_not_pass():
    gate = Gate("fit", None, 0.1, "nothing was exported")
    assert not gate.passed
    assert json.loads(gate.line)["upper"] is None
    assert gate.status == CLOSED == 3


def test_too_few_samples_for_any_result_are_refused_with_how_many_it_takes():
    with pytest.raises(ValueError, match=r"--gate with 24 samples could never pass: .* 13\.8%, .* at least 73 samples"):
        require_passable(24, 0.05)
    require_passable(73, 0.05)
    assert wilson(0, 72).high > 0.05 >= wilson(0, 73).high
