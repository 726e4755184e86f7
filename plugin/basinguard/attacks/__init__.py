"""Attacks on a fine-tune: what can be got out of it, and whether it can be told which images it was trained on."""
