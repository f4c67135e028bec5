"""Data modules: finding, checking, splitting, decoding and augmenting images."""
