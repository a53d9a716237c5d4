"""Truncation checked against published and derived results: `python -m bench.science`."""
