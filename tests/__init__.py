"""Tests; a package so that `bench` can import the cases from `tests.cases`."""
