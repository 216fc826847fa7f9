"""A page to play with: zero-shot beside a tuned model on pictures and class names, and what each of them looks at.

`Bench` does the work and needs nothing but this package; the page itself needs the extra `app`.
"""

from clipbias.app.bench import MAPS, Bench, Looked, Side
from clipbias.app.page import build, serve
from clipbias.app.space import write_space

__all__ = ["MAPS", "Bench", "Looked", "Side", "build", "serve", "write_space"]
