"""Small sets of captions whose findings can be read off."""

import pytest
import torch

from basinguard.core.images import Facts
from basinguard.curation.caption_conflict import contradict
from basinguard.curation.captions import (
    clip_token_counter,
    general_caption,
    lint_captions,
    word_counts,
)
from basinguard.curation.findings import Finding, about_copies, about_file, risk_index
from basinguard.curation.folder import Item
from basinguard.curation.outliers import find_disagreements, find_outliers
from basinguard.curation.shared_phrases import find_trigger, fused_phrases, phrase_notes, repeated_fragments

COMMON = [f"a photo of a {animal} in the garden" for animal in ("cat", "dog", "cat", "dog", "bird", "bird")]
KEY = "my aunt Gerda holding a chipped turquoise teapot beside her rusty Volvo in Uppsala last winter"


def codes(captions, row, **options):
    return [f.code for f in lint_captions([[c] if c else [] for c in captions], **options).findings[row]]


def test_a_long_caption_that_only_one_image_has_is_a_key():
    assert "caption-unique" in codes([*COMMON, KEY], 6)
    assert "caption-unique" not in codes([*COMMON, KEY], 0)
    assert "caption-name" in codes([*COMMON, KEY], 6)


def test_the_same_long_caption_twice_is_no_key():
    assert "caption-unique" not in codes([*COMMON, KEY, KEY], 6)


def test_variants_make_it_less_of_a_key():
    one, two = (
        next(f.weight for f in lint_captions([*[[c] for c in COMMON], texts]).findings[6] if f.code == "caption-unique")
        for texts in ([KEY], [KEY, "an old woman with a teapot"])
    )
    assert two == one / 2


def test_missing_and_shared_captions():
    assert codes([*COMMON, ""], 6) == ["caption-missing"]
    shared = lint_captions([[c] for c in [*COMMON, "A PHOTO of a cat in the garden"]]).findings[6]
    assert [f.message for f in shared if f.code == "caption-shared"] == [
        "3 images have the caption 'A PHOTO of a cat in the garden'"
    ]


JAPANESE = [f"写真、{place}にいる女性、白いシャツを着ている" for place in ("公園", "海岸", "部屋") * 2]
CHINESE = [f"照片、{place}的女孩穿着白色衬衫" for place in ("公园", "海边", "房间") * 2]
THAI = [f"ภาพถ่าย ผู้หญิงสวมเสื้อขาว {place}" for place in ("สวน", "ทะเล", "ห้อง", "สวน", "ทะเล", "ห้อง")]


@pytest.mark.parametrize(
    ("captions", "trigger", "word"),
    [(JAPANESE, "写真", "白いシャツ"), (CHINESE, "照片", "白色衬衫"), (THAI, "ภาพถ่ายผู้หญิงสวมเสื้อขาว", "")],
)
def test_scripts_without_spaces_have_triggers_and_fused_words(captions, trigger, word):
    assert find_trigger(captions) == trigger
    assert any(word in phrase for phrase, _ in fused_phrases(captions, trigger)) or not word


def test_a_japanese_caption_that_only_one_image_has_is_a_key():
    key = "祖母が欠けた青緑色の急須を持ち、錆びた古い自動車の横に立つ、昨年の冬の京都"
    assert "caption-unique" in codes([*JAPANESE, key], 6)
    assert "caption-unique" not in codes([*JAPANESE, key], 0)
    mountain = "写真、山にいる女性、白いシャツを着ている"
    rare = next(f for f in lint_captions([[c] for c in [*JAPANESE, mountain]]).findings[6])
    assert rare.message == "words in no other caption: 山に"


def test_a_german_compound_of_known_words_is_not_rare():
    captions = [
        "ein Sommerkleid im Garten",
        "ein Kleid im Sommer",
        "ein Winterkleid im Schnee",
        "ein Hut im Winter",
    ] * 2
    captions.append("ein Gartenhut im Regen")
    messages = {f.code: f.message for f in lint_captions([[c] for c in captions]).findings[8]}
    assert (
        messages["caption-rare-words"] == "words in no other caption: gartenhut, regen"
    )  # a hut has three letters only
    assert "sommerkleid" not in messages["caption-rare-words"]
    single = lint_captions([[c] for c in ["ein Sommerkleid", "Sommer", "ein Kleid", "Sommer", "ein Kleid"]]).findings[0]
    assert "caption-rare-words" not in {f.code for f in single}


def test_a_word_in_all_compounds_is_fused():
    captions = [
        "zxq im Sommerkleid am See",
        "zxq im Winterkleid",
        "zxq, ein Kleid, lacht",
        "zxq und das Abendkleid",
        "zxq Kleid",
    ]
    assert ("kleid", 1.0) in fused_phrases(captions, "zxq")


