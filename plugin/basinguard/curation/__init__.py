"""What should not be in the training set? Reading a folder, finding what will be memorized, proposing what to do.

Read in this order: `folder` (images and captions in, problems out), `scan` (each file once), `descriptors` and
`duplicates` (which pictures may be the same; `similarity.registration` says which are), `captions` and `outliers`
(what a small fine-tune holds after one copy), `findings` (one score with its reasons), `decisions`, `run_remedies` and
`manifest` (what to do about it, written beside the sources), `report` (for people), `curate` (all of it). No source
file is ever changed.
"""
