"""A model opened with the images it was trained on, and what is done with the two: calibrate, audit, verify."""
