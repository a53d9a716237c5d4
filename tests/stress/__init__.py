"""A campaign to break the library: `python -m tests.stress.NAME`; the tests run it in short."""
