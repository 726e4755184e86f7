"""The membership table on a card and in a terminal: the most telling first, and why there is no headline."""

import numpy as np

from basinguard.attacks.membership import membership_row
from basinguard.core.membership_table import MembershipTable
from basinguard.core.record import Record
from basinguard.exports.membership_section import membership_rows, membership_text
from basinguard.exports.model_card import render_card
from support.export_fixtures import pipe, record

__all__ = ["pipe", "record"]


def table(controls):
    scores = np.arange(controls, dtype=float)
    rows = (membership_row("gap", np.array([3.0, -1.0]), scores), membership_row("loss", np.array([1e3, 1e3]), scores))
    return MembershipTable(target="plain", members=2, controls=controls, evaluations=1234, rows=rows)


def test_the_most_telling_statistic_is_first_with_what_it_finds():
    head, loss, gap = membership_rows(table(100))
    assert head[0] == "statistic"
    assert loss[0] == "loss"
    assert loss[2:] == ("100 % [16, 100] (n = 2)", "1 % [0, 5] (n = 100)")
    assert gap[2].startswith("0 %")
    text = membership_text([table(100)])
    assert "the plain export: 2 training images against 100 held-out ones, 1234 UNet evaluations" in text
    assert "No headline" not in text


def test_too_few_held_out_images_make_no_headline_and_say_how_many_it_takes():
    assert membership_rows(table(99))[1][2:] == ("no headline", "-")
    assert "No headline: 2 members and 99 held-out images: true positives at 1% false" in membership_text([table(99)])


def test_record_and_card_carry_it(record):
    tested = record.model_copy(update={"membership": (table(100),)})
    assert Record.from_json(tested.to_json()) == tested
    card = render_card(tested, name="model")
    assert "## Can it be told which images were trained on?" in card
    assert "| loss | 1" in card
    assert "Can it be told" not in render_card(record, name="model")
