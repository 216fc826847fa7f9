"""Training and evaluating: the mesh, the step, the loop, checkpoints, grids of runs and their results."""
