"""The text encoder: UMT5 and its tokenizer through transformers, which is imported only when a text is encoded."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from torch import Tensor

from pysora.checkpoint import CheckpointError, load_weights, read_json, write_json

WEIGHTS = "model"
LONGEST = 512


def clean(prompt: str) -> str:
    """Repair broken encodings, resolve HTML entities (twice: they come nested), collapse white space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class TextEncoder:
    """UMT5 encoder with its tokenizer.

    text_length: rows that a text is padded to with zeros, and at which longer texts are cut.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.text_length = min(int(tokenizer.model_max_length), LONGEST)

    @classmethod
    def load(
        cls,
        encoder: str | Path,
        tokenizer: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> TextEncoder:
        """Load from the folders text_encoder/ and tokenizer/ of a checkpoint. Raises CheckpointError.

        dtype: None keeps what is stored; a float16 encoder keeps the outputs of its feed-forwards in fp32.
        """
        from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

        encoder, tokenizer = Path(encoder), Path(tokenizer)
        values = read_json(encoder / "config.json")
        if values.get("model_type") != "umt5":
            raise CheckpointError(f"{encoder}: model_type must be 'umt5', got {values.get('model_type')!r}")
        try:
            with torch.device("meta"):
                model = UMT5EncoderModel(UMT5Config.from_dict(values))
            model.tie_weights()
        except Exception as error:  # transformers validates with exception classes of its own
            raise CheckpointError(f"{encoder / 'config.json'}: {error}") from error
        keep_fp32 = ("wo",) if dtype == torch.float16 else ()
        load_weights(model, encoder, name=WEIGHTS, dtype=dtype, device=device, keep_fp32=keep_fp32)
        if not (tokenizer / "tokenizer_config.json").is_file():
            raise CheckpointError(f"{tokenizer}: holds no tokenizer_config.json")
        try:
            words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{tokenizer}: not a tokenizer that can be read ({error})") from error
        return cls(model.eval(), words)

    @property
    def tokenizer_class(self) -> str:
        """The name of the tokenizer's class that transformers 4 and 5 both know."""
        name = type(self.tokenizer).__name__
        return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name

    def save(self, encoder: str | Path, tokenizer: str | Path) -> None:
        """Write the folders that `load` and diffusers read."""
        self.model.save_pretrained(encoder)
        self.tokenizer.save_pretrained(tokenizer)
        path = Path(tokenizer) / "tokenizer_config.json"
        # Where this tokenizer was read from is nothing that a copy should say.
        settings = {k: v for k, v in read_json(path).items() if k not in ("is_local", "local_files_only")}
        write_json(path, {**settings, "tokenizer_class": self.tokenizer_class})

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompts and their lengths in tokens.

        Returns (embeds [B, M, text_dim] in the encoder's dtype, zero at and past a prompt's length; lengths int64 [B],
        on the CPU). M is the longest length; the rows up to `text_length` that are not returned would all be zero.
        Raises ValueError where there is no prompt, TypeError where one is not a string.
        """
        if not prompts:
            raise ValueError("prompts must hold at least one text, got none")
        wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if wrong:
            raise TypeError(f"prompts must be strings, got {type(wrong[0]).__name__}")
        batch = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="longest",
            padding_side="right",
            max_length=self.text_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = batch.attention_mask.to(self.model.device)
        embeds = self.model(batch.input_ids.to(self.model.device), mask).last_hidden_state
        return embeds.masked_fill(mask[..., None] == 0, 0.0), batch.attention_mask.sum(dim=1)
