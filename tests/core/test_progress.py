"""What long work says: seen on stderr unless the application has set up logging itself."""

import logging

from basinguard.core import progress
from basinguard.core.progress import LOG, say, shown


def test_lines_are_seen_inside_and_nothing_stays_behind(capsys):
    before = list(LOG.handlers), LOG.level, LOG.propagate
    say("before")
    with shown():
        say("3 of 4")
    say("after")
    assert capsys.readouterr().err == "basinguard: 3 of 4\n"
    assert (LOG.handlers, LOG.level, LOG.propagate) == before


def test_a_handler_that_some_library_put_at_the_root_does_not_silence_them(capsys):
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        with shown():
            say("3 of 4")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err == "basinguard: 3 of 4\n"


def test_an_application_that_listens_hears_it_once(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="basinguard"), shown():
        say("3 of 4")
    assert caplog.messages == ["3 of 4"]
    assert "basinguard: 3 of 4" not in capsys.readouterr().err


def test_long_work_that_is_piped_says_a_line_every_half_minute(caplog):
    now = [0.0]
    with caplog.at_level(logging.INFO, "basinguard"):
        stage = progress.Stage("probe of epoch 20", most=400, word="safe", clock=lambda: now[0])
        for _ in range(13):
            now[0] += 10
            stage.advance(20)
    first, *_ = lines = [record.message for record in caplog.records]
    assert first == "probe of epoch 20: 60 of at most 400 evaluations, at most 3 min left; last: safe"
    assert len(lines) == 4, "130 seconds"


def test_a_stretch_within_another_counts_for_the_outer_one_and_ends_with_it(caplog):
    with caplog.at_level(logging.INFO, "basinguard"), progress.working("calibration", 10):
        with progress.working("sampling", 5):
            progress.advance(4)
        outer = progress._stages[-1]
        assert (outer.name, outer.done) == ("calibration", 4)
    progress.advance(1)
    assert progress._stages == []
    assert outer.done == 4, "nobody waits any more"
