"""Files of strangers: every parser takes them or refuses them with a sentence, and never anything else."""

import ast
import json
import os
import shutil
from argparse import ArgumentError
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from basinguard.cli import MISTAKES
from basinguard.core.estimate import Estimate
from basinguard.core.images import BadImage, read_facts
from basinguard.core.metric import Metric
from basinguard.core.record import Guidance, Record, Sampler, read_record
from basinguard.core.report import Report
from basinguard.curation.caption_files import CaptionRow, Complaint, read_caption_text, read_metadata
from basinguard.curation.decisions import Decision, read_allow_list
from basinguard.curation.manifest import Curation, Settings
from basinguard.curation.report import PageContext, render_report
from basinguard.exports import integrity
from basinguard.exports.inspect import inspect_file, inspection_text
from basinguard.exports.integrity import check_export
from basinguard.exports.model_card import render_card
from basinguard.guard.status import GuardFile, read_history, run_status
from basinguard.guidance.core import SwitchAt, from_record
from basinguard.guidance.serialization import rule_from_dict
from basinguard.pipelines.loading import load_pipeline, model_config
from basinguard.pipelines.paired_samples import draw_pairs
from basinguard.pipelines.protect import load
from basinguard.sessions.verification import read_rules
from basinguard.similarity.image_files import load_image
from basinguard.training.data_sources import ImageSource
from basinguard.training.fit_cli import FineTuneCLI, build_cli
from basinguard.training.preflight import base_problems
from support.guarded_runs import picture_folder
from support.hostile_files import hostile, tensor_files, try_all
from support.reports import changed

PAGES = [15, pytest.param(10_000, marks=pytest.mark.long)]
CASES = [40, pytest.param(10_000, marks=pytest.mark.long)]
RATE = Estimate(value=0.1, low=0.05, high=0.2, level=0.95, n=64, method="wilson")
REPORT = changed(Report.missed(-1, 0, "out of memory"), risk=RATE, curve=((999.0, RATE),))
SHA = "0" * 64
RECORD = Record(
    guidance=Guidance(transition=500, sigma=3.0, before=-1.0), risk=RATE, plain=RATE, alpha=0.1, delta=0.05,
    promise="kept", population="all", metric=Metric(embedder="structure", threshold=0.7, source="null"),
    sampler=Sampler(scheduler="ddim", timesteps=20, prediction_type="epsilon", resolution=64, scale=7.5),
    seeds=(1, 2), base="owner/name", weights_sha256=SHA, dataset_sha256=SHA, versions={"torch": "2"}, history=(REPORT,),
)  # fmt: skip
FORM = json.loads(RECORD.to_json())
GUARD = GuardFile(status=run_status([REPORT], 0.1), history=(REPORT,)).to_json()
SCHEDULER = {"_class_name": "DDIMScheduler", "basinguard": RECORD.to_json(), "prediction_type": "epsilon"}
RULES = {"a": {"rule": "switch_at", "transition": [500.0], "before": 0.0, "after": 7.5},
         "b": {"rule": "switch_after", "detector": {"depth": 0.1}, "before": 0.0, "after": None}}  # fmt: skip
ALLOWED = {"schema_version": 1, "allowed": [{"sha256": SHA, "action": "drop", "file_name": "a.png"}]}
LORA = {
    "__metadata__": {"basinguard.record": RECORD.to_json(), "lora_adapter_metadata": '{"unet.lora_alpha": 4}'},
    "unet.a.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    "unet.a.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
}
INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
LINES = b'{"file_name": "0.png", "text": ["a ball", "a box"]}\n{"file_name": "sub/1.png", "caption": "x"}\n'


def encoded(form) -> bytes:
    return json.dumps(form).encode()


def picture(kind: str) -> bytes:
    stream = BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(stream, kind)
    return stream.getvalue()


