"""The full-size scenarios parse, train what they say, and mark the paper's numbers as the paper's."""

import re
from pathlib import Path

import pytest
import yaml

from basinguard import cli
from basinguard.mitigations import report, runner
from basinguard.training import fit_cli as fit
from basinguard.training.fit_cli import FineTuneCLI, fit_cli

FOLDER = Path(__file__).parents[2] / "configs" / "scenarios"
TRAINED = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.startswith("s4"))


def test_all_four_are_there():
    assert [path.stem[:2] for path in sorted(FOLDER.glob("*.yaml"))] == ["s1", "s2", "s3", "s4"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_header_says_what_to_expect_and_whose_numbers_these_are(path):
    text = path.read_text(encoding="utf-8")
    assert all(re.search(rf"^# {word}: ", text, re.MULTILINE) for word in ("Purpose", "Launch", "Expect", "Memory"))
    assert f"--config configs/scenarios/{path.name}" in text
    assert "not ours" in text
    assert re.search(r"Nothing\s+(#\s+)?has been measured", text)


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.stem)
def test_a_training_config_parses(path, monkeypatch):
    parsed = {}

    def stop(self):
        parsed.update(fit=self.config["fit"])
        raise SystemExit(0)

    monkeypatch.setattr(fit, "quiet_lightning", lambda: None)  # it owns its process
    monkeypatch.setattr(FineTuneCLI, "before_instantiate_classes", stop)
    with pytest.raises(SystemExit):
        fit_cli(["--config", str(path), "--data.init_args.directory", "photos"])
    assert parsed["fit"].model.init_args.method == "full"
    assert parsed["fit"].trainer.default_root_dir == f"runs/{path.stem}"


def test_the_pretrained_scenario_is_a_comparison(monkeypatch, tmp_path):
    arguments = {}
    monkeypatch.setattr(
        runner, "run_comparison", lambda model, data, options, **_: arguments.update(model=model, options=options)
    )
    monkeypatch.setattr(report, "comparison_table", lambda comparison: "")
    path = FOLDER / "s4_sd14_pretrained.yaml"
    cli.main(["compare", "--config", str(path), "--data", str(tmp_path)])
    assert arguments["model"] == yaml.safe_load(path.read_text())["model"]
    assert arguments["options"].names == ["all"]
    assert (arguments["options"].timesteps, arguments["options"].per_caption) == (50, 4)
