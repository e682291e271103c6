"""Stage "text": a tokenizer and a small UMT5 encoder that learn to read captions of the drawn world.

The encoder is trained to name, from every one of its output tokens, what the caption says: class, colour, setting and
motion, or that it does not say. After that it is frozen, and the transformer finds the attributes in whatever token it
attends to.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysora import worlds
from pysora.models.text import TextEncoder
from pysora.training.loop import Run, optimizers
from pysora.training.precision import autocast

WIDTH, LAYERS, HEADS, HIDDEN = 256, 3, 8, 384
TEXT_LENGTH = 64
CAPTIONS = 30000
"""Captions whose words become the vocabulary."""
UNKNOWN = -20.0
"""Logarithm of a letter's probability: far below that of the rarest word."""
ORDERED = 12
"""Of 64 captions, how many name both sides: among all captions they are 7 %."""
NEIGHBOURS, ATTRACTION = (1, 9, 2, 10), 5.0
"""The first heads begin with a bias for one neighbour each: the token before, the one after, and those beyond. Without,
biases grow too slowly for the order of words to be learnt at all."""
KEEP = 4.0
"""Of an encoder in another's place: weight of its tokens' squared distance from where that one had them."""
FIELDS = (
    ("cls", worlds.CLASSES),
    ("colour", worlds.COLOURS),
    ("setting", worlds.SETTINGS),
    ("motion", worlds.MOTIONS),
)


def caption(rng: np.random.Generator) -> tuple[str, list[int]]:
    """A caption of a combination that is not held out, and the index it names per field; len(names) where none."""
    attributes = worlds.sample_attributes(rng, held_out=False)
    told = worlds.captions(attributes, rng)
    return told.text, [
        names.index(getattr(attributes, field)) if field in told.mentioned else len(names) for field, names in FIELDS
    ]


def ordered(rng: np.random.Generator) -> tuple[str, list[int]]:
    """A caption, as `caption` makes them, that names both sides: the order of its words alone says where to."""
    while True:
        text, named = caption(rng)
        words = set(re.findall("[a-z]+|[左右]", text.lower()))
        if {"left", "right"} <= words or {"左", "右"} <= words:
            return text, named


def train_tokenizer(folder: Path, rng: np.random.Generator) -> Any:
    """A unigram vocabulary: the captions' words and Chinese characters, and letters for what no caption says.

    folder: where it is saved, in the transformers layout.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}|[^\w\s]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    counts: Counter[str] = Counter()
    for _ in range(CAPTIONS):
        counts.update(word for word, _ in words.pre_tokenize_str(normalizer.normalize_str(caption(rng)[0])))
    total = sum(counts.values())
    # The trainer of unigram models finds what words share, and cut most of them into letters: these words are few.
    pieces = [(word, math.log(count / total)) for word, count in sorted(counts.items())]
    letters = [(letter, UNKNOWN) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789" if letter not in counts]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces, *letters], unk_id=len(special) - 1))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )
    wrapped.save_pretrained(folder)
    return wrapped


def build_encoder(vocabulary: int) -> Any:
    """A small UMT5 encoder with random weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    torch.manual_seed(0)
    encoder = UMT5EncoderModel(config)
    with torch.no_grad():
        for name, bias in encoder.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                for head, bucket in enumerate(NEIGHBOURS):
                    bias[bucket, head] += ATTRACTION
    return encoder


class Reader(nn.Module):
    """The encoder with one linear head per field; the heads are thrown away after training."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList([nn.Linear(WIDTH, len(names) + 1) for _, names in FIELDS])

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """ids, mask: int64 `[B, M]`. returns: per field, logits `[B, M, names + 1]`."""
        return self.name(self.hidden(ids, mask))

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The encoder's tokens, `[B, M, WIDTH]`."""
        tokens: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return tokens

    def name(self, hidden: Tensor) -> list[Tensor]:
        """What tokens say, per field, logits `[B, M, names + 1]`."""
        return [head(hidden) for head in self.heads]


