"""Trajectories to exits, widths and curves: how large the basin of attraction around the training images is.

For one (caption, seed), guidance is switched on at some timestep of the sampler's grid; the *exit* is the smallest one
at which the trajectory still ends in a training image. The unguided part before it does not depend on where guidance
begins, so it is run once (`trajectories.run_trunk`) and every candidate is a branch off it (`run_branch`); the exit is
searched from a guess (`exit_search`), all rows of a batch at once, each at its own timestep, and a branch stops as soon
as its predicted clean image decides (`early_decision`). Two cheaper measures need no trajectory: `critical_scale` and
the `gap` of every caption.

Source: the basin and the transition are those of arXiv 2411.16738, section 3; the scalar width, its interval and the
search are ours.
"""
