"""Six sizes by seven budgets, 42 runs, and a law: what most tests of laws are simulated on."""

import numpy as np

SIZES = np.array([1e8, 2e8, 5e8, 1e9, 2e9, 3e9])
BUDGETS = np.array([1e9, 2e9, 5e9, 1e10, 2e10, 5e10, 1e11])
GRID_N, GRID_D = (axis.ravel() for axis in np.meshgrid(SIZES, BUDGETS))
TRUTH = {"E": 1.9, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}
