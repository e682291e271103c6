"""Text conditions of a checkpoint: its encoder is loaded when a text needs it, and embeddings are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pysora.checkpoint import CheckpointError, read_json
from pysora.models.text import LONGEST, TextEncoder

KEPT = 256


class TextConditions:
    """Embeds texts with a checkpoint's encoder.

    The encoder is read from `folder` when a text is not known yet; the embeddings of the last 256 texts are kept.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        if folder is None and encoder is None:
            raise ValueError("text conditions need a checkpoint's folder or an encoder")
        self.folder = None if folder is None else Path(folder)
        self.dtype, self.device = dtype, device
        self._encoder = encoder
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded on first use. Raises CheckpointError."""
        if self._encoder is None:
            assert self.folder is not None
            folders = self.folder / "text_encoder", self.folder / "tokenizer"
            self._encoder = TextEncoder.load(*folders, dtype=self.dtype, device=self.device)
        return self._encoder

    @property
    def text_length(self) -> int:
        """Rows that the transformer attends to: texts are cut there, shorter ones padded. Loads no encoder."""
        if self._encoder is not None or self.folder is None:
            return self.encoder.text_length
        path = self.folder / "tokenizer" / "tokenizer_config.json"
        length = read_json(path).get("model_max_length", LONGEST)
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
            raise CheckpointError(f"{path}: model_max_length must be a number from 1 on, got {length!r}")
        return int(min(length, LONGEST))

    def free(self, larger_than: int = 0) -> bool:
        """Drop the encoder where it can be read again and holds more than `larger_than` bytes; says whether it did."""
        if self.folder is None or self._encoder is None:
            return False
        if sum(p.nbytes for p in self._encoder.model.parameters()) <= larger_than:
            return False
        self._encoder = None
        return True

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Embeddings [B, M, text_dim], zero past a text's length, and the lengths; one row per text.

        A text's embedding does not depend on the others that are encoded with it.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = {text: self._known[text] for text in texts if text in self._known}
        for text in new:
            # One at a time: padding to a longer neighbour would change the last bits.
            embeds, lengths = self.encoder.encode([text])
            found[text] = embeds[0, : int(lengths[0])]
        for text in texts:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return stack([found[text] for text in texts])


def stack(rows: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Embeddings [n, text_dim] of several texts as one [B, M, text_dim], zero past the lengths, and the lengths."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), [len(row) for row in rows]


def trim(embeds: Tensor) -> Tensor:
    """Embeddings [M, text_dim] without the zero rows at the end, which stand for padding."""
    used = embeds.ne(0).any(-1).nonzero()
    return embeds[: int(used[-1]) + 1 if len(used) else 0]
