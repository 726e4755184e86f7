"""The attack table on a card and in a terminal: what came out, what a row cannot say, and what was not tried."""

from basinguard.core.attack_table import AttackOutcome, AttackRow, AttackTable, Untried
from basinguard.core.record import Record
from basinguard.core.stats import wilson
from basinguard.exports.attack_section import attack_rows, attack_text
from basinguard.exports.model_card import render_card


def outcome(target, hits, note=""):
    return AttackOutcome(target=target, copies=wilson(hits, 24), images=min(hits, 2), evaluations=768, note=note)


TABLE = AttackTable(
    level="quick",
    images_total=24,
    rows=(
        AttackRow(
            attack="high scale", setting="2 times", source="x", outcomes=(outcome("base", 0), outcome("plain", 12))
        ),
        AttackRow(attack="image to image", setting="strength 0.8", source="x", outcomes=(outcome("base", 6),)),
        AttackRow(attack="lone", setting="s", source="x", outcomes=(outcome("plain", 1, "3 clusters"),)),
    ),
    untried=(Untried(attack="all", target="guarded", reason="as its plain weights"),),
)


def test_every_model_that_was_attacked_has_a_column_and_a_dash_where_it_was_not():
    head, high, image, lone = attack_rows(TABLE)
    assert head == ("attack", "base model", "plain export", "evaluations")
    assert high == ("high scale, 2 times", "0 % [0, 14] (n = 24)", "50 % [31, 69] (n = 24), 2 images", "768")
    assert image[0].endswith("*"), "the base gives the pictures back too"
    assert (image[2], lone[1]) == ("-", "-")
    assert lone[0] == "lone, s", "without a base nothing is known of it"
    assert lone[2] == "4 % [1, 20] (n = 24), 1 image (3 clusters)"


def test_the_text_says_what_was_not_tried():
    text = attack_text(TABLE)
    assert "A quick round: 3 attacks, 3072 UNet evaluations, 24 training images" in text
    assert "hold 0.6" not in text
    assert "weights hold 0.6 of the fine-tune" in attack_text(TABLE.model_copy(update={"strength": 0.6}))
    assert text.endswith("not tried:\n- all on guarded, by its rule: as its plain weights")


def test_the_card_has_the_table_and_without_one_says_that_nobody_tried(record):
    card = render_card(record.model_copy(update={"attacks": TABLE}), name="model")
    assert "| high scale, 2 times | 0 % \\[0, 14\\] (n = 24) | 50 % \\[31, 69\\] (n = 24), 2 images | 768 |" in card
    assert "- all, on guarded, by its rule: as its plain weights" in card
    assert "nobody has attacked this export yet" in render_card(record, name="model")


def test_a_record_carries_the_table(record):
    attacked = record.model_copy(update={"attacks": TABLE})
    assert Record.from_json(attacked.to_json()) == attacked
