"""One file for each verb of the command line; each is a function that returns."""
