"""A benchmark of explanations: models whose mechanism is known by construction, and rules that name it."""
