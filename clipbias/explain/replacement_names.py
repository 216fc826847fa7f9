"""The names of what is put in a method's place: forms of the mean of what its blocks add, and controls."""

REPLACEMENT_FORM_NAMES = {
    "vector": "one vector per layer",
    "kind": "two vectors per layer (one for the pooled token, one for all others)",
}
REPLACEMENT_FORMS = tuple(REPLACEMENT_FORM_NAMES)
# The form that conclusions are drawn on, and that controls have.
PLAIN = "kind"
# Methods that learn a constant: that it stands for them is no finding.
CONSTANT_METHODS = ("bias", "bias_by_kind")
RANDOM = "random"
ANOTHER_DATASET = "another dataset"
