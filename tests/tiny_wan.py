"""Tiny random checkpoints of both families, made and saved by diffusers: the oracle of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

FAMILIES = ("wan2.1", "wan2.2")
TEXT_LENGTH = 24
Z = 4


def tokenizer() -> PreTrainedTokenizerFast:
    """Characters of the ASCII range and some of the two well-known prompts, closed by </s> as T5 does."""
    alphabet = [chr(c) for c in range(33, 127)] + sorted(set("一只猫坐在窗台上看日落雪地中的狗狗奔跑"))
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "▁": 3} | {c: i + 4 for i, c in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )


def text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=160, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0, pad_token_id=0
    )
    return UMT5EncoderModel(config).eval()


def transformer(family: str) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=Z,
        out_channels=Z,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    ).eval()


def vae(family: str) -> AutoencoderKLWan:
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.8, 1.1, 2.0]}
    shape = {"base_dim": 4, "z_dim": Z, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, **statistics}
    if family == "wan2.1":
        return AutoencoderKLWan(**shape).eval()
    return AutoencoderKLWan(
        **shape,
        decoder_base_dim=6,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ).eval()


def oracle(family: str, seed: int = 0) -> WanPipeline:
    """A random WanPipeline whose prompts, guidance and weights all matter for the result."""
    torch.manual_seed(seed)
    parts = transformer(family), vae(family), text_encoder()
    with torch.no_grad():
        for part in parts:
            for name, weight in part.named_parameters():
                # Norm gains and biases start at 1 and 0, which would hide that they are mixed up.
                if weight.ndim == 1 or name.endswith("gamma"):
                    weight.add_(0.2 * torch.randn_like(weight))
    pipeline = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=parts[2],
        vae=parts[1],
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        transformer=parts[0],
        expand_timesteps=family == "wan2.2",
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def saved(family: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a tiny checkpoint."""
    path = folder / family
    oracle(family, seed).save_pretrained(path)
    return path
