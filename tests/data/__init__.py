"""Tests of clipbias.data."""
