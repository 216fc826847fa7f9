"""The names of what is put in a method's place: replacement forms, from few numbers to many, and controls."""

CONSTANTS = ("vector", "kind", "outliers", "token")
RANKS = (1, 2, 4, 8)
REPLACEMENT_FORMS = (*CONSTANTS, *(f"rank{rank}" for rank in RANKS))
REPLACEMENT_FORM_NAMES = {
    "vector": "one vector per layer",
    "kind": "two vectors per layer (one for the pooled token, one for all others)",
    "outliers": "three vectors per layer (one more for outlier tokens)",
    "token": "one vector per layer and position",
    **{f"rank{rank}": f"an affine map of the token of rank {rank} per layer" for rank in RANKS},
}
# The form that controls are made of, and that texts have under affine maps of image tokens.
PLAIN = "kind"
# Methods that learn a constant: that it stands for them is no finding.
CONSTANT_METHODS = ("bias", "bias_by_kind")
RANDOM = "random"
SHUFFLED = "shuffled"
ANOTHER_SEED = "another seed"
ANOTHER_DATASET = "another dataset"
