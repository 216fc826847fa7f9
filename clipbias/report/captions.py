"""A figure together with what a reader needs to trust it: its caption and its numbers.

Titles and captions of all figures, as templates: what stands in braces a figure fills in.

They share these rules, which a caption need not repeat: intervals hold 95 %, and models of the paper's figures are
zero-shot CLIP in blue and the tuned one in orange.
"""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.io import atomic_path
from clipbias.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RELEVANCY = """
Relevancy of {what} for the logit of the true class (Chefer et al. 2021; Eq. 13–16), mean over test images that
zero-shot gets wrong and the tuned model right ({counts}). Each image's row is divided by its sum. Bands and whiskers
are 95 % intervals. Zero-shot's text is {text}.
"""

# By kind of figure: its title and its caption.
CAPTIONS: dict[str, tuple[str, str]] = {
    "gains": (
        "What each method gains over zero-shot CLIP",
        """Points of top-1 accuracy over zero-shot CLIP ({zero_shot} %), {over} and {seeds}, {shots}. Lines are 95 %
        intervals over test images, compared in pairs, and seeds. Shaded: methods with the same number of learned
        parameters. A mean number of parameters is one over datasets, where it grows with the classes.""",
    ),
    "verdict": (
        "Where each method acts, and what it adds",
        """Shares of the gain in calibrated log-likelihood. Attention alone: all else frozen. Tokens alone: attention
        frozen. All added: to image tokens, against nothing. Of that: means over training images, another
        image's, and the exchange, own less another image's. Dashed: ¼ and ½, which decide labels. Lines: 95 %.""",
    ),
    "verdict_overview": (
        "Where each method acts, and what it adds",
        """{datasets}. Shares of the gain in calibrated log-likelihood. Attention alone: the tuned model's attention,
        all else frozen. Tokens alone: what is added to tokens, attention frozen. All that is added: to image tokens,
        against nothing. Of that: its mean over training images, by kind of token and by position; what is added for
        another image; and the exchange, an image's own less another image's. Dashed: ¼ and ½, by which labels are
        decided. Lines are 95 % intervals over images and seeds. A method without a sure gain is left out.""",
    ),
    "replacements": (
        "What two vectors per layer are in each method's place",
        """{message} Above: the share of the method's gain over the frozen model in calibrated log-likelihood; a point
        is missing where that gain is not sure. Below: of the images whose decision tuning moved, those that get the
        same decision. Fitted: to the method's outputs of training images without labels, with as many steps as the
        ceiling. On labels: trained on those of the method's own few-shot split. Mean: of what the tuned blocks add.
        Dotted: 0 and 100 %. Lines are 95 % intervals over images, and over seeds where there are several. A fit is a
        lower bound on what a form can do.""",
    ),
    "fig1_decomposition": (
        "What prompts do to attention",
        """The output of attention is a part from input tokens plus a part from prompts (Eq. 12); {counts}. (a)
        Attention mass m on prompts; inputs keep 1 − m, so the paper's ½ (dotted) is m = 0.5. Dots are heads. (b)
        Norm of the prompt part over the sum of both parts' norms; they are equal at the dotted line. (c) Share of
        the prompt part's mean square that its average over samples explains, token by token or with one vector
        for all tokens, corrected for chance: a bias is at 1. Shaded: layers beyond the prompts' depth. (d) Cosine
        between that vector and a learned bias of the same layer. Whiskers of (a) and (b) are 95 % intervals over
        samples.""",
    ),
    "fig2_text_relevancy": (
        "Relevancy of text tokens",
        f"""{_RELEVANCY} Left: by token, without SOS, prompts shaded; tokens after the end of a name count 0. Right:
        sums by kind of token; prompts are learned, words are those of a text that stay frozen.""",
    ),
    "fig3_vision_relevancy": (
        "Relevancy of patches and vision prompts",
        f"""{_RELEVANCY} Left: patches row by row, then prompts on the same scale; a prompt's number adds up what its
        slot gave in all layers. Then sums by kind of token, and the patches as maps on one scale per model.""",
    ),
    "relevancy_groups": (
        "Relevancy of corrected images, the control, and all",
        """Relevancy for the logit of the true class by kind of token, over three groups of images: corrected, which
        zero- shot gets wrong and the tuned model right, and which are selected by their changed decision; both
        right, the control; and all ({counts}). Right: rank correlation (1: the same order) and total variation
        (0: nothing moved) between both models' relevancy of the patches. Whiskers are 95 % intervals. Zero-shot's
        text is {text}.""",
    ),
    "fig4_text_attention": (
        "Attention of the EOS token",
        """Attention of the EOS token in the text tower by kind of token, summed over the tokens of a kind: mean
        over heads and over {counts}. Whiskers are 95 % intervals over classes. Prompts are learned tokens, words
        those of a text that stay frozen: {texts}.""",
    ),
    "fig5_vision_attention": (
        "Attention distance and entropy",
        """Vision tower, mean over {counts} of {dataset}; dots are heads, the line is their mean with its 95 %
        interval, and the dashed line is zero-shot's. Distance: for each patch query, attention times the distance
        between patch centres in pixels of the {size}-pixel input, without [cls]. Entropy: −Σ a ln a of a row;
        dotted: uniform attention over {keys}, ln {tokens} = {uniform:.4f}. W/O Prompt: prompts are dropped and rows
        renormalised. W Prompt: prompts stay and count 0 in the distance. {missing}""",
    ),
    "fig6_similarity": (
        "[cls] attention and likeness to the prompts: {label}",
        """{label} on {dataset}. [cls] maps: attention of [cls] to the patches, mean over heads, of the original and
        of the tuned model. Prompt similarity: 1 minus the Euclidean distance between prompt and patch tokens at
        the block's input (mean over the prompts). Maps are bilinear and scaled to 0 … 1 each. Shown are {shown} of
        {counts}.""",
    ),
    "fig6_rank_correlation": (
        "Whether [cls] attention and likeness to the prompts are opposed",
        """Spearman's rank correlation, over the patches of an image, between the tuned model's [cls] attention and
        the patches' similarity to the prompts; mean and 95 % interval over images ({counts}). The paper says that
        the two are opposed: a value near −1.""",
    ),
    "faithfulness": (
        "Whether the maps point at what matters",
        """Perturbation test (Chefer et al. 2021) on {dataset} ({counts}): patches are set to zero in the order of a
        map, and accuracy is measured. Most relevant first should hurt at once (lower is better), least relevant
        first should hurt late (higher is better).""",
    ),
    "examples": (
        "Relevancy on example pictures",
        """Relevancy (Eq. 13–16) for the logit of the true class on {dataset}, {counts}. Heat maps: patches,
        bilinear, each scaled to 0 … 1; the bar beside a map is the vision prompts' share of the whole row. Below:
        the text's tokens up to EOS, the darker the more relevant, on the scale of the largest after SOS; of
        several texts of a class the first. Titles give the model and what it predicts.""",
    ),
    "dataset_relevancy": (
        "Relevancy of {what}: {label}",
        """{label} in orange against zero-shot in blue, one panel per dataset, by token index: mean relevancy for the
        true class over the n test images that zero-shot gets wrong and the tuned model right; bands and whiskers
        are 95 % intervals. Zero-shot's text is {text}.""",
    ),
    "norms": (
        "Norms of what was learned",
        """Euclidean norms of learned prompts (contexts at layer 1) and biases, mean over prompts and over a method's
        adapters. Dotted, where computed: the mean norm of the tokens that they join in the tuned model. Prompts
        join the other tokens at the layer's input (at layer 1 before position embeddings in the text tower and
        before the pre-LayerNorm in the vision tower); biases join all tokens at the layer's output.""",
    ),
    "projection": (
        "{methods}: what was learned in the {tower} tower",
        """Each point is one of {count} adapters: {arrays}, flattened to one vector and projected on the two
        directions of most variance (PCA). Colours are datasets, markers {by}s. {sentence}""",
    ),
}


