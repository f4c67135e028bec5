"""The web server of `gaussad_pl.demo`: Python's own, with bounds on what a client can cost."""
