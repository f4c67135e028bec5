"""Sweeps: job folders, hardware shares, launching, resuming, and Hydra sweepers for grid and Optuna search."""
