"""Fixtures that several test folders share: a small prepared dataset and a small bundle, real parts throughout."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import structlog
import torch

from models.bundle import Bundle, save_bundle
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.network.decoder import Decoder, DecoderConfig
from models.vocabulary import Vocabulary
from tests.silent_skips import pytest_configure  # noqa: F401 - a hook: pytest finds it by its name here

# GPU kernels run as they are where there is a GPU, elsewhere in Triton's interpreter, which has to be asked for before
# Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Where nothing configures logging, a traceback is drawn with the values of its variables: seconds for each of ours
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

DOMAINS = ("books", "food", "kitchen")
ITEMS_PER_DOMAIN = 20


def random_decoder(num_items: int, seed: int, *, scale: float = 0.3, max_length: int = 32) -> Decoder:
    """A decoder whose logits differ clearly between items, as trained ones do, without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = DecoderConfig(num_items=num_items, width=16, inner_width=16, max_length=max_length, init_std=scale)
        return Decoder(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """Three domains of 20 items: books-00 .. kitchen-19."""
    return Vocabulary(DOMAINS, tuple(tuple(f"{d}-{i:02d}" for i in range(ITEMS_PER_DOMAIN)) for d in DOMAINS))


@pytest.fixture(scope="session")
def bundle(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of four random decoders over ``vocabulary``, 32 positions, saved and loaded."""
    networks = [random_decoder(vocabulary.num_items, seed) for seed in range(4)]
    directory = tmp_path_factory.mktemp("bundle") / "tiny"
    return save_bundle(
        directory, vocabulary=vocabulary, base=networks[0], experts=networks[1:], provenance={"dataset": "random"}
    )


def write_interactions(path: Path, *, num_users: int = 60, seed: int = 7) -> Path:
    """A CSV of interactions in three domains; the next item's number follows the last one's, so it can be learned."""
    source = random.Random(seed)
    lines = ["user,item,domain,timestamp"]
    for user in range(num_users):
        step = source.randrange(ITEMS_PER_DOMAIN)
        for time in range(18):
            domain = DOMAINS[time % 3] if time < 9 else source.choice(DOMAINS)
            step = (step + 1) % ITEMS_PER_DOMAIN
            lines.append(f"u{user:03d},{domain}-{step:02d},{domain},{1_000 + 10 * time}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """``write_interactions`` prepared with the default rules."""
    folder = tmp_path_factory.mktemp("dataset")
    prepare(write_interactions(folder / "interactions.csv"), folder / "prepared", PreparationConfig())
    return load_dataset(folder / "prepared")
