"""What a browser would find in a page."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """Tags, links and text; fails on a tag closed out of order, and on a script in an attribute."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.tags = []
        self.links = []
        self.words = []
        self.folded = []
        self.unfolded = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.links += [named[name] for name in ("src", "href") if name in named]
        if tag == "details":
            (self.unfolded if "open" in named else self.folded).append(named.get("id"))
        assert not any(name.startswith("on") for name in named)
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))
