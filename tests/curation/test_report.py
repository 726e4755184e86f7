"""The page in a real browser, offline: hostile names stay text, filters filter, a refusal becomes an allow-list."""

import html
import re

import pytest
from PIL import ImageOps

from basinguard.core.text import printable
from basinguard.curation.curate import curate_images
from basinguard.curation.decisions import AllowList, read_allow_list
from support.browser import BROWSER, evaluate

ATTACK = "<script>document.title='hacked'<!script>"
NAME = '"><img src=x onerror="document.title=\'hacked\'">.png'

PROBE = """
(async () => {
if (document.readyState !== "complete") await new Promise((loaded) => window.addEventListener("load", loaded));
const seen = {};
URL.createObjectURL = (blob) => { seen.blob = blob; return "blob:test"; };
HTMLAnchorElement.prototype.click = function () { seen.file = this.download; };
const shown = () => [...document.querySelectorAll("article")].filter((a) => !a.hidden).length;
const set = (id, value) => { find(id).value = value; find(id).dispatchEvent(new Event("input", { bubbles: true })); };
const result = { title: document.title, all: shown(), images: [...document.images].map((i) => i.naturalWidth) };
result.foreign = performance.getEntriesByType("resource").map((r) => r.name).filter((n) => !n.startsWith("data:"));
set("action", "drop"); result.drop = shown();
set("action", ""); set("words", "NUMBER 2"); result.words = shown();
set("words", ""); set("code", "copies"); result.copies = shown(); set("code", "");
const controls = [...document.querySelectorAll("input,select,button")];
result.unlabelled = controls.filter((e) => !e.labels?.length && !e.textContent).length;
result.unnamed = [...document.images].filter((i) => !i.alt).length;
find("download").click(); result.none = await seen.blob.text();
const box = document.querySelector('article[data-action="drop"] .say input');
box.click(); result.status = find("status").textContent;
find("download").click(); result.one = await seen.blob.text(); result.file = seen.file;
result.next = find("next").hidden ? "" : find("next").textContent;
const dropped = box.closest("article"), group = dropped.closest("section"), stays = group.querySelector("article");
document.querySelector(".instead").click();
result.tags = [dropped, stays].map((a) => a.querySelector(".tag").textContent);
find("download").click(); result.chosen = await seen.blob.text();
group.querySelector(".all").click();
result.undone = [dropped, stays].map((a) => a.querySelector(".tag").textContent);
find("download").click(); result.everything = await seen.blob.text();
dropped.querySelector("img").click();
result.large = find("large").open; result.pair = find("two-name").textContent;
result.difference = find("difference-name").textContent;
find("large").close();
const points = [...document.querySelectorAll("#map circle")];
result.points = points.map((p) => p.getAttribute("aria-label"));
const single = points[0], drawn = new Promise((done) => {
  find("large").showModal = () => done(find("one-name").textContent);
});
single.dataset.sha = "of an image without a card";
single.dispatchEvent(new MouseEvent("click", { bubbles: true }));
result.single = [await drawn, single.getAttribute("aria-label"), find("one").width];
const fills = () => points.map((p) => getComputedStyle(p).stroke);
find("colouring").value = "group"; find("colouring").dispatchEvent(new Event("change"));
result.by_group = new Set(fills()).size;
const tint = find("difference").getContext("2d").getImageData(0, 0, 192, 192).data;
result.brightest = Math.max(...tint.filter((_, k) => k % 4 < 3));
return result;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, pictures):
    directory = tmp_path_factory.mktemp("report") / "photos & <b>more"
    directory.mkdir()
    for number, picture in enumerate(pictures[:6]):
        picture.save(directory / f"{number}.png")
        (directory / f"{number}.txt").write_text(f"number {number} {ATTACK}")
    ImageOps.mirror(pictures[0]).save(directory / NAME)
    (directory / "empty<i>.png").write_bytes(b"")
    outcome = curate_images(directory)
    return next(path for path in outcome.written if path.name == "report.html"), outcome.curation


def test_everything_from_outside_is_escaped(page):
    text = page[0].read_text("utf-8")
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert "empty<i>" not in text
    assert html.escape(ATTACK, quote=False).split("'")[0] in text


def test_the_page_is_one_file_that_loads_nothing(page):
    text = page[0].read_text("utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "default-src 'none'" in text


def test_notes_without_risk_are_listed_too(page):
    text = page[0].read_text("utf-8")
    assert "<summary>small: 7</summary>" in text
    assert "192 x 192: a side below 256" in text
    assert "0.png is proposed to stay: it has " in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_in_a_browser(page, tmp_path):
    path, curation = page
    result = evaluate(path, PROBE, tmp_path)
    assert result["title"].startswith("Curation of ")
    assert result["foreign"] == []
    assert min(result["images"]) > 0
    assert result["drop"] == sum(d.action == "drop" for d in curation.decisions) == 1
    assert result["words"] == 1
    assert result["copies"] == 2
    assert result["unlabelled"] == result["unnamed"] == 0
    assert AllowList.model_validate_json(result["none"]).allowed == ()
    assert result["file"] == "allow-list.json"
    assert result["status"].endswith("1 refused")
    (tmp_path / "allow.json").write_text(result["one"])
    (refusal,) = read_allow_list(tmp_path / "allow.json").allowed
    dropped = next(d for d in curation.decisions if d.action == "drop")
    stays = curation.groups[0].files[0]
    assert result["next"].endswith("--allow-list allow-list.json --apply")
    assert result["tags"] == ["keep, chosen by you", "leave out instead"]
    assert result["undone"] == ["leave out", "keep"]
    chosen = AllowList.model_validate_json(result["chosen"])
    assert [each.sha256 for each in chosen.preferred] == [dropped.sha256]
    assert chosen.allowed == ()
    everything = AllowList.model_validate_json(result["everything"])
    assert [(each.sha256, each.action) for each in everything.allowed] == [(dropped.sha256, "drop")]
    assert everything.preferred == ()
    assert result["large"] is True
    assert sorted(result["points"]) == sorted(printable(d.file_name) for d in curation.decisions)
    assert result["single"][0] == result["single"][1]
    assert result["single"][2] == 64
    assert result["by_group"] == 2  # one group of copies, and grey
    assert result["pair"].startswith(f"{stays}, mirrored, similarity ")
    assert result["difference"].startswith("what differs")
    assert result["brightest"] < 64  # the copy is an exact mirror image; JPEG and four times leave little
    assert (refusal.sha256, refusal.action, refusal.file_name) == (dropped.sha256, "drop", dropped.file_name)
