"""Models: NSFSE, the baselines, their parts, and how weights are read and written."""
