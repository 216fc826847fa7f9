"""What several commands have: the model, the images, tuned adapters, and the recipe of the paper (arXiv 2312.11570).

SGD with momentum 0.9 and weight decay 5e-4, learning rate 0.0025, 10 epochs of which the first is constant at 1e-5 and
the others follow a cosine, batches of 32, the same for every method and dataset.
"""

from ml_collections import ConfigDict


def add_model(config: ConfigDict) -> ConfigDict:
    """The frozen model, and what it reads and computes with."""
    # "demo", a hub name such as "openai/clip-vit-base-patch16", or a local folder or file (docs/models.md). Empty,
    # where adapters may be given, takes theirs, and without any "demo".
    config.model = "openai/clip-vit-base-patch16"
    # Prompt template with {} for the class name; empty takes the dataset's or the adapter's.
    config.template = ""
    # JSON file of texts by class name in place of the template, for classifiers of frozen texts and for teachers;
    # {dataset} in its path stands for the dataset's name. Empty for none.
    config.descriptions = ""
    # What to do with an image that cannot be read: "raise" or "skip" (and count).
    config.on_image_error = "raise"
    # Compute type: "float32", "tensorfloat32" (GPU), "bfloat16_3x" (TPU), "bfloat16", or "auto": the fastest of the
    # device that trains what float32 trains (docs/devices.md).
    config.dtype = "float32"
    # Folder for everything that is written; --workdir takes precedence over it.
    config.workdir = ""
    return config


def add_images(config: ConfigDict) -> ConfigDict:
    """Where the images of datasets are, how they are read, and the devices that they are spread over."""
    # Root folder of the images (not needed by the demo datasets).
    config.data_dir = ""
    # TFDS: "coop" imposes the benchmark's splits, "builder" keeps TFDS's own; empty takes the source's default.
    config.split_source = ""
    # TFDS: folder of the split_zhou_*.json files; empty for none.
    config.split_dir = ""
    # TFDS: file that lists ImageNet's training picks; empty for none.
    config.index_file = ""
    # Threads that read and decode images, which all runs side by side share; 0 takes one for each processor.
    config.workers = 0
    config.mesh = ConfigDict()
    # Devices along the mesh's axis of independent runs (seeds, learning rates); -1 takes all that are left.
    config.mesh.run = 1
    # Devices along the mesh's axis of images and classes; -1 takes all that are left.
    config.mesh.data = -1
    return config


def add_adapters(config: ConfigDict) -> ConfigDict:
    """Tuned adapters, and the model that they are of."""
    # Adapter files, folders of `train` or `table1`, folders of adapter files, or patterns with "*" such as
    # workdir/demo/adapters/bias-*, separated by commas. Commands that take one adapter refuse several; empty stands for
    # zero-shot CLIP where that makes sense.
    config.adapters = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    config.model = ""
    return config


def get_config() -> ConfigDict:
    """The settings that `configs/train.py` and `configs/table1.py` start from."""
    config = add_images(add_model(ConfigDict()))
    # Memory for images in gigabytes, of all runs of a sweep together: two thirds for training images.
    config.cache_gb = 3.0

    # Learning rate of the first epoch after the warm-up, from which it falls along a cosine.
    config.learning_rate = 0.0025
    # JSON file of learning rates by method that take precedence over `learning_rate`, as a choice writes it
    # (`rates.json` in its work folder, docs/runs.md); empty for none.
    config.rates_file = ""
    # Passes over the training images, those of the warm-up among them; 0 for 10, or as many as make 300 steps.
    config.epochs = 10
    # Epochs at the start whose learning rate is constant.
    config.warmup_epochs = 1
    # Learning rate of the warm-up's epochs.
    config.warmup_learning_rate = 1e-5
    # Training images per step of each run, over all devices.
    config.batch_size = 32
    # Momentum of SGD.
    config.momentum = 0.9
    # Weight decay, of what is learned alone.
    config.weight_decay = 5e-4

    # Images per step of evaluation, over all devices.
    config.eval_batch_size = 100
    # What the backward pass keeps of each block: "products", "half", "tokens" (the smallest), or "auto": the fastest
    # that fits the device's memory.
    config.remat = "auto"
    # Parts in which a device takes the classes, one after another, to save memory; 0 chooses.
    config.class_chunks = 0
    # Images of a run that a training step takes at a time, over all devices, to save memory; 0 takes all that fit.
    config.micro_batch = 0
    # Least time between two checkpoints of a run; 0 saves after every step.
    config.checkpoint_seconds = 60.0
    # Who is told the metrics of training steps besides metrics.jsonl: "tensorboard", "wandb" and "trackio", where they
    # are installed; "auto" is TensorBoard where tensorboardX is. () for nobody.
    config.trackers = ("auto",)
    # "steps" writes a trace of a few training steps, for XProf or Perfetto, below the folder of the metrics.
    config.profile = ""
    # Print shapes, parameters and the memory of each program, and stop (`train` and `table1`).
    config.dry_run = False
    # With `dry_run`: devices that are not there, such as "v5e:4x4" or "h100:1x1x8", whose own compilers then tell what
    # programs need (docs/before_you_rent.md); empty takes those of this machine.
    config.topology = ""
    return config
