"""The zoo: every method under one protocol, on the same backbone and few-shot splits, from zero-shot to tuned weights.

    python -m experiments.table1 --config=configs/zoo.py --config.data_dir=/data --workdir=/results/zoo

and all but three on the embedded demo model and clothes, nothing to download, 16 images per class and five seeds:

    python -m experiments.table1 --config=configs/zoo.py:demo

Besides accuracies, the table of what methods cost groups them by kind (training-free, heads, prompts, weights,
test-time) and gives learned parameters and training time; `accuracy_by_parameters` and `accuracy_by_time` draw both. A
new file in `clipbias/tuning/methods/` joins by itself.

Methods whose authors train otherwise than this project do so here where its own recipe would be no training of theirs;
the table says which. `--config.method_options.NAME.recipe=authors`, or `common`, decides for one method. On the demo
all others have learning rates that were chosen on validation images:

    python -m experiments.table1 --config=configs/zoo.py:demo --config.seeds=1 \\
        --config.learning_rates=0.02,0.1,0.5,2.0 --config.score_on=validation --workdir=workdir/zoo_rates
"""

from ml_collections import ConfigDict

from clipbias.checks import check_choice
from clipbias.tuning.registry import METHODS, make_method, method_options
from configs import demo, table1

PRESETS = {"paper": "the eleven datasets", "demo": "embedded clothes, 16 shots, five seeds"}
# Beside the first name of each method: prompts at the parameter budgets of bias tuning and of bias tuning by kind.
OTHERS = ("ivlp_matched", "ivlp_matched_2")
# On the demo, those that are slow on a CPU: they read 64 views of each test image, or each image four times.
LEFT_OUT = ("tpt", "tpt_coop", "plot_plus_plus")
# On the demo the longest trainings are cut to some 300 steps, as many as the other methods take there.
SHORTER = {
    "visual_prompting": {"epochs": 300},  # of 1,000
    "clip_lora": {"steps_per_shot": 20},  # of 500
    "two_stage": {"steps_per_shot": 20},  # of 300
}


def get_config(where: str = "paper") -> ConfigDict:
    check_choice("the preset", where, tuple(PRESETS))
    config = {"paper": table1.get_config, "demo": demo.get_config}[where]()
    firsts = {next(iter(vars(kind)["presets"])) for kind, _ in METHODS.values()}
    names = firsts.union(OTHERS).difference(LEFT_OUT if where == "demo" else ())
    config.methods = tuple(name for name in METHODS if name in names)
    # So that a command line can choose the recipe of each method that has two.
    for name in config.methods:
        if "recipe" in (options := method_options(make_method(name))):
            config.method_options[name] = ConfigDict({"recipe": options["recipe"]})
    config.workdir = "workdir/zoo"
    if where == "demo":
        config.datasets = ("demo/fashion",)
        config.workdir = "workdir/zoo_demo"
        config.seeds = (1, 2, 3, 4, 5)
        config.rates_file = "zoo_rates.json"
        for name, options in SHORTER.items():
            config.method_options[name].update(options)
    return config
