"""A page in a browser without a window, asked through its debugging pipe: no timer decides when it is done."""

import json
import shutil
import subprocess
from itertools import count
from pathlib import Path
from threading import Timer

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
PIPES = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'  # the browser is asked on 3 and answers on 4
HUNG = 600  # seconds after which a browser does not answer any more, however slow the machine


class Browser:
    """Answers to commands of the DevTools protocol, https://chromedevtools.github.io/devtools-protocol."""

    def __init__(self, profile: Path) -> None:
        command = ["sh", "-c", PIPES, "sh", BROWSER, *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.watchdog = Timer(HUNG, self.process.kill)
        self.numbers = count(1)
        self.rest = b""

    def __enter__(self):
        self.watchdog.start()
        return self

    def __exit__(self, *_) -> None:
        self.watchdog.cancel()
        self.process.kill()
        self.process.communicate()

    def ask(self, method: str, session: str = "", **params) -> dict:
        """The result of one command; raises AssertionError with the browser's words, or when it is gone."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self._message()).get("id") != number:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def _message(self) -> dict:
        while b"\0" not in self.rest:
            more = self.process.stdout.read1(2**16)
            assert more, f"the browser ended without an answer (status {self.process.wait()})"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


def evaluate(page: Path, expression: str, scratch: Path) -> object:
    """The value of an expression in a page, that of its promise where it is one; errors in it raise AssertionError."""
    with Browser(scratch / "profile") as browser:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.ask("Page.navigate", session, url=page.as_uri())  # answered once the new document is there
        options = {"awaitPromise": True, "returnByValue": True}
        answer = browser.ask("Runtime.evaluate", session, expression=expression, **options)
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"]["value"]
