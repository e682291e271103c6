"""Stage "text": a tokenizer and a small UMT5 encoder that learn to read captions of the drawn world.

The encoder is trained to name, from every one of its output tokens, what the caption says: class, colour, setting and
motion, or that it does not say. After that it is frozen, and the transformer finds the attributes in whatever token it
attends to.
"""

from __future__ import annotations

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
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
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
        weight = (mask / mask.sum(1, keepdim=True))[..., None]
        guesses = torch.stack([(logits * weight).sum(1).argmax(-1) for logits in reader(ids, mask)], 1)
    return float((guesses == torch.tensor(targets)).all(1).float().mean())


def train(folder: Path, minutes: float, resume: bool, start: Path | None = None) -> Path:
    """Train for `minutes` in all; returns the folder that holds `text_encoder/` and `tokenizer/`."""
    out = folder / "text" / "final"
    if start is None:
        tokenizer = train_tokenizer(out / "tokenizer", np.random.default_rng(1))
        reader = Reader(build_encoder(len(tokenizer)))
    else:
        text = TextEncoder.load(start / "text_encoder", start / "tokenizer", dtype=torch.float32)
        text.tokenizer.save_pretrained(out / "tokenizer")
        tokenizer, reader = text.tokenizer, Reader(text.model.train())
    opts = optimizers(reader, lambda n, p: ".block." in n and p.ndim == 2 and min(p.shape) >= 64, 0.01, 2e-3)
    run = Run(folder / "text", reader, opts, minutes, resume, average=0.995, log_every=100)
    rng = np.random.default_rng([1, run.steps])

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        texts, targets = zip(*(caption(rng) for _ in range(64)), strict=True)
        ids, mask = tokenize(tokenizer, list(texts))
        wanted = torch.tensor(targets)
        loss = torch.zeros(())
        for field, logits in enumerate(reader(ids, mask)):
            each = F.cross_entropy(logits.transpose(1, 2), wanted[:, field, None].expand_as(ids), reduction="none")
            loss = loss + (each * mask).sum() / mask.sum()
        return loss, {}, len(texts)

    run.train(step)
    with run.averaged_weights():
        print(f"captions read right: {accuracy(reader, tokenizer):.3f}", flush=True)
        reader.encoder.save_pretrained(out / "text_encoder")
    return out
