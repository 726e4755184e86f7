"""Nouns survive a round trip; what a stranger may have written is refused with the key's name."""

import json

import pytest

from basinguard.core.estimate import Estimate
from basinguard.core.metric import Match, Metric
from basinguard.core.record import Guidance, Record, Sampler, read_record
from basinguard.core.schema import MAX_BYTES

ESTIMATE = Estimate(value=0.1, low=0.05, high=0.2, level=0.95, n=40, method="wilson")


def make_record(**changes):
    fields = {
        "guidance": Guidance(transition=600, sigma=2.2, before=-1.0, after=7.5),
        "risk": ESTIMATE,
        "plain": ESTIMATE,
        "alpha": 0.05,
        "delta": 0.05,
        "promise": "",
        "population": "all 4 training captions x random seeds",
        "metric": Metric(embedder="structure-colour-v1", threshold=0.8, source="measured"),
        "sampler": Sampler(scheduler="ddim", timesteps=20, prediction_type="epsilon", resolution=64, scale=7.5),
        "seeds": (1, 2),
        "base": "tinyworld",
        "weights_sha256": "0" * 64,
        "dataset_sha256": "1" * 64,
        "versions": {"torch": "2"},
    }
    return Record(**{**fields, **changes})


def test_record_round_trip(tmp_path):
    record = make_record()
    path = tmp_path / "basinguard.json"
    path.write_text(record.to_json())
    assert read_record(path) == record == Record.from_json(record.to_json())


def test_a_record_of_schema_1_is_read_without_taught(tmp_path):
    form = json.loads(make_record().to_json())
    new = ("product", "unruled", "base_risk", "taught", "plain_taught", "best_plain_taught")
    old = {key: value for key, value in form.items() if key not in new}
    path = tmp_path / "basinguard.json"
    path.write_text(json.dumps({**old, "schema_version": 1, "quality": form["risk"], "plain_quality": None}))
    assert read_record(path) == make_record()
    path.write_text(json.dumps({**old, "schema_version": 1, "surprise": 1}))
    with pytest.raises(ValueError, match="surprise"):
        read_record(path)


def test_plain_cfg_needs_nothing_above_its_transition():
    always = Guidance(transition=999, sigma=157.0, before=0.0, after=2.0)
    assert always.plain
    assert Guidance(transition=500, sigma=1.0, before=3.0, after=3.0).plain
    assert not Guidance(transition=500, sigma=1.0, before=0.0, after=3.0).plain
    assert not always.model_copy(update={"anchor": True}).plain
    assert (make_record(guidance=always).scale, make_record().scale) == (2.0, 7.5)


def test_records_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make_record().alpha = 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"alpha": 2}, "alpha"),
        ({"guidance": {"transition": 5000, "sigma": 1, "before": 0}}, "guidance.transition"),
        ({"risk": None}, "risk"),
    ],
)
def test_a_wrong_key_is_named(change, message):
    form = json.loads(make_record().to_json()) | change
    with pytest.raises(ValueError, match=message):
        Record.from_json(json.dumps(form))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "schema None"),
        ('{"schema_version": 99}', "schema 99"),
        ("[1]", "not a JSON object"),
        ("not json", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path, text, message):
    path = tmp_path / "basinguard.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_a_record_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="at most"):
        Record.from_json(" " * (MAX_BYTES + 1))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Match(index=0, similarity=float("nan"))


def with_schedule(**changes):
    schedule = {"transitions": [700.0, 300.0], "strengths": [0.0, 0.6, 1.0]} | changes
    return json.loads(make_record().to_json()) | {"product": {"kind": "lora", "strength_schedule": schedule}}


def test_a_strength_schedule_comes_back_as_it_was():
    record = Record.from_json(json.dumps(with_schedule()))
    assert Record.from_json(record.to_json()) == record
    assert str(record.product.strength_schedule) == "0 at high noise, 0.6 from 700 down, 1 from 300 down"


def test_a_record_from_before_strength_schedules_reads_as_it_did():
    form = json.loads(make_record().to_json())
    del form["product"]["strength_schedule"]
    assert Record.from_json(json.dumps(form)) == make_record()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": [0.5, 1.0]}, "product.strength_schedule: .*2 strengths for 2 transitions: expected one"),
        ({"transitions": [300.0, 700.0]}, "strictly falling"),
        ({"transitions": [1200.0, 300.0]}, "strength_schedule.transitions.0"),
        ({"strengths": [0.0, 2.0, 1.0]}, "strength_schedule.strengths.1"),
    ],
)
def test_a_wrong_strength_schedule_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Record.from_json(json.dumps(with_schedule(**change)))


@pytest.mark.parametrize("product", [{"kind": "interpolation"}, {"kind": "lora", "strength": 0.5}])
def test_a_strength_schedule_is_of_a_whole_lora(product):
    form = with_schedule()
    form["product"] |= product
    with pytest.raises(ValueError, match="it is of a LoRA of strength 1"):
        Record.from_json(json.dumps(form))


def with_filter(**product):
    return json.loads(make_record().to_json()) | {"product": {"update_filter": "rank-16", **product}}


def test_a_filter_of_the_update_comes_back_as_it_was_and_older_records_have_none():
    record = Record.from_json(json.dumps(with_filter(strength=0.5)))
    assert Record.from_json(record.to_json()) == record
    assert (record.product.update_filter, record.product.whole, record.needs_nothing) == ("rank-16", False, False)
    form = json.loads(make_record().to_json())
    del form["product"]["update_filter"]
    assert Record.from_json(json.dumps(form)) == make_record()


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (
            {"update_filter": "rank-0"},
            "update filter 'rank-0' is not known; known: no-cross-attention, residual-blocks",
        ),
        ({"kind": "lora", "strength_schedule": {"transitions": [300.0], "strengths": [0, 1]}}, "take either"),
    ],
)
def test_a_filter_that_cannot_be_is_named(product, message):
    with pytest.raises(ValueError, match=message):
        Record.from_json(json.dumps(with_filter(**product)))
