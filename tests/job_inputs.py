"""Inputs of jobs for tests, benchmarks and ``make chaos``."""

import json
import random


def sequences(num_sequences, *, seed=3, domains=("books", "food", "kitchen"), num_items=20):
    """Mixed sequences of the test bundle's items, as POST /regenerate takes them."""
    source = random.Random(seed)
    made = []
    for user in range(num_sequences):
        items = []
        for _ in range(source.randint(1, 14)):
            domain = source.choice(domains)
            items.append({"item_id": f"{domain[0]}{source.randrange(num_items):02d}", "domain": domain})
        made.append({"user_id": f"user-{user}", "items": items})
    return made


def write_ndjson(path, rows):
    """One JSON object per line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path
