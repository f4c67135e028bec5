"""Results of a run: metrics, decisions, figures, provenance and the run folder."""
