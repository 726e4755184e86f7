"""Every situation in `situations.md` has a test of that name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_situation_has_its_test():
    lines = Path(__file__).with_name("situations.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")][1:]
    assert len(rows) > 20
    for situation, right, test in rows:
        file, _, name = test.strip().partition("::")
        assert situation.strip()
        assert right.strip()
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test
