"""What four trainers' own config code reads in the files that `basinguard curate` writes for them.

    python recipes/studies/curation_configs.py OneTrainer=DIR SimpleTuner=DIR ai-toolkit=DIR sd-scripts=DIR

DIR is a trainer's source; nothing of it is here. A small set is curated: a folder of sd-scripts with repeats and a
class token, images with several captions, and regularization. Each trainer then reads its file in a process of its own,
with its own parser and classes; ai-toolkit needs oyaml, sd-scripts voluptuous and toml. A key counts as known where the
trainer's class has it or its sources name it.
Expect: `recipes/results/curation_configs.json` in a minute; exit status 1 where a trainer reads something else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from empty_packages import EmptyModule, EmptyPackages

RESULT = Path(__file__).parents[1] / "results" / "curation_configs.json"
REPEATS, WORDS, BESIDE = 7, "ohwx man", "man"
EXPECTED = [  # repeats, regularization, whether the captions come from texts beside the images
    {"repeats": REPEATS, "regularization": False, "texts": True},
    {"repeats": REPEATS, "regularization": False, "texts": True},
    {"repeats": 1, "regularization": True, "texts": False},
]


def make_set(root: Path) -> Path:
    """A folder of a trained concept, of which some images have two captions, and one of regularization."""
    rng = np.random.default_rng(0)
    places = [root / "img" / f"{REPEATS}_{WORDS}", root / "img" / "reg" / f"1_{BESIDE}"]
    for folder, count in zip(places, (6, 3), strict=True):
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((256, 256)).save(folder / f"{number}.png")
    rows = [
        {"file_name": f"{REPEATS}_{WORDS}/{number}.png", "text": text}
        for number in range(6)
        for text in [f"a photo of {WORDS}, {number}"] + ([f"{WORDS} in place {number}"] if number < 2 else [])
    ]
    (root / "img" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "img"


Rows = list[dict[str, Any]]


def onetrainer(source: Path, file: Path) -> tuple[Rows, list[str]]:
    from modules.util.config.ConceptConfig import ConceptConfig

    rows, unknown = [], []
    for given in json.loads(file.read_text()):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            concept = ConceptConfig.default_values().from_dict(given)
        unknown += [line for line in said.getvalue().splitlines() if line]  # "Could not set ..."
        unknown += sorted(({*given} - {"__version"} - {*concept.types}) | ({*given["text"]} - {*concept.text.types}))
        regularization = concept.type.name == "PRIOR_PREDICTION"
        rows.append(row(concept.path, concept.balancing, regularization, concept.text.prompt_source == "sample"))
    return rows, unknown


def simpletuner(source: Path, file: Path) -> tuple[Rows, list[str]]:
    from simpletuner.helpers.data_backend.config import create_backend_config

    rows, keys = [], []
    for given in json.loads(file.read_text()):
        config = create_backend_config(given, {"resolution": 1024, "resolution_type": "pixel"})
        config.validate({})
        keys += list(given)
        if "instance_data_dir" in given:
            texts = config.caption_strategy == "textfile"
            rows.append(row(config.instance_data_dir, config.repeats + 1, config.is_regularisation_data, texts))
    return rows, unnamed(keys, (source / "simpletuner" / "helpers").rglob("*.py"))


def ai_toolkit(source: Path, file: Path) -> tuple[Rows, list[str]]:
    from toolkit.config import get_config
    from toolkit.config_modules import DatasetConfig, preprocess_dataset_raw_config

    raw = get_config(str(file))["config"]["process"][0]["datasets"]
    datasets = [DatasetConfig(**given) for given in preprocess_dataset_raw_config(raw)]
    rows = [
        row(d.folder_path, d.num_repeats, d.is_reg, has_texts(Path(d.folder_path), d.caption_ext)) for d in datasets
    ]
    return rows, unnamed([key for given in raw for key in given], [source / "toolkit" / "config_modules.py"])


def sd_scripts(source: Path, file: Path) -> tuple[Rows, list[str]]:
    for kind in ("lpw", "sdxl_lpw"):  # draws pictures; asks for a name of transformers 4
        sys.modules[f"library.{kind}_stable_diffusion"] = EmptyModule(kind)
    from library.config_util import ConfigSanitizer, load_user_config

    given = load_user_config(str(file))
    read = ConfigSanitizer(True, True, False, True).sanitize_user_config(given)  # refuses a key that it does not know
    subsets = [subset for dataset in read["datasets"] for subset in dataset["subsets"]]
    general = read["general"]["caption_extension"]
    return [
        row(s["image_dir"], s["num_repeats"], s.get("is_reg", False), has_texts(Path(s["image_dir"]), general))
        for s in subsets
    ], []


def row(folder: str, repeats: float, regularization: bool, texts: bool) -> dict[str, Any]:
    """What a trainer takes a folder for; texts that lie there but are not read do not count."""
    there = Path(folder).is_dir()
    return {"repeats": int(repeats), "regularization": bool(regularization), "texts": texts} | (
        {} if there else {"missing": folder}
    )


def has_texts(folder: Path, suffix: str) -> bool:
    """Whether there is a text beside each image."""
    return all(image.with_suffix(suffix).is_file() for image in folder.glob("*.png"))


def unnamed(keys: Iterable[str], sources: Iterable[Path]) -> list[str]:
    """Keys that none of the sources names."""
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sources)
    return sorted({key for key in keys if f'"{key}"' not in text and f"'{key}'" not in text})


CLIENTS: dict[str, tuple[Callable[[Path, Path], tuple[Rows, list[str]]], str, set[str]]] = {
    "OneTrainer": (onetrainer, "onetrainer.json", set()),
    "SimpleTuner": (simpletuner, "simpletuner.json", set()),
    "ai-toolkit": (ai_toolkit, "ai-toolkit.yaml", {"torchao", "torchaudio", "mutagen", "av", "cv2", "librosa"}),
    "sd-scripts": (sd_scripts, "kohya.toml", {"cv2", "imagesize"}),
}


def read_as(client: str, source: Path, file: Path) -> None:
    """Prints what one trainer reads, as JSON."""
    reader, _, missing = CLIENTS[client]
    empty = EmptyPackages({name for name in missing if importlib.util.find_spec(name) is None})
    sys.meta_path.append(empty)
    sys.path.insert(0, str(source))
    with contextlib.redirect_stdout(sys.stderr):
        rows, unknown = reader(source, file)
    print(json.dumps({"rows": rows, "unknown": unknown, "empty": sorted(empty.imported)}))


def main(given: list[str]) -> int:
    from basinguard import curate

    sources = dict(each.split("=", 1) for each in given)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        curate(make_set(Path(name)), out=out)
        for client, source in sources.items():
            command = [sys.executable, "-P", __file__, "--read", client, source, str(out / CLIENTS[client][1])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            read = {"problem": last[:300]} if done.returncode else json.loads(done.stdout)
            key = str  # of rows, in any order
            right = sorted(read.get("rows", []), key=key) == sorted(EXPECTED, key=key) and not read.get("unknown")
            result[client] = {"version": version_of(source), "as_meant": right, **read}
    command = "python recipes/studies/curation_configs.py " + " ".join(f"{client}=DIR" for client in sources)
    RESULT.write_text(json.dumps({"command": command, "expected": EXPECTED, "trainers": result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return int(not all(each["as_meant"] for each in result.values()))


def version_of(source: str) -> str:
    """The commit of a source, or what a file VERSION in it says."""
    said = Path(source) / "VERSION"
    if said.is_file():
        return said.read_text().strip()
    done = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_as(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1:]))
