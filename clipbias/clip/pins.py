"""Which commit of the official repositories is loaded where no revision is asked for.

A run is repeated only if it reads the same bytes. `main` can move, and a pull request on the hub (`refs/pr/N`) can be
opened by anybody and change at any time, so both are named by commit. Of two commits with the same weights the one on
`main` is taken, even where a bot's pull request holds safetensors: it comes from the owner and does not go away when a
pull request is closed. The commit with safetensors can be asked for, as
"openai/clip-vit-base-patch16@5ef227a78de3f75873f373246dac80def63b0003".
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pin:
    """One commit of a repository.

    Attributes:
      commit: its 40 hexadecimal digits.
      weights: the weight file that is read.
      sha256: of that file where it is known; otherwise the hub's own word, given with the list of files, counts.
    """

    commit: str
    weights: str
    sha256: str | None = None


PINS = {
    "openai/clip-vit-base-patch16": Pin("57c216476eefef5ab752ec549e440a49ae4ae5f3", "flax_model.msgpack"),
    "openai/clip-vit-base-patch32": Pin("3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268", "flax_model.msgpack"),
    "openai/clip-vit-large-patch14": Pin(
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "model.safetensors",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
    "openai/clip-vit-large-patch14-336": Pin(
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        "pytorch_model.bin",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    ),
}
