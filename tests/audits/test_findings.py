"""An audit's ranking and words, without a model."""

import pytest

from basinguard.audits.findings import Audit, advise, nearest_to_threshold, rank, text
from basinguard.audits.page import unbroken
from basinguard.core.estimate import Estimate
from basinguard.core.metric import Match, Metric
from basinguard.core.record import Guidance, Record, Sampler, Strength
from basinguard.core.stats import wilson

NONE, SOME = wilson(0, 40), wilson(9, 40)
FILES, CAPTIONS = ("a.png", "b.png", "c.png"), ("one", "two", "three")


def make_record(promise="", strength=None):
    return Record(
        guidance=Guidance(transition=600.0, sigma=3.0, before=0.0, after=7.5),
        risk=NONE, plain=SOME, alpha=0.1, delta=0.05, promise=promise, population="3 captions",
        metric=Metric(embedder="eye", threshold=0.7, source="test"),
        sampler=Sampler(scheduler="ddim", timesteps=20, prediction_type="epsilon", resolution=64, scale=7.5),
        seeds=(1,), base="base", weights_sha256="", dataset_sha256="", versions={}, strength=strength,
    )  # fmt: skip


def strength(promise):
    return Strength(kind="lora", value=0.4, risk=NONE, promise=promise)


def test_images_are_ranked_by_copies_then_by_likeness():
    nearest = [(2, 0.9), (2, 0.8), (0, 0.95), (1, 0.71), (1, 0.2)]
    matches = [Match(index=index, similarity=similarity) for index, similarity in nearest]
    rows = rank(matches, [2, 0, 0, 1, 1], FILES, CAPTIONS, threshold=0.7)
    assert [(row.file_name, row.copies) for row in rows] == [("c.png", 2), ("a.png", 1), ("b.png", 1)]
    assert rows[0].sample == 0
    assert (rows[0].own.value, rows[0].own.n) == (1.0, 1), "the other copy came from another caption"
    assert (rows[2].own.value, rows[2].own.n) == (0.5, 2)


def test_an_image_stored_twice_counts_for_its_caption():
    matches = [Match(index=0, similarity=0.9), Match(index=0, similarity=0.9)]
    (row,) = rank(matches, [0, 1], ("a.png", "a2.png"), ("same", "same"), threshold=0.7)
    assert (row.copies, row.own.value, row.own.n) == (2, 1.0, 2)


@pytest.mark.parametrize(
    ("record", "says", "never"),
    [
        (
            make_record("p"),
            "Safe by its rule. What ships: the whole fine-tune, scale 0 above timestep 600",
            "could be proven",
        ),
        (make_record(), "Nothing that was tried is proven safe", "Safe by its rule"),
        (make_record(strength=strength("s")), "Safe for plain loaders: at 0.4 of the LoRA", "Nothing"),
        (make_record(strength=strength("")), "No strength could be proven safe for plain loaders", "Safe for plain"),
        (make_record("p", strength("s")), "Safe for plain loaders too: at 0.4 of the LoRA", "could be proven"),
    ],
)
def test_advice_follows_what_was_proven(record, says, never):
    said = " ".join(advise(SOME, NONE, None, (), 3, record))
    assert says in said
    assert never not in said


def test_a_null_and_an_unconditional_leak_are_named_only_where_they_are():
    quiet, loud = (" ".join(advise(SOME, e, e, (), 3, make_record("p"))) for e in (NONE, SOME))
    for words in ("base model, which has never seen", "keep_unconditional"):
        assert words in loud
        assert words not in quiet


def test_no_copy_is_not_called_no_risk():
    first = advise(NONE, NONE, None, (), 3, make_record("p"))[0]
    assert first.startswith("No copy among 40 samples")
    assert f"{NONE.high:.1%}" in first


def test_the_terminal_gets_no_control_characters():
    rows = rank([Match(index=0, similarity=1.0)], [0], ("\x1b[2J.png",), ("evil\ncaption",), 0.7)
    audit = Audit(
        model="m\x07", samples=1, plain=SOME, uncond=NONE, base=None, images=tuple(rows), images_total=1,
        record=make_record(), advice=("a\x1bb",),
    )  # fmt: skip
    shown = text(audit)
    assert not any(ord(c) < 32 and c != "\n" for c in shown)
    assert Audit.from_json(audit.to_json()) == audit
    assert isinstance(audit.plain, Estimate)


def test_the_samples_nearest_to_the_threshold_are_shown_from_both_sides():
    matches = [Match(index=k, similarity=s) for k, s in enumerate((0.1, 0.6, 0.69, 0.71, 0.99))]
    near = nearest_to_threshold(matches, 0.7, 4)
    assert [(row.sample, row.is_copy) for row in near] == [(4, True), (3, True), (2, False), (1, False)]


def test_a_number_breaks_before_its_n_alone():
    assert unbroken("33.3 % [13.8, 60.9] (n = 12)").split(" ") == ["33.3\xa0%\xa0[13.8,\xa060.9]", "(n\xa0=\xa012)"]
