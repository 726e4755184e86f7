"""What should not be in the training set? Reading a folder, finding what will be memorized, proposing what to do.

Read in this order: `folder` (images and captions in, problems out), `scan` (each file once), `hashing`, `views` and
`duplicates` (which pictures may be the same), `fit` and `register` (which are), `captions` and `outliers` (what a small
fine-tune holds after one copy), `findings` (one score with its reasons), `actions`, `remedies` and `manifest` (what to
do about it, written beside the sources), `report` (a page for people), `commands.curate` (all of it). `training.caption_augmentation` holds
what training itself can do. No source file is ever changed.
"""
