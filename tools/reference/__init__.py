"""Checkpoints of one model in every format there is, each made by the format's own writer."""
