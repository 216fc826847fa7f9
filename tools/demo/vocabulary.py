"""A small byte-pair vocabulary in CLIP's own format.

As in CLIP, words are lower-cased and split into bytes, the last of which carries the suffix `</w>`; merges join
frequent neighbours. All 256 bytes are in the vocabulary, so every name can be written, if not in one token.
"""

import heapq
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from clipbias.io import write_text
from tools.demo.corpus import caption_words

END_OF_WORD = "</w>"
START = "<|startoftext|>"
END = "<|endoftext|>"

COMMON_WORDS = """
the of and to in is you that it he was for on are as with his they be at one have this from or had by hot word but
what some we can out other were all there when up use your how said an each she which do their time if will way
about many then them write would like so these her long make thing see him two has look more day could go come did
number sound no most people my over know water than call first who may down side been now find any new work part
take get place made live where after back little only round man year came show every good me give our under name
very through just form sentence great think say help low line differ turn cause much mean before move right boy old
too same tell does set three want air well also play small end put home read hand port large spell add even land
here must big high such follow act why ask men change went light kind off need house picture try us again animal
point mother world near build self earth father head stand own page should country found answer school grow study
still learn plant cover food sun four between state keep eye never last let thought city tree cross farm hard start
might story saw far sea draw left late run while press close night real life few north open seem together next white
children begin got walk example ease paper group always music those both mark often letter until mile river car feet
care second book carry took science eat room friend began idea fish mountain stop once base hear horse cut sure
watch color face wood main enough plain girl usual young ready above ever red list though feel talk bird soon body
dog family direct leave song measure door product black short class wind question happen complete ship area half
rock order fire south problem piece told knew pass since top whole king space heard best hour better true during
hundred five remember step early hold west ground interest reach fast six table travel less morning ten simple
several vowel toward war lay against pattern slow center love person money serve appear road map rain rule govern
pull cold notice voice unit power town fine certain fly fall lead cry dark machine note wait plan figure star box
noun field rest correct able pound done beauty drive stood contain front teach week final gave green oh quick
develop ocean warm free minute strong special mind behind clear tail produce fact street inch multiply nothing
course stay wheel full force blue object decide surface deep moon island foot system busy test record boat common
gold possible plane dry wonder laugh thousand ago ran check game shape equate miss brought heat snow tire bring yes
distant fill east paint language among cat airplane automobile truck frog deer flower forest lake church bridge desk
lamp pizza bread cheese apple orange banana grape lemon cake coffee tea wine beer rice meat soup salad chicken bear
lion tiger wolf fox rabbit mouse rat snake turtle whale shark dolphin bee ant butterfly spider train bus bicycle
motorcycle helicopter rocket tower castle garden beach desert highway crop residential industrial pasture texture
fabric leather metal glass stone brick marble
"""


def learn_merges(words: dict[str, int], count: int) -> list[tuple[str, str]]:
    """The `count` most useful merges for weighted `words`; ties go to the alphabetically first pair."""
    spelled = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in words}
    weight: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)
    # The best pair is on top. A pair whose weight has changed is there again, and its former entries are passed over.
    best_first: list[tuple[int, tuple[str, str]]] = []

    def add(word: str, times: int) -> set[tuple[str, str]]:
        pairs = list(itertools.pairwise(spelled[word]))
        for pair in pairs:
            weight[pair] += times * words[word]
            holders[pair].add(word)
        return set(pairs)

    for word in words:
        add(word, 1)
    best_first = [(-number, pair) for pair, number in weight.items()]
    heapq.heapify(best_first)
    merges: list[tuple[str, str]] = []
    while best_first and len(merges) < count:
        number, best = heapq.heappop(best_first)
        if number != -weight[best] or not number:
            continue
        merges.append(best)
        changed = set()
        for word in holders.pop(best):
            changed |= add(word, -1)
            symbols = spelled[word]
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = [best[0] + best[1]]
                i += 1
            changed |= add(word, 1)
        for pair in changed:
            heapq.heappush(best_first, (-weight[pair], pair))
    return merges


def byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, in CLIP's (GPT-2's) order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def build(size: int = 1536) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary (token to id) of at most `size` tokens, and its merges in order."""
    words = dict.fromkeys(COMMON_WORDS.split(), 2)
    words.update(caption_words())
    symbols = byte_symbols()
    merges = learn_merges(words, size - 2 * len(symbols) - 2)
    tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def tokenizer(size: int = 1536) -> Any:
    """The vocabulary as a `transformers.CLIPTokenizer`."""
    from transformers import CLIPTokenizer

    vocabulary, merges = build(size)
    pairs: Any = merges  # annotated there as lines of text, which it takes too
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=32)


def siglip_tokenizer(size: int = 1536) -> Any:
    """The same vocabulary as SigLIP has its own: no start, the end of a text is its padding too, and no mask of it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer(size).backend_tokenizer
    end = (END, backend.token_to_id(END))
    backend.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[end])
    names: dict[str, Any] = dict(pad_token=END, eos_token=END, unk_token=END, model_input_names=["input_ids"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def write(folder: Path, size: int = 1536) -> None:
    """Adds the files of CLIP's original tokenizer format, which older programs read."""
    vocabulary, merges = build(size)
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")
