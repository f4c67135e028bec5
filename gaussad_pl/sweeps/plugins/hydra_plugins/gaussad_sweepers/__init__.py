"""Sweepers of gaussad_pl: Hydra looks for plugins in the namespace package hydra_plugins, and nowhere else."""
