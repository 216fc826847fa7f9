"""Every method under one protocol: the same draws, backbone and splits, from zero-shot CLIP to tuned weights.

    python -m experiments.table1 --config=configs/compare.py --config.data_dir=/data --workdir=/results/compare

and on the embedded demo model and datasets, nothing to download, with 4 images per class and two seeds:

    python -m experiments.table1 --config=configs/compare.py:demo

Methods whose authors train otherwise than this project do so here where its own recipe would be no training of theirs;
the table says which. `--config.method_options.NAME.recipe=authors`, or `common`, decides for one method.
"""

from ml_collections import ConfigDict

from configs import demo, table1

METHODS = (
    "zero_shot",
    # Prompts in one tower or both, alone and beside a frozen teacher.
    *("vpt", "visual_prompting", "coop", "upl", "cocoop"),
    *("kgcoop", "prograd", "tcp", "proda", "plot", "plot_plus_plus"),
    *("ivlp", "ivlp_matched", "ivlp_matched_2", "promptsrc", "maple", "mmrl"),
    # Heads on frozen features.
    *("taskres", "linear_probe", "clip_adapter", "tip_adapter", "tip_adapter_f", "gda", "lp_plus_plus", "clap"),
    # Changes of weights.
    *("bias", "bias_by_kind", "bitfit", "layer_norm", "two_stage", "mma", "clip_lora", "prolip"),
)


def get_config(where: str = "paper") -> ConfigDict:
    config = {"paper": table1.get_config, "demo": demo.get_config}[where]()
    config.methods = METHODS
    from clipbias.tuning.registry import make_method, method_options  # a method's own file knows its recipe

    # So that a command line can choose the recipe of each method that has two.
    for name in METHODS:
        if "recipe" in (options := method_options(make_method(name))):
            config.method_options[name] = ConfigDict({"recipe": options["recipe"]})
    config.workdir = "workdir/compare"
    if where == "demo":
        config.shots, config.workdir = (4,), "workdir/compare_demo"
        config.method_options.visual_prompting.epochs = 100  # of a thousand, which would take as long as all others
    return config