def tokenize(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """ids and mask, int64 `[B, M]`."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def accuracy(reader: Reader, tokenizer: Any, count: int = 512, seed: int = 10**6) -> float:
    """Share of new captions that are read right in all four fields (mean of the tokens' logits)."""
    rng = np.random.default_rng(seed)
    texts, targets = zip(*(caption(rng) for _ in range(count)), strict=True)
    with torch.no_grad():
        ids, mask = tokenize(tokenizer, list(texts))
        return float(_right(reader(ids, mask), torch.tensor(targets), mask).float().mean())


def naming_loss(logits: list[Tensor], wanted: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of all tokens' names. logits: per field `[B, M, names + 1]`; wanted: int64 `[B, fields]`."""
    loss = torch.zeros(())
    for field, each in enumerate(logits):
        names = wanted[:, field, None].expand_as(mask)
        loss = loss + (F.cross_entropy(each.transpose(1, 2), names, reduction="none") * mask).sum() / mask.sum()
    return loss


def train(folder: Path, minutes: float, resume: bool, start: Path | None = None) -> Path:
    """Train for `minutes` in all; returns the folder that holds `text_encoder/` and `tokenizer/`.

    start: a checkpoint whose encoder this one takes the place of, for a transformer that knows its tokens.
    """
    out = folder / "text" / "final"
    tokenizer = train_tokenizer(out / "tokenizer", np.random.default_rng(1))
    reader = Reader(build_encoder(len(tokenizer)))
    table = None if start is None else meanings(start)
    opts = optimizers(reader, lambda n, p: ".block." in n and p.ndim == 2 and min(p.shape) >= 64, 0.01, 2e-3)
    run = Run(folder / "text", reader, opts, minutes, resume, average=0.995, log_every=100)
    rng = np.random.default_rng([1, run.steps])

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        told = [ordered(rng) for _ in range(ORDERED)] + [caption(rng) for _ in range(64 - ORDERED)]
        texts, targets = zip(*told, strict=True)
        ids, mask = tokenize(tokenizer, list(texts))
        wanted = torch.tensor(targets)
        with autocast():
            hidden = reader.hidden(ids, mask).float()
        loss = naming_loss(reader.name(hidden), wanted, mask)
        if table is None:
            return loss, {}, len(texts)
        away = distance(hidden, mask, one_hot(wanted) @ table)
        return loss + KEEP * away, {"away": float(away.detach())}, len(texts)

    run.train(step)
    with run.averaged_weights():
        print(f"captions read right: {accuracy(reader, tokenizer):.3f}", flush=True)
        reader.encoder.save_pretrained(out / "text_encoder")
    return out


@torch.no_grad()
def meanings(start: Path, count: int = 6400) -> Tensor:
    """Where the tokens of the encoder in `start` stand: what each name of each field adds to them, by least squares.

    Nine tenths of the variance of the tokens were such a sum (docs/training.md). returns: float32 `[names, WIDTH]`.
    """
    text = TextEncoder.load(start / "text_encoder", start / "tokenizer", dtype=torch.float32)
    rng = np.random.default_rng(5)
    named, tokens = [], []
    for _ in range(count // 64):
        texts, targets = zip(*(caption(rng) for _ in range(64)), strict=True)
        embeds, lengths = text.encode(texts)
        named.append(one_hot(torch.tensor(targets)))
        tokens.append(embeds.sum(1) / lengths[:, None])
    x, y = torch.cat(named), torch.cat(tokens)
    table = torch.linalg.lstsq(x, y, driver="gelsd").solution
    # What was misread stands elsewhere.
    away = (x @ table - y).square().sum(1)
    near = away < away.quantile(0.9)
    told: Tensor = torch.linalg.lstsq(x[near], y[near], driver="gelsd").solution
    return told


def distance(hidden: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """Mean square between tokens `[B, M, WIDTH]`, where `mask` `[B, M]` has them, and their captions' `[B, WIDTH]`."""
    return ((hidden - places[:, None]).square().mean(-1) * mask).sum() / mask.sum()


def one_hot(wanted: Tensor) -> Tensor:
    """Names as `caption` gives them, int64 `[B, fields]` -> float32 `[B, names of all fields]`, with "not said"."""
    each = [F.one_hot(wanted[:, field], len(names) + 1) for field, (_, names) in enumerate(FIELDS)]
    return torch.cat(each, 1).float()


def _right(logits: list[Tensor], wanted: Tensor, mask: Tensor) -> Tensor:
    """Which captions are read right in all fields, by the mean of their tokens' logits; bool `[B]`."""
    weight = (mask / mask.sum(1, keepdim=True))[..., None]
    guesses = torch.stack([(each * weight).sum(1).argmax(-1) for each in logits], 1)
    return (guesses == wanted).all(1)
