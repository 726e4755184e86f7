"""A record put into a LoRA of another trainer: header only, and only where it belongs."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from basinguard.cli import main
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import export_lora, lora_layers
from basinguard.exports.lora_formats import lora_sha256
from basinguard.exports.merge import merged
from basinguard.exports.stamp import stamp_lora
from support.exports import build_pipe, build_record

TRAINERS_OWN = {"ss_network_dim": "2", "ss_output_name": "Käfer", "software": '{"name": "somebody\'s trainer"}'}


def bytes_of_tensors(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture
def foreign(tmp_path, tuned):
    """A LoRA as another trainer leaves it."""
    path = tmp_path / "foreign.safetensors"
    save_file(
        load_file(export_lora(tuned, build_record(merged(tuned)), tmp_path / "own.safetensors")), path, TRAINERS_OWN
    )
    return path


def test_tensors_and_the_trainers_header_stay_and_the_record_comes_back(foreign, tuned, tmp_path):
    record = build_record(merged(tuned))
    out = stamp_lora(foreign, record, tmp_path / "stamped.safetensors")
    assert bytes_of_tensors(out) == bytes_of_tensors(foreign)
    with safe_open(out, "pt") as file:
        header = file.metadata()
    assert TRAINERS_OWN.items() <= header.items()
    assert inspect_file(out).record.guidance == record.guidance
    assert check_export(out).ok
    fresh = build_pipe()
    fresh.load_lora_weights(str(tmp_path), weight_name="stamped.safetensors")
    again = stamp_lora(out, record.model_copy(update={"promise": "another"}), out, overwrite=True)
    assert inspect_file(again).record.promise == "another"
    tensors = load_file(out)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, out, header)
    assert not check_export(out).ok


def test_the_verb_stamps_what_the_record_belongs_to_and_nothing_else(foreign, pipe, tuned, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "base")
    record = build_record(merged(tuned)).model_copy(update={"base": str(tmp_path / "base")})
    (tmp_path / "record.json").write_text(record.to_json())
    words = ["stamp", str(foreign), str(tmp_path / "record.json")]
    main([*words, str(tmp_path / "stamped.safetensors")])
    assert "stamped.safetensors" in capsys.readouterr().out
    assert inspect_file(tmp_path / "stamped.safetensors").record.product == record.product
    for change, said in (({"weights_sha256": "f" * 64}, "made for weights ffffffffffff"),):
        (tmp_path / "record.json").write_text(json.dumps(json.loads(record.to_json()) | change))
        with pytest.raises(SystemExit):
            main([*words, str(tmp_path / "other.safetensors")])
        assert said in capsys.readouterr().err
        assert not (tmp_path / "other.safetensors").exists()
    schedule = RecordedSchedule(transitions=(500.0,), strengths=(0.5, 1.0))
    own = {"product": RecordedWeights(kind="lora", strength_schedule=schedule)}
    own["weights_sha256"] = lora_sha256(lora_layers(tuned))
    (tmp_path / "record.json").write_text(record.model_copy(update=own).to_json())
    main([*words, str(tmp_path / "by timestep.safetensors")])
    assert inspect_file(tmp_path / "by timestep.safetensors").record.product.strength_schedule == schedule
    for part, said in (
        ({"strength": 0.5}, "0.5 of the fine-tune"),
        ({"update_filter": "rank-1"}, "with the largest singular value of each layer"),
    ):
        half = record.model_copy(update={"product": record.product.model_copy(update=part)})
        (tmp_path / "record.json").write_text(half.to_json())
        with pytest.raises(SystemExit):
            main([*words, str(tmp_path / "other.safetensors")])
        error = capsys.readouterr().err
        assert said in error
        assert "export --kind kohya" in error
