"""Does this model copy its training images, which ones, and what would make it safe? Findings, words and a page."""
