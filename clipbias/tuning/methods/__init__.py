"""One file per method: each class names its presets, and `tuning.registry` finds new files.

The option `recipe` of a method is "common", the project's recipe, or "authors", that of the method's authors.
"""