def at(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refuses(read, *accepted, echoes=0):
    """The check: `read` returns something, or raises one of `accepted` with something to say that is not the file.

    `echoes`: how many times a library may repeat what it was given.
    """
    mistakes = accepted or MISTAKES

    def run(value):
        said = "taken"
        try:
            read(value)
        except mistakes as error:
            said = str(error)
        assert 0 < len(said.strip()) < 3000 + echoes * len(value)

    return run


def shown(root):
    """A record, whatever carries it, as a terminal shows it: no control characters but line ends."""

    def read(path):
        text = inspection_text(inspect_file(path))
        assert all(c.isprintable() or c == "\n" for c in text)

    return read


def rows(path):
    for row in read_metadata(path):
        assert isinstance(row, CaptionRow | Complaint)
        assert isinstance(row, Complaint) or row.file_name


def indexed(root):
    def read(content):
        at(root / "model_index.json", content)
        for line in base_problems(root):
            assert isinstance(line, str)
        model_config(root, "model_index.json")

    return read


def exported(root):
    for name in ("basinguard.json", "scheduler/scheduler_config.json"):
        at(root / name, RECORD.to_json().encode() if name == "basinguard.json" else encoded(SCHEDULER))
    save_file({"weight": torch.zeros(2)}, at(root / "unet" / "model.safetensors", b""))


def checked_sums(root):
    def read(content):
        if not root.exists():
            exported(root)
        at(root / "SHA256SUMS", content)
        assert not check_export(root).ok

    return read


def parsers(root: Path):
    """name -> (values to try, check): every reader of a stranger's file."""
    record = hostile(RECORD.to_json().encode(), FORM)
    tensors = tensor_files(LORA, b"\0" * 16)
    pictures = st.one_of(*(hostile(picture(kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")))
    parquet_bytes = parquet()
    return {
        "record": (record, refuses(Record.from_json, ValueError)),
        "record file": (record, refuses(lambda c: read_record(at(root / "record.json", c)), ValueError)),
        "report": (hostile(REPORT.to_json().encode(), FORM["history"][0]), refuses(Report.from_json, ValueError)),
        "guard.json": (
            hostile(GUARD.encode(), json.loads(GUARD)),
            refuses(lambda c: read_history(at(root / "guard.json", c)), ValueError),
        ),
        "inspect a record": (record, refuses(lambda c: shown(root)(at(root / "i.json", c)), ValueError)),
        "scheduler config": (
            hostile(encoded(SCHEDULER), SCHEDULER),
            refuses(lambda c: shown(root)(at(root / "s" / "scheduler_config.json", c)), ValueError),
        ),
        "safetensors header": (tensors, refuses(lambda c: shown(root)(at(root / "a.safetensors", c)), ValueError)),
        "LoRA file": (tensors, refuses(lambda c: check_export(at(root / "b.safetensors", c)), ValueError)),
        "SHA256SUMS": (hostile(f"{SHA}  basinguard.json\n{SHA}  ../x\n".encode()), checked_sums(root / "export")),
        "rules": (
            hostile(encoded(RULES), RULES),
            refuses(lambda c: read_rules(at(root / "rules.json", c)), ValueError),
        ),
        "rule in a record": (
            hostile(encoded(FORM), FORM),
            refuses(lambda c: from_record(json.loads(c)), ValueError, RecursionError),
        ),
        "allow-list": (
            hostile(encoded(ALLOWED), ALLOWED),
            refuses(lambda c: read_allow_list(at(root / "allow.json", c)), ValueError),
        ),
        "metadata.jsonl": (hostile(LINES), lambda c: rows(at(root / "metadata.jsonl", c))),
        "metadata.csv": (
            hostile(b'file_name,text\n0.png,"a, ball"\nsub/1.png,x\n'),
            lambda c: rows(at(root / "metadata.csv", c)),
        ),
        "metadata.parquet": (hostile(parquet_bytes), lambda c: rows(at(root / "metadata.parquet", c))),
        "caption file": (
            hostile("a ball\nein Ball ü\n".encode()),
            refuses(lambda c: read_caption_text(at(root / "c.txt", c)), ValueError),
        ),
        "model_index.json": (hostile(encoded(INDEX), INDEX), refuses(indexed(root / "model"))),
        "picture, curation": (pictures, refuses(lambda c: read_facts(at(root / "p.png", c)), BadImage)),
        "picture, metrics": (pictures, refuses(lambda c: load_image(at(root / "q.png", c)), ValueError)),
    }


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["0.png", "1.png"], "text": ["a", "b"]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("name", parsers(Path()))
def test_every_parser_takes_or_refuses(tmp_path, name, cases):
    strategy, check_one = parsers(tmp_path)[name]
    assert try_all(strategy, check_one, cases) >= cases


TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)", "{{ 7 * 7 }}",
            "{% if %}", "---\nlicense: mit", "[a](javascript:alert(1))", "![a](http://x/y.png)",
            "</textarea><svg onload=alert(1)>",
            "`code`", "&lt;b&gt;", "\u202egnp.exe", "a\nb: c", "| a | b |", "<!--", "]]>", "'-alert(1)-'",
        ]
    ),
)  # fmt: skip


class Tags(HTMLParser):
    """Every tag and attribute name of a page, and addresses that would do something."""

    def __init__(self):
        super().__init__()
        self.elements, self.active = [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(sorted(name for name, _ in attributes))))
        self.active += [v for _, v in attributes if v and v.strip().lower().startswith(("javascript:", "http"))]


