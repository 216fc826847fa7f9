"""Bundles: predictions of finished sweeps in a form that others can check, and the page made of them."""

from clipbias.bundles.check import check_bundle
from clipbias.bundles.files import read_bundle
from clipbias.bundles.write import write_bundle

__all__ = ["check_bundle", "read_bundle", "write_bundle"]
