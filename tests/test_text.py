"""The text encoder against diffusers' WanPipeline with a tiny random UMT5 and a tokenizer made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pysora.checkpoint import CheckpointError
from pysora.models.text import TextEncoder, clean

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [
    "a cat sits on a windowsill watching the sunset",
    "雪地中的狗狗奔跑",
    "  a\tdog &amp;amp; its   ball\n",
    "",
    "dog " * 40,
]


def make_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(PROMPTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=96, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(path / "text_encoder")
    make_tokenizer(32).save_pretrained(path / "tokenizer")
    return path


def load(folder: Path, dtype: torch.dtype | None = None) -> TextEncoder:
    return TextEncoder.load(folder / "text_encoder", folder / "tokenizer", dtype)


def reference(folder: Path, prompts: list[str], text_length: int) -> torch.Tensor:
    """diffusers' own code for prompt embeddings, [B, text_length, text_dim]."""
    stand_in = SimpleNamespace(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
    )
    with torch.no_grad():
        return WanPipeline._get_t5_prompt_embeds(
            stand_in, prompts, max_sequence_length=text_length, device=torch.device("cpu"), dtype=torch.float32
        )


@pytest.mark.parametrize(
    "prompts", [PROMPTS, PROMPTS[:1], PROMPTS[3:4], PROMPTS[4:]], ids=["all", "one", "empty", "cut"]
)
def test_parity(folder: Path, prompts: list[str]) -> None:
    encoder = load(folder)
    embeds, lengths = encoder.encode(prompts)
    want = reference(folder, prompts, encoder.text_length)
    assert embeds.shape[1] == max(lengths) <= encoder.text_length == 32
    assert (embeds - want[:, : embeds.shape[1]]).abs().max() <= 1e-5 * want.abs().max()
    assert not want[:, embeds.shape[1] :].any()
    assert lengths.tolist() == [(row.abs().sum(1) > 0).sum() for row in want]
    for row, n in zip(embeds, lengths, strict=True):
        assert row[n:].abs().sum() == 0


def test_save_and_load(folder: Path, tmp_path: Path) -> None:
    encoder = load(folder)
    encoder.save(tmp_path / "text_encoder", tmp_path / "tokenizer")
    again = load(tmp_path)
    assert again.text_length == encoder.text_length
    for a, b in zip(encoder.encode(PROMPTS), again.encode(PROMPTS), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "feed_forward"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_half_precision(folder: Path, dtype: torch.dtype, feed_forward: torch.dtype) -> None:
    """As transformers does it, bit for bit."""
    encoder = load(folder, dtype)
    theirs = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).eval()
    assert {k: v.dtype for k, v in encoder.model.state_dict().items()} == {
        k: v.dtype for k, v in theirs.state_dict().items()
    }
    assert encoder.model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == feed_forward
    ids = torch.tensor([[5, 9, 1]])
    with torch.no_grad():
        assert torch.equal(encoder.model(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_the_embedding_is_held_once(folder: Path) -> None:
    model = load(folder, torch.bfloat16).model
    assert model.shared.weight is model.encoder.embed_tokens.weight


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS,
        "caf\u00c3\u00a9",
        "&amp;lt;b&amp;gt; &quot;x&quot;",
        "a\u00a0b\u3000c",
        "“curly” — quotes…",
        "ﬁsh",
        "ＡＢＣ，１２３",
    ],
)
def test_cleaning(prompt: str) -> None:
    assert clean(prompt) == prompt_clean(prompt)


def test_cleaning_examples() -> None:
    assert clean("  a &amp;amp; b\n\tc ") == "a & b c"
    assert clean("caf\u00c3\u00a9") == "café"


def test_text_length_is_at_most_512(folder: Path) -> None:
    model = SimpleNamespace()
    assert TextEncoder(model, make_tokenizer(40)).text_length == 40
    assert TextEncoder(model, make_tokenizer(10**30)).text_length == 512


def test_refused_prompts(folder: Path) -> None:
    encoder = load(folder)
    with pytest.raises(ValueError, match="at least one text"):
        encoder.encode([])
    with pytest.raises(TypeError, match="strings, got int"):
        encoder.encode(["a", 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("text_encoder/config.json", '{"model_type": "t5"}', "model_type must be 'umt5', got 't5'"),
        ("text_encoder/config.json", '{"model_type": "umt5", "d_model": "wide"}', r"config\.json"),
        ("text_encoder/config.json", '{"model_type": "umt5", "num_layers": 1}', "do not fit"),
        ("text_encoder/model.safetensors", "{}", r"model\.safetensors: not a whole safetensors file"),
        ("text_encoder/model.safetensors", None, r"holds no model\.safetensors"),
        ("tokenizer/tokenizer_config.json", None, r"holds no tokenizer_config\.json"),
        ("tokenizer/tokenizer.json", "{", "not a tokenizer that can be read"),
    ],
)
def test_broken_folders(folder: Path, tmp_path: Path, file: str, content: str | None, reason: str) -> None:
    load(folder).save(tmp_path / "text_encoder", tmp_path / "tokenizer")
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path)


def test_no_code_from_the_folder_runs(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that brings its own Python class is not given the chance."""
    load(folder).save(tmp_path / "text_encoder", tmp_path / "tokenizer")
    marker = tmp_path / "ran"
    (tmp_path / "tokenizer" / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil:\n    pass\n")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    changes = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(tmp_path)
    assert not marker.exists()


def test_importing_is_lazy() -> None:
    code = "import sys, pysora.models.text; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
