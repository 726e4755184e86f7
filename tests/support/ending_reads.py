"""Reading that ends its process for some paths, for tests of the pool that goes on."""

import os


def read_or_end(path: str) -> str:
    if path.startswith("ends"):
        os._exit(3)
    return path.upper()
