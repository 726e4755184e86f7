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
