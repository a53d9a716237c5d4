"""A campaign to break the library: `python -m tests.stress.NAME` is long, the tests run it in short."""
