"""P-values, thresholds with a false-alarm rate, and whether images look like those they rest on."""
