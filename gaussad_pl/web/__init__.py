"""Web server of `gaussad_pl.demo`: that of Python, with limits on the resources a client can use."""
