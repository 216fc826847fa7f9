"""Tests, which mirror the package; `reference` holds what they compare with."""