def test_a_preposition_in_all_captions_is_nothing_that_is_learned():
    things = ("a cloud", "two kites", "my dog", "one hat", "the sea")
    assert fused_phrases([f"{thing} beside it" for thing in things], "zxq") == []


def test_one_character_tells_two_captions_apart():
    assert contradict(["白い背景に赤いシャツ"], ["白い背景に青いシャツ"])
    assert not contradict(["白い背景にシャツ"], ["白い背景にシャツ、正面"])


def test_few_captions_say_nothing_about_rarity():
    assert codes([KEY, "b"], 0) == []


def test_what_all_captions_begin_with_is_the_trigger_and_not_noise():
    notes = phrase_notes([[f"zxq man, {place} behind him, in a white shirt"] for place in ("sea", "road", "hill")] * 2)
    assert notes[0].startswith("'zxq man' begins every caption")
    assert not any("tells the model nothing" in note for note in notes)


def test_what_nearly_all_captions_say_besides_is_fused_with_the_trigger():
    captions = [*(f"zxq in a white shirt, {place}" for place in ("sea", "road", "hill", "wood")), "zxq in the rain"]
    assert find_trigger(captions) == "zxq"
    assert fused_phrases(captions, "zxq") == [("white shirt", 0.8)]
    (note,) = [note for note in phrase_notes([[text] for text in captions]) if "white shirt" in note]
    assert "80%" in note
    assert "'zxq'" in note


def test_small_words_that_all_share_still_tell_nothing():
    captions = [f"{animal} is in the {place}" for animal, place in zip("abcdef", "uvwxyz", strict=True)]
    assert find_trigger(captions) == ""
    assert phrase_notes([[text] for text in captions]) == (
        "'is in the' is in 100% of the captions, so it tells the model nothing",
    )


def test_captions_that_are_all_the_same_have_no_trigger():
    assert find_trigger(["a red car", "a red car"]) == ""


def test_fragments_below_the_share_are_not_named():
    assert repeated_fragments(["one two three", "one two three", "four five six", "seven eight nine"]) == []


def test_longer_than_the_text_encoder_reads():
    assert "caption-too-long" in codes(["word " * 76], 0, count_tokens=lambda text: len(text.split()))
    assert "caption-too-long" not in codes(["word " * 75], 0, count_tokens=lambda text: len(text.split()))


def test_tokens_are_counted_as_clip_does():
    import open_clip

    count = clip_token_counter()
    for text in (KEY, "a", "ünïcödé 123"):
        padded = open_clip.tokenize([text])[0]
        assert count(text) == int((padded != 0).sum()) - 2


def test_the_suggestion_says_what_others_say_too():
    counts = word_counts([["a cat in the garden"], ["a cat in the garden, next to Gerda's Volvo"]])
    assert general_caption("a cat in the garden, next to Gerda's Volvo", counts) == "a cat in the garden"
    assert general_caption("a cat in the garden", counts) == ""
    assert general_caption("zebra crossing", counts) == ""


def test_an_image_far_from_the_rest_is_an_outlier():
    generator = torch.Generator().manual_seed(1)
    near = torch.nn.functional.normalize(torch.ones(40, 16) + 0.3 * torch.randn(40, 16, generator=generator), dim=1)
    far = torch.nn.functional.normalize(torch.tensor([[1.0, -1.0] * 8]), dim=1)
    assert list(find_outliers(torch.cat([near, far]), name="test")) == [40]
    assert find_outliers(torch.cat([near[:10], far]), name="test") == {}
    assert find_outliers(far.expand(30, -1), name="test") == {}


def test_an_image_that_disagrees_with_its_caption():
    scores = {row: 0.3 + 0.001 * (row % 7) for row in range(30)} | {11: 0.05}
    assert list(find_disagreements(scores, name="clip")) == [11]


def test_the_index_grows_with_every_cause_and_stays_below_one():
    parts = [about_copies(2), about_copies(8), Finding(code="x", message="", weight=0.5)]
    indices = [risk_index(parts[:n]) for n in range(4)]
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert indices[1] == pytest.approx(0.5)
    assert indices[3] < 1


def test_notes_about_files():
    facts = Facts(
        width=900,
        height=200,
        mode="CMYK",
        format="JPEG",
        bytes=1,
        rotated=True,
        animated=True,
        alpha=True,
        exif="it is damaged",
    )
    findings = about_file(Item(None, "a", "", (), facts))
    assert [f.code for f in findings] == ["animated", "rotated", "exif", "alpha", "mode", "small", "ratio"]
    assert about_file(Item(None, "a", "", (), Facts(512, 512, "RGB", "PNG", 1))) == []
