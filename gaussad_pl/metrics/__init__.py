"""Metrics of anomaly scores and anomaly maps."""
