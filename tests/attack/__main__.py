"""``make attack``: every attack once, a line each that ends in ``right`` or ``wrong: why``; the last line is JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.attack.attacks import ATTACKS, Target
from tests.chaos.inputs import food_kitchen
from tests.services import reachable_folder


def main() -> int:
    """Attack; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; all by default")
    parser.add_argument("--sequences", type=int, default=4000, help="of the job that runs beside")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - ATTACKS.keys():
        parser.error(f"no attack is called {', '.join(sorted(unknown))}")
    wrong: dict[str, str] = {}
    began = time.monotonic()
    with reachable_folder() as folder:
        target = Target(folder, *food_kitchen(folder, num_sequences=arguments.sequences))
        chosen = {name: attack for name, attack in ATTACKS.items() if name in (arguments.names or ATTACKS)}
        for name, attack in chosen.items():
            started = time.monotonic()
            try:
                reason = attack(target)
            except Exception as error:  # an attack that cannot be made is none that was withstood
                reason = f"{type(error).__name__}: {error}"
            if reason is not None:
                wrong[name] = reason
            seconds = time.monotonic() - started
            said = "right" if reason is None else f"wrong: {reason}"
            print(f"{name} ({seconds:.0f} s): {said}", flush=True)  # noqa: T201
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"attacks": len(chosen), "right": len(chosen) - len(wrong), "wrong": wrong, "seconds": seconds}))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
