"""Stage "text": a tokenizer and a small UMT5 encoder that learn to read captions of the drawn world.

The encoder is trained to name, from every one of its output tokens, what the caption says: class, colour, setting and
motion, or that it does not say. After that it is frozen, and the transformer finds the attributes in whatever token it
attends to.
"""

from __future__ import annotations

import copy
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysora import worlds
from pysora.models.text import TextEncoder
from pysora.training.loop import Run, optimizers

WIDTH, LAYERS, HEADS, HIDDEN = 256, 3, 8, 384
VOCABULARY = 2048
TEXT_LENGTH = 64
REFINE, KEEP = 0.3, 4.0
"""Of an encoder that a transformer was trained with: share of the full rate at which it goes on, and the weight of its
tokens' squared distance from what they were."""
HEAD_STEPS = 300
"""Steps that tell what a finished encoder's tokens say."""
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


def train_tokenizer(folder: Path, rng: np.random.Generator) -> Any:
    """Learn a unigram vocabulary (Chinese by characters and short pieces) and save it in the transformers layout."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # A unigram trainer never cuts across these bounds: words, punctuation, and every Chinese character alone.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}|[^\w\s]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789"),
        show_progress=False,
    )
    tokenizer.train_from_iterator((caption(rng)[0] for _ in range(30000)), trainer)
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
    return UMT5EncoderModel(config)


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
    """Train for `minutes` in all; returns the folder that holds `text_encoder/` and `tokenizer/`."""
    if start is not None:
        return refine(folder, minutes, resume, start)
    out = folder / "text" / "final"
    tokenizer = train_tokenizer(out / "tokenizer", np.random.default_rng(1))
    reader = Reader(build_encoder(len(tokenizer)))
    run = _run(folder, reader, minutes, resume, 1.0)
    rng = np.random.default_rng([1, run.steps])

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        texts, targets = zip(*(caption(rng) for _ in range(64)), strict=True)
        ids, mask = tokenize(tokenizer, list(texts))
        return naming_loss(reader(ids, mask), torch.tensor(targets), mask), {}, len(texts)

    run.train(step)
    return _finish(run, reader, tokenizer, out)


def refine(folder: Path, minutes: float, resume: bool, start: Path) -> Path:
    """Go on with the encoder in `start`, for a transformer that knows its tokens: these stay where a caption was read
    right, and what is misread is read again until it is right."""
    out = folder / "text" / "final"
    text = TextEncoder.load(start / "text_encoder", start / "tokenizer", dtype=torch.float32)
    text.tokenizer.save_pretrained(out / "tokenizer")
    known, reader = copy.deepcopy(text.model).requires_grad_(False), Reader(text.model.train())
    _fit_heads(reader, text.tokenizer)
    run = _run(folder, reader, minutes, resume, REFINE)
    rng = np.random.default_rng([1, run.steps])
    misread: deque[tuple[str, list[int]]] = deque(maxlen=512)

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        again = [misread.popleft() for _ in range(min(32, len(misread)))]
        told = again + [caption(rng) for _ in range(64 - len(again))]
        texts, targets = zip(*told, strict=True)
        ids, mask = tokenize(text.tokenizer, list(texts))
        wanted = torch.tensor(targets)
        hidden = reader.hidden(ids, mask)
        before = known(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = reader.name(hidden)
        misread.extend(told[i] for i in torch.nonzero(~_right(logits, wanted, mask))[:, 0].tolist())
        weight = mask * _right(reader.name(before), wanted, mask)[:, None]
        moved = ((hidden - before).square().mean(-1) * weight).sum() / weight.sum().clamp(min=1)
        values = {"moved": float(moved.detach()), "misread": float(len(misread))}
        return naming_loss(logits, wanted, mask) + KEEP * moved, values, len(texts)

    run.train(step)
    return _finish(run, reader, text.tokenizer, out)


def _right(logits: list[Tensor], wanted: Tensor, mask: Tensor) -> Tensor:
    """Which captions are read right in all fields, by the mean of their tokens' logits; bool `[B]`."""
    weight = (mask / mask.sum(1, keepdim=True))[..., None]
    guesses = torch.stack([(each * weight).sum(1).argmax(-1) for each in logits], 1)
    return (guesses == wanted).all(1)


def _fit_heads(reader: Reader, tokenizer: Any) -> None:
    """Learn what the encoder's tokens say as it is; the heads stay so."""
    rng = np.random.default_rng(4)
    adam = torch.optim.Adam(reader.heads.parameters(), lr=0.01)
    for _ in range(HEAD_STEPS):
        texts, targets = zip(*(caption(rng) for _ in range(64)), strict=True)
        ids, mask = tokenize(tokenizer, list(texts))
        with torch.no_grad():
            hidden = reader.hidden(ids, mask)
        loss = naming_loss(reader.name(hidden), torch.tensor(targets), mask)
        adam.zero_grad()
        loss.backward()
        adam.step()
    reader.heads.requires_grad_(False)


def _run(folder: Path, reader: Reader, minutes: float, resume: bool, rate: float) -> Run:
    """A run in `folder` at `rate` of the full learning rate."""
    muon, adam = 0.01 * rate, 2e-3 * rate
    opts = optimizers(reader, lambda n, p: ".block." in n and p.ndim == 2 and min(p.shape) >= 64, muon, adam)
    return Run(folder / "text", reader, opts, minutes, resume, average=0.995, log_every=100)


def _finish(run: Run, reader: Reader, tokenizer: Any, out: Path) -> Path:
    with run.averaged_weights():
        print(f"captions read right: {accuracy(reader, tokenizer):.3f}", flush=True)
        reader.encoder.save_pretrained(out / "text_encoder")
    return out