@dataclasses.dataclass(frozen=True)
class CaptionedFigure:
    """One figure with its words and numbers.

    Attributes:
      name: the stem of its files.
      title: what it shows, in a few words.
      caption: whole sentences: the definition of every quantity, the number of samples, the options used.
      figure: the matplotlib figure.
      numbers: one observation per row.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
    numbers: pd.DataFrame

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Writes NAME.pdf, NAME.png and NAME.csv and returns their paths. Raises `ClipbiasError` where it cannot."""
        pdf, png = style.save_figure(self.figure, folder / self.name)
        table = folder / f"{self.name}.csv"
        write_csv(table, self.numbers)
        return pdf, png, table


def captioned(kind: str, figure: "Figure", numbers: pd.DataFrame, *, name: str = "", **facts: Any) -> CaptionedFigure:
    """The figure with the title and the caption of its kind.

    Args:
      kind: a key of `CAPTIONS`.
      name: the stem of its files, if not its kind.
      facts: what the templates leave open.
    """
    title, caption = CAPTIONS[kind]
    return CaptionedFigure(
        name or kind, title.format(**facts), " ".join(caption.format(**facts).split()), figure, numbers
    )


def file_name(text: str) -> str:
    """Letters, digits, dots and underscores only: `demo/digits` becomes `demo_digits`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.") or "unnamed"


def write_csv(path: Path, numbers: pd.DataFrame) -> None:
    """Writes a table atomically. Numbers keep all their digits; the cell of one that is not finite is left empty."""
    with atomic_path(path) as temporary:
        numbers.replace([np.inf, -np.inf], np.nan).to_csv(temporary, index=False, lineterminator="\n")
