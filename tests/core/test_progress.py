"""What long work says: seen on stderr unless the application has set up logging itself."""

import logging

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
