"""Alignment potential (arXiv 2503.01864): `margins` is the metric, `logps` measures, `selection` keeps pairs."""
