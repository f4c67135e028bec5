"""Modules behind `python -m gaussad_pl.report`. They only read files and import neither torch nor Lightning."""
