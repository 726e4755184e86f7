"""`basinguard watch` refuses at once what could only fail at the end."""

import pytest

from basinguard.commands.watch import watch
from basinguard.watching.reaction import WatchPace, WatchReaction


@pytest.mark.parametrize(
    ("data", "pace", "message"),
    [
        ("concepts.json", WatchPace(once=True), "calibrate: needs a folder of images as data, not .*concepts.json"),
        ("", WatchPace(), "calibrate: is done when the watch ends, which this one never does"),
    ],
)
def test_a_calibration_that_could_never_be_made_is_refused_before_the_watch(tmp_path, data, pace, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        watch(out, data=tmp_path / data, base="tinyworld", pace=pace, reaction=WatchReaction(calibrate="best"))
    assert not out.exists()
