"""Probes that find what a plan says, so that what a run does with its reports can be tried in seconds."""

import pytest

from basinguard.guard.guard import Guard
from support.guarded_runs import digest
from support.reports import near, report

QUIET, FORMING, COPYING = {}, {"gap_excess": near(0.01, 0.005)}, {"hits": 12, "transition": 500.0}
LATE = {"hits": 12, "transition": None}

# what a run then says, for tests that are about something else
BREACH = pytest.mark.filterwarnings("ignore:epoch [0-9]+ is (memorizing|too late for delayed guidance)")
FAILED = pytest.mark.filterwarnings(
    "ignore:the probe of (epoch [0-9]+|the base model) failed and is missing. training goes on. Runtime.*no memory$"
)


def scripted(monkeypatch, *plan, digests=None):
    """Probes that find what `plan` says of epochs -1, 0, 1, ...; an error in it is a probe that fails."""

    def measure(self, model, *, epoch, train_step, team=None, early=None):
        outcome = plan[epoch + 1]
        if isinstance(outcome, Exception):
            raise outcome
        if digests is not None:
            digests[epoch] = digest({n: p for n, p in model.pipe.unet.named_parameters() if p.requires_grad})
        self.history.append(report(epoch, **outcome).model_copy(update={"train_step": train_step}))
        return self.history[-1]

    monkeypatch.setattr(Guard, "measure", measure)
