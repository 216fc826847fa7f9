"""An independent rendering of CLIP, the tuning methods and the explanations, in plain NumPy float64.

It is written from the papers and the original authors' code, on the names of a Hugging Face state dict, with
explicit loops and no cleverness, to be compared with what the package computes. It imports nothing of the package.
"""
