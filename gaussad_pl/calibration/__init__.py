"""Conformal p-values, thresholds for a target false-alarm rate, and drift detection."""
