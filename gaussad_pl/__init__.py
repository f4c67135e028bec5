"""Gaussian anomaly detection with fine-tuned representations: a PyTorch Lightning experiment framework."""

__version__ = "0.1.0"
