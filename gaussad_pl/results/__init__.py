"""Results of a run: metrics, figures, provenance and the run folder."""
