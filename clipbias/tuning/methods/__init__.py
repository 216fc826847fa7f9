"""One file per method, and nothing else: each class names its presets, and a new file joins by itself.

Where a method has an option `recipe`, "common" is the recipe of the project and "authors" that of the method's authors.
"""
