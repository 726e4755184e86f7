"""Somebody else's trainer, watched from outside: each checkpoint that it writes is probed once."""
