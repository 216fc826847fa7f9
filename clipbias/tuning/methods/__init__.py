"""One file per method, and nothing else: each file's class names its presets, and a new file joins by itself."""
