"""Bundles: predictions of finished sweeps in a form that others can check, and the page made of them."""
