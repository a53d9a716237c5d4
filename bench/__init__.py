"""Benchmarks: verify, then time both sides alternately. `python -m bench --help` lists them."""