def tags(page: str) -> Tags:
    reader = Tags()
    reader.feed(page)
    return reader


def curation(text: str) -> Curation:
    decision = Decision(
        file_name=text or "x", sha256=SHA, action="drop", reason=text, repeats=1, captions=(text, "a"), suggestion=text,
        risk=0.5,
    )  # fmt: skip
    about = Settings(embedder=text, thresholds={"same": 0.7}, repeats=1, basinguard="0")
    problems = ({"code": "truncated", "file": text, "message": text, "skipped": True},)
    return Curation(
        settings=about, decisions=(decision,), groups=(), leaks=(), notes=(text or "note",), problems=problems
    )


@pytest.mark.parametrize("cases", PAGES)
def test_a_report_page_shows_texts_and_obeys_none(cases):
    plain = tags(render_report(curation("plain"), {}, PageContext("plain", "plain")))

    def page(text):
        hostile_page = tags(render_report(curation(text), {}, PageContext(text, text)))
        assert set(hostile_page.elements) <= set(plain.elements) | extra
        assert hostile_page.active == plain.active

    extra = set(tags(render_report(curation(""), {}, PageContext("", ""))).elements)
    assert try_all(TEXTS, page, cases) >= min(cases, 30)


@pytest.mark.parametrize("cases", PAGES)
def test_a_model_card_shows_texts_and_obeys_none(cases):
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("gfm-like", {"linkify": False})

    def parts(record, name, prompt):
        text = render_card(record, name=name, pictures=["samples/00.png"], prompts=[prompt])
        _, front, body = text.split("---\n", 2)
        return yaml.safe_load(front), tags(markdown.render(body))

    front, plain = parts(RECORD, "plain", "plain")

    def card(given):
        text, name = given
        hostile_record = RECORD.model_copy(
            update={
                "promise": text, "population": text, "dataset_sha256": text, "versions": {text: text},
                "metric": RECORD.metric.model_copy(update={"embedder": text[:200], "source": text}),
                "sampler": RECORD.sampler.model_copy(update={"scheduler": text}),
            }
        )  # fmt: skip
        keys, hostile_card = parts(hostile_record, name, text)
        assert keys.keys() == front.keys()
        assert {t for t, _ in hostile_card.elements} <= {t for t, _ in plain.elements}
        assert [a for a in hostile_card.active if a not in plain.active] == []

    assert try_all(st.tuples(TEXTS, TEXTS), card, cases) >= min(cases, 30)


def test_rules_are_numbers_of_known_rules():
    for form in (None, [], "switch_at", {"rule": "os.system"}, {"rule": "constant", "scale": 1, "x": 2}):
        with pytest.raises(ValueError, match="rule"):
            rule_from_dict(form)


