"""The Food-Kitchen sample as a large job: real sequences, repeated under other user names, and a small random model."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from pathlib import Path

import torch

from models.bundle import save_bundle
from models.network.decoder import Decoder, DecoderConfig
from models.vocabulary import Vocabulary

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "food-kitchen-sample.csv.gz"
MAX_LENGTH = 64


def food_kitchen(folder: Path, *, num_sequences: int, width: int = 32) -> tuple[Path, Path]:
    """
    (bundle folder, NDJSON of *num_sequences* sequences), under *folder*.

    The networks are random, spread as trained ones are: what they decide is arbitrary, and the same every time.
    """
    with gzip.open(SAMPLE, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sequences = [
        [{"item_id": row["item"], "domain": row["domain"]} for row in group]
        for _, group in itertools.groupby(rows, key=lambda row: row["user"])
    ]
    domains = tuple(sorted({row["domain"] for row in rows}))
    items = tuple(tuple(sorted({row["item"] for row in rows if row["domain"] == domain})) for domain in domains)
    (folder / "inputs").mkdir()
    path = folder / "inputs" / "food-kitchen.ndjson"
    with path.open("w", encoding="utf-8") as out:
        for number, sequence in zip(range(num_sequences), itertools.cycle(sequences)):
            out.write(json.dumps({"user_id": f"user-{number}", "items": sequence}) + "\n")
    return random_bundle(folder / "bundle", Vocabulary(domains, items), width), path


def random_bundle(directory: Path, vocabulary: Vocabulary, width: int, *, seed: int = 1) -> Path:
    """A bundle of random networks; another seed gives another version with other answers."""
    config = DecoderConfig(
        num_items=vocabulary.num_items,
        width=width,
        inner_width=width,
        num_layers=1,
        num_heads=2,
        max_length=MAX_LENGTH,
        init_std=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [Decoder(config).eval().requires_grad_(False) for _ in range(1 + len(vocabulary.domains))]
    save_bundle(directory, vocabulary=vocabulary, base=networks[0], experts=networks[1:], provenance={"random": True})
    return directory
