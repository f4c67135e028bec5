"""Command lines: parsing, validation of the configuration, and errors in one line."""