CONFIG = """
seed_everything: 0
model:
  class_path: basinguard.FineTune
  init_args: {base: tinyworld, method: lora, lora: {rank: 4, targets: [to_q]}, optimizer: {learning_rate: 1.0e-3}}
data: {class_path: basinguard.ImageFolder, init_args: {directory: photos, resolution: 64}}
trainer:
  max_epochs: 2
  callbacks: [{class_path: basinguard.MemorizationGuard, init_args: {plan: {captions: 2}, control: {heldout: [a]}}}]
"""


@pytest.mark.parametrize("cases", [10, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_config_is_taken_or_refused_and_runs_nothing(tmp_path, monkeypatch, cases):
    monkeypatch.setattr(FineTuneCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(FineTuneCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(os, "system", lambda *args: pytest.fail("a config ran a command"))
    parser = build_cli(["--config", str(at(tmp_path / "good.yaml", CONFIG.encode()))], run=False).parser
    parser.exit_on_error = False

    def parse(content):
        parser.parse_string(content.decode("utf-8", "replace"))

    tokens = (b"!!python/object/apply:os.system [ls]", b"&a [*a]", b"class_path: os.system", b"- ", b"\n  ", b"${HOME}")
    places = st.tuples(st.integers(0, len(CONFIG)), st.sampled_from(tokens))
    spliced = places.map(lambda place: CONFIG.encode()[: place[0]] + place[1] + CONFIG.encode()[place[0] :])
    strategy = st.one_of(hostile(CONFIG.encode(), yaml.safe_load(CONFIG)), spliced)
    assert try_all(strategy, refuses(parse, ArgumentError, *MISTAKES, echoes=2), cases) >= cases


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "/etc/passwd", "sub/../../outside.png", "C:\\x.png", "https://x/y.png", "..\\outside.png"],
)
def test_captions_cannot_name_files_outside_their_folder(tmp_path, name):
    folder = picture_folder(tmp_path / "inside", 1)
    shutil.copy(folder / "0.png", tmp_path / "outside.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}) + "\n")
    source = ImageSource.of_folder(folder)
    assert [Path(path).name for path, _ in source.items] == ["0.png"]
    assert any("only files below this one's folder are read" in problem for problem in source.problems)


def test_sums_cannot_name_files_outside_their_export(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(integrity, "file_sha256", lambda path: opened.append(path) or SHA)
    checked_sums(tmp_path / "export")(f"{SHA}  ../../etc/passwd\n{SHA}  /etc/passwd\n".encode())
    assert all(path.resolve().is_relative_to((tmp_path / "export").resolve()) for path in opened)


PICKLES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}
OPENERS = {
    "load_pipeline": load_pipeline,
    "load": load,
    "sample": lambda model: draw_pairs(model, ["a"], rule=SwitchAt(500), out=model / "samples"),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("part", PICKLES)
def test_pickled_weights_are_refused(tiny_pipeline_dir, tmp_path, opener, part):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    (weights,) = (tmp_path / "model" / part).glob("*.safetensors")
    torch.save(load_file(weights), weights.with_name(f"{PICKLES[part]}.bin"))
    weights.unlink()
    with pytest.raises((ValueError, OSError), match="safetensors"):
        OPENERS[opener](tmp_path / "model")


def test_pickles_cannot_be_asked_for(tiny_pipeline_dir):
    with pytest.raises(ValueError, match="opens no pickle"):
        load(tiny_pipeline_dir, use_safetensors=False)


PACKAGE = Path(__file__).parents[2] / "plugin" / "basinguard"
FORBIDDEN = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_of_a_file_is_ever_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                str(getattr(node, "module", "")).split(".")[0]
            }
            assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
        if not isinstance(node, ast.Call):
            continue
        assert getattr(node.func, "id", "") not in FORBIDDEN, ast.unparse(node)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert options.get("trust_remote_code", "False") == "False", ast.unparse(node)
        if ast.unparse(node.func).endswith("Pipeline.from_pretrained"):
            assert {"use_safetensors", None} & options.keys(), ast.unparse(node)
        if ast.unparse(node.func) == "torch.load":
            assert options.get("weights_only") == "True", ast.unparse(node)
