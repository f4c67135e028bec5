"""What `python -m gaussad_pl.report` is made of. It reads files only: no torch, no Lightning."""
