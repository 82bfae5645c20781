"""
``make chaos``: seeded rounds of a 10,000-sequence Food-Kitchen job while everything is killed; the last line is JSON.

In every round each worker, the API, Redis and PostgreSQL are killed with -9 once, at random moments. The result and
the mapping must equal those of an undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from tests.chaos.cluster import Cluster
from tests.chaos.inputs import food_kitchen
from tests.chaos.rounds import disturbed, redelivery_seconds, undisturbed
from tests.services import reachable_folder

ROUND_SECONDS = 900


def main() -> int:
    """Run the rounds; 1 when one of them differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=3, help="0: embedded mode, the API alone")
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=arguments.sequences)
        differing, seconds = [], []
        with Cluster(folder / "chaos", bundle, path.parent, num_workers=arguments.workers) as cluster:
            expected = undisturbed(cluster, path, "kitchen", seconds=ROUND_SECONDS)
            assert expected.state == "succeeded"
            for seed in range(arguments.seed, arguments.seed + arguments.rounds):
                found = disturbed(cluster, path, "kitchen", seed=seed, seconds=ROUND_SECONDS)
                seconds.append(found.seconds)
                equal = found.outcome == expected
                if not equal:
                    differing.append(seed)
                print(  # noqa: T201
                    f"seed {seed}: {'equal' if equal else 'DIFFERS'} after {found.seconds:.1f} s: "
                    + ", ".join(f"{name} at {moment:.0%}" for moment, name in found.disturbances),
                    flush=True,
                )
        redelivery = None
        if arguments.workers:
            with Cluster(folder / "redelivery", bundle, path.parent, num_workers=1) as cluster:
                redelivery = redelivery_seconds(cluster, path, "kitchen", seconds=ROUND_SECONDS)
    print(  # noqa: T201
        json.dumps(
            {
                "rounds": arguments.rounds,
                "differing_seeds": differing,
                "sequences": arguments.sequences,
                "workers": arguments.workers,
                "counts": expected.counts,
                "median_round_seconds": round(statistics.median(seconds), 2) if seconds else None,
                "kill_to_end_seconds": None if redelivery is None else round(redelivery, 2),
            }
        )
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
