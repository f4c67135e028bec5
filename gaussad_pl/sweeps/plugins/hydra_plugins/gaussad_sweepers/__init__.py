"""Sweepers of gaussad_pl, in the namespace package hydra_plugins, the only place where Hydra looks for plugins."""
