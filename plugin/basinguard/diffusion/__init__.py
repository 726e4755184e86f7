"""Noise schedules, solvers and sampling as pure functions, and a memorizer in closed form as ground truth."""
