"""The verbs of the command line, one file each: a function whose signature and docstring are the help.

A verb returns its result; the command line prints it, by the module's `show` where printing takes more than `str`.
Defaults that differ on the command line stand in `TYPED`. Nothing here loads a framework before a function is called.
"""

VERBS = (
    "demo", "curate", "fit", "watch", "calibrate", "audit", "verify", "monitor", "triage", "export", "stamp", "inspect",
    "check", "sample", "compare", "compare-images", "metrics", "judge", "completion",
)  # fmt: skip  # in the order of the story
