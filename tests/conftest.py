"""Tiny random models made on the fly, and the reference checkpoints where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from latent_tts.backbones import LatentBackbone
from latent_tts.backbones.kinds import KINDS
from latent_tts.evaluation.report.figure_files import figure_bytes

TESTS = Path(__file__).parent
# the same examples in every run, however busy the machine is
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

QUESTIONS = [
    "Ann has 3 apples and buys 4 more. How many?",
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?",
    "5 + 6?",
    "Tom runs 3 sprints of 60 meters 3 times a week. How many meters is that?",
    "There are 12 pens in a box. Eve buys 4 boxes and gives away 7 pens. How many pens are left?",
    "Half of 18?",
    "A train of 9 cars carries 40 people in each car. How many people?",
    "7 days, 3 meals each: how many meals?",
]


PICTURE = {
    "png": bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
        "a5f645400000000049454e44ae426082"
    ),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}
_FIGURE_BYTES = "latent_tts.evaluation.report.figure_files.figure_bytes"


@pytest.fixture(scope="session", autouse=True)
def undrawn_figures() -> Iterator[None]:
    """A figure of a run is made, and one dot is saved in its place: drawing takes most of the time of a small evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_FIGURE_BYTES, lambda figure, kind: PICTURE[kind])
        yield


@pytest.fixture(scope="module")
def drawn_figures(undrawn_figures) -> Iterator[None]:
    """Figures are saved as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_FIGURE_BYTES, figure_bytes)
        yield


@pytest.fixture(scope="session", autouse=True)
def docstrings_are_read_once() -> Iterator[None]:
    """A command's parser reads the docstrings of all classes that it offers: most of the time that refusing bad input takes."""
    from jsonargparse import _optionals

    read, options = _optionals.parse_docstring, _optionals.get_docstring_parse_options
    known = cache(lambda component, params, _: read(component, params))

    def parse(component: Any, params: bool = False, logger: Any = None) -> Any:
        return known(component, params, options()["attribute_docstrings"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_optionals, "parse_docstring", parse)
        yield


@pytest.fixture
def questions() -> list[str]:
    """Eight questions of very different lengths, so that padding matters."""
    return list(QUESTIONS)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference checkpoints with expected outputs."""
    return TESTS / "reference"


@pytest.fixture(scope="session")
def excerpts() -> Path:
    """Some rows of each file of the data folder, under the same names."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def whole_sets() -> Path:
    """The data folder with the whole sets, where LATENT_TTS_DATA names one."""
    folder = os.environ.get("LATENT_TTS_DATA")
    if not folder:
        pytest.skip("LATENT_TTS_DATA names no folder with the whole sets (docs/data.md)")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable:
    """Makes a byte-level tokenizer of single bytes, the end-of-text token and the special tokens of a kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(special_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({char: i + 1 for i, char in enumerate(alphabet)} | {"<|endoftext|>": 0}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        end = "<|endoftext|>"
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end)
        fast.add_tokens(list(special_tokens))
        return fast

    return make


@pytest.fixture(scope="session")
def tiny_causal_lm() -> Callable:
    """Makes a random GPT-2 or Llama small enough for a test, with weights large enough that its answers differ.

    Its heads are 16 wide, the least that the kernels serve on every processor.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def make(layout: str, vocab_size: int, seed: int = 0, **overrides):
        common: dict[str, Any] = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        common |= {"initializer_range": 0.15} | overrides
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if layout == "gpt2":
                config: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
                return GPT2LMHeadModel(GPT2Config(**(config | common))).eval()
            config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
            config |= {"num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": None}
            return LlamaForCausalLM(LlamaConfig(**(config | common | {"pad_token_id": None}))).eval()

    return make


@pytest.fixture(scope="session")
def tiny_backbone(tiny_tokenizer, tiny_causal_lm) -> Callable[..., LatentBackbone]:
    """Makes a random backbone: ``tiny_backbone(kind, layout, num_latents=3, seed=0, **config)``."""

    def make(kind: str = "coconut", layout: str = "gpt2", num_latents: int = 3, seed: int = 0, **overrides):
        cls = KINDS[kind]
        tokenizer = tiny_tokenizer(cls.special_tokens)
        model = tiny_causal_lm(layout, len(tokenizer), seed, **overrides)
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            backbone = cls(model, tokenizer, num_latents=num_latents)
        return backbone.eval()

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random COCONUT with 3 latents."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-random"
    tiny_backbone("coconut", "gpt2", num_latents=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def problem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 different problems in eight lengths, three of each."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    texts = [f"Round {turn}. {question}" for turn in range(3) for question in QUESTIONS]
    path.write_text("".join(json.dumps({"question": q, "answer": str(i % 10)}) + "\n" for i, q in enumerate(texts)))
    return path


@pytest.fixture
def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every hub client answer as it does on a machine without network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def unknown_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that does not say at which commit a data set is."""

    def dataset_info(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)


HUB_COMMIT = "89abcdef" * 5


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Puts rows in place of the hub: ``fake_hub({(hub id, split): rows})``; gives what is asked for, call by call.

    Every set has one commit, at which all of its rows have to be read, whatever revision is asked for.
    """
    import datasets

    def make(sets: dict[tuple[str, str], list[dict]], commit: str = HUB_COMMIT) -> list[tuple]:
        asked: list[tuple] = []
        revisions: dict[str, tuple[str, ...]] = {}

        def dataset_info(self, repo_id, *, revision=None, timeout=None):
            revisions[repo_id] = () if revision is None else (revision,)
            return SimpleNamespace(sha=commit)

        def load_dataset(path, name=None, *, split, streaming, revision):
            assert streaming and revision == commit
            asked.append((path, name, split, *revisions[path]))
            rows = sets[path, split]
            return datasets.IterableDataset.from_generator(lambda: iter(rows))

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
        return asked

    return make
