"""Conformal p-values, thresholds for a target false-alarm rate, operating points, and drift detection."""
