"""Which models a round attacks: what is the same as another is attacked once, and the table says so."""

from contextlib import contextmanager
from types import SimpleNamespace

from basinguard.core.record import Guidance, Strength
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.core.stats import wilson
from basinguard.sessions.attack import Arsenal, lineup_of
from support.export_fixtures import pipe, record

__all__ = ["pipe", "record"]
ARSENAL = Arsenal(SimpleNamespace(), SimpleNamespace())
SHARE = Strength(kind="lora", value=0.5, risk=wilson(1, 100), promise="kept")


def test_a_rule_a_share_and_safe_weights_are_four_models_beside_the_base(record):
    shipped = record.model_copy(update={"product": RecordedWeights(strength=0.8), "strength": SHARE})
    lineup = lineup_of(ARSENAL, shipped)
    assert list(lineup.opening) == ["base", "plain", "guarded", "guarded, as plain weights", "safe weights"]
    assert lineup.absent == {}


def test_what_is_the_same_is_attacked_once(record):
    plain = Guidance(transition=999, sigma=14.6, before=record.sampler.scale, after=record.sampler.scale)
    shipped = record.model_copy(update={"guidance": plain, "strength": SHARE.model_copy(update={"value": 1.0})})
    lineup = lineup_of(Arsenal(SimpleNamespace(), None), shipped)
    assert list(lineup.opening) == ["plain"]
    assert "samples as its plain weights do" in lineup.absent["guarded"]
    assert lineup.absent["guarded, as plain weights"] == "the same weights as the plain export's"
    assert lineup.absent["safe weights"] == "the same weights as those above"
    assert lineup.absent["base"] == "the base model was not given"


class Recording:
    """Weights that remember at which strengths they were asked for."""

    def __init__(self):
        self.asked = []

    @contextmanager
    def at(self, epoch, strength):
        self.asked.append(strength)
        yield SimpleNamespace(model=None)

    @contextmanager
    def filtered(self, epoch, strength, update_filter):
        self.asked.append((strength, update_filter))
        yield SimpleNamespace(model=None)


def test_an_export_of_a_share_is_attacked_as_it_is_and_as_the_whole_that_the_base_makes_of_it(record):
    shipped = record.model_copy(update={"product": RecordedWeights(strength=0.8), "strength": SHARE})
    weights = Recording()
    for opening in lineup_of(Arsenal(weights, SimpleNamespace(), baked=0.8), shipped).opening.values():
        with opening():
            pass
    assert weights.asked == [1.25, 1.0, 1.0, 0.625], "plain, guarded twice, safe: multiples of what the files hold"


def test_a_strength_by_timestep_is_not_attacked_as_if_it_were_one(record):
    schedule = RecordedSchedule(transitions=(300.0,), strengths=(0.6, 1.0))
    product = RecordedWeights(kind="lora", strength_schedule=schedule)
    lineup = lineup_of(Arsenal(Recording(), SimpleNamespace()), record.model_copy(update={"product": product}))
    assert lineup.absent["guarded"] == "its strength depends on the timestep, which is not followed here"


def test_the_whole_of_a_share_needs_the_base(record):
    shipped = record.model_copy(update={"product": RecordedWeights(strength=0.8)})
    assert "cannot be worked out" in lineup_of(Arsenal(Recording(), None, baked=0.8), shipped).absent["plain"]
    nothing = record.model_copy(update={"product": RecordedWeights(strength=0.0)})
    assert "cannot be worked out" in lineup_of(Arsenal(Recording(), None, baked=0.0), nothing).absent["plain"]


def test_no_safe_weights_and_a_rule_that_no_stock_pipeline_has(record):
    anchored = record.guidance.model_copy(update={"anchor": True})
    lineup = lineup_of(ARSENAL, record.model_copy(update={"guidance": anchored}))
    assert "more than a choice of scales" in lineup.absent["guarded"]
    assert "no strength was proven safe" in lineup.absent["safe weights"]


def test_what_a_filter_leaves_is_attacked_as_it_is_and_an_export_of_it_is_not_made_whole(record):
    shipped = record.model_copy(update={"product": RecordedWeights(update_filter="rank-4")})
    weights, export = Recording(), Recording()
    whole, filtered = Arsenal(weights, SimpleNamespace()), Arsenal(export, SimpleNamespace(), filtered="rank-4")
    for opening in lineup_of(whole, shipped).opening.values():
        with opening():
            pass
    assert weights.asked == [1.0, (1.0, "rank-4"), (1.0, "rank-4")], "plain, guarded, as plain weights"
    lineup = lineup_of(filtered, shipped)
    assert list(lineup.opening) == ["base", "guarded", "guarded, as plain weights"]
    assert "a filter left a part of its change out" in lineup.absent["plain"]
    with lineup.opening["guarded"]():
        assert export.asked == [1.0], "it holds that already"
