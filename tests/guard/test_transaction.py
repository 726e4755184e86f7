"""A probe is taken over whole or not at all."""

import pytest
import torch

from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from support.toy_guard import STRONG, Nearness, Points, make_guard


class Broken(Points):
    """A model whose network fails when it has been called a number of times."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def denoiser(self, prompts):
        denoise = super().denoiser(prompts)

        def failing(*arguments):
            self.calls -= 1
            if not self.calls:
                raise RuntimeError("no memory")
            return denoise(*arguments)

        return failing


class Absent:
    """A team whose other process has failed."""

    def least(self, number):
        return number

    def meet(self):
        raise RuntimeError("process 1 failed")


def control_guard():
    images = STRONG.points[:3].reshape(-1, 3, 2, 2)
    training = TrainingSet(images, ("point 0", "point 1", "point 2"), ("point 60", "point 61"), stand_in=True)
    return Guard(training, Nearness(), ProbePlan(3, 1, timesteps=8, critical_scales=2))


@pytest.mark.parametrize("calls", [1, 5, 40])
def test_a_probe_that_fails_half_way_changes_nothing(calls):
    guard = control_guard()
    before = guard.state_dict()
    with pytest.raises(RuntimeError, match="no memory"):
        guard.measure(Broken(calls), epoch=-1, train_step=0)
    assert guard.state_dict() == before
    assert guard.training.heldout_images is None


def test_a_probe_that_failed_elsewhere_changes_nothing_here():
    guard = make_guard(budget=200)
    guard.measure(Points(), epoch=-1, train_step=0)
    before = guard.state_dict()
    with pytest.raises(RuntimeError, match="process 1 failed"):
        guard.measure(Points(), epoch=0, train_step=8, team=Absent())
    assert guard.state_dict() == before
    report = guard.measure(Points(), epoch=0, train_step=8)
    again = make_guard(budget=200)
    again.load_state_dict(before)
    other = again.measure(Points(), epoch=0, train_step=8)
    assert report.model_copy(update={"seconds": 0.0}) == other.model_copy(update={"seconds": 0.0})


def test_evaluations_are_those_that_the_network_saw():
    model = Points()
    guard = make_guard(chunk=4096, critical_scales=2, order_checks=1)
    with torch.no_grad():
        report = guard.measure(model, epoch=-1, train_step=0)
    assert 0 < report.unet_evals <= model.evals, "batches are padded, never cut"
