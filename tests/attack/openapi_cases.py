"""
``make fuzz-openapi``: requests drawn from the OpenAPI document, valid and not, with the key of each scope, with one for
everything, with an unknown one and with none. Every answer must be one that the document declares, and what a key may
not do is refused. The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.access.key_file import ALL_SCOPES, AccessKey, KeyScope, add_key, hash_of
from app.http.application import create_app
from app.settings import Settings
from tests.attack.served import served
from tests.chaos.inputs import food_kitchen
from tests.services import reachable_folder

DOCUMENT = create_app(Settings(api_keys="any")).openapi()
# Schemathesis would draw Authorization, too, or leave out what we send: who calls is for us to say
NEEDED = {
    f"{method.upper()} {path}": operation.pop("security", None)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}
# Longer ones never reach the application: the server that speaks HTTP ends the connection
MAX_QUERY_LENGTH = 32_768
EVERYTHING, UNKNOWN, NOBODY = "everything", "unknown", "nobody"
CALLERS = (EVERYTHING, *KeyScope, UNKNOWN, NOBODY)
# Negative data needs something to violate: an operation without body and query takes any request
DRAWS = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or list(operation.body) or list(operation.query)
]


@dataclass
class AnswerTally:
    """What came of the cases so far."""

    cases: int = 0
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    callers: collections.Counter[str] = field(default_factory=collections.Counter)


def write_keys(path: Path) -> Path:
    """A file with a key for each caller that has one; its value is ``secret_of`` it."""
    for scope in KeyScope:
        add_key(path, AccessKey(scope.replace(":", "-"), frozenset({scope}), hash_of(secret_of(scope).encode())))
    add_key(path, AccessKey(EVERYTHING, ALL_SCOPES, hash_of(secret_of(EVERYTHING).encode())))
    return path


def secret_of(caller: str) -> str:
    """The value of a caller's key."""
    return f"fuzz-{caller}-secret"


def check_drawn(
    url: str,
    label: str,
    mode: GenerationMode,
    *,
    examples: int,
    seed_number: int,
    callers: tuple[str, ...],
    tally: AnswerTally,
) -> None:
    """Draw and send *examples* requests of an operation; raises what is wrong with the first wrong answer."""
    operation = OPERATIONS[label]

    @seed(seed_number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.booleans(), st.sampled_from(callers))
    def check(case: Any, name_a_domain: bool, caller: str) -> None:
        if isinstance(case.query, dict) and len(urlencode(case.query, doseq=True)) > MAX_QUERY_LENGTH:
            return
        if mode is GenerationMode.POSITIVE:
            _complete(case, label, name_a_domain=name_a_domain)
        headers = {} if caller == NOBODY else {"Authorization": f"Bearer {secret_of(caller)}"}
        answer = case.call(base_url=url, headers=headers, timeout=30)
        tally.cases += 1
        tally.statuses[str(answer.status_code)] += 1
        tally.callers[caller] += 1
        # Without the checks that take a shape for the whole truth: a well-shaped request may still be over a limit,
        # ask for unknown items to be errors, or send a cursor that nobody gave it
        excluded = [positive_data_acceptance]
        if answer.status_code in (401, 403, 413):  # whether the rest of it was right, nobody looked
            excluded.append(negative_data_rejection)
        if case.media_type == "multipart/form-data":  # in a form every value is text, and an empty one is none
            excluded.append(negative_data_rejection)
        if label == "GET /readyz" and answer.status_code == 503:  # its answer on a machine too busy for its checks
            excluded.append(not_a_server_error)
        case.validate_response(answer, excluded_checks=excluded)
        if answer.status_code == 404 and answer.json()["type"] == "about:blank":
            parts = case.path_parameters or {}
            breaks = ["\n" in unquote(str(part)) for part in parts.values()]  # no route takes a line break
            assert any(breaks), f"{answer.text[:300]} {parts}"
        else:
            _check_caller(label, caller, answer.status_code)
        if mode is GenerationMode.POSITIVE and answer.status_code == 422:
            assert answer.json()["type"] != "urn:taesar:problem:invalid-request", answer.text[:300]

    try:
        check()
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):  # Schemathesis 4.32 cannot judge some files that it draws
            raise


def _complete(case: Any, label: str, *, name_a_domain: bool) -> None:
    """What OpenAPI cannot say of a valid request."""
    if name_a_domain and label == "POST /regenerate":
        case.body["target_domain"] = "kitchen"  # no draw would hit upon it, and all would end at the 404
    query = case.query if isinstance(case.query, dict) else {}
    if "source_item" in query:
        query.setdefault("source_domain", "food")  # the one needs the other
    if label in ("POST /jobs", "POST /previews") and isinstance(case.body, dict):
        if not case.body.get("result_uri"):  # these need it
            for name in ("result_format", "result_view"):
                case.body.pop(name, None)
        case.body.pop("carry", None)  # some names are taken
        if case.media_type == "application/json" and not case.body.keys() & {"source_uri", "sources"}:
            case.body["source_uri"] = "file:///nowhere/mixed.csv"  # one of the two is needed


def _check_caller(label: str, caller: str, status: int) -> None:
    """Whoever lacks a key or its scope is refused, and nobody else for that."""
    security = NEEDED[label]
    if security is None:
        assert status not in (401, 403)
        return
    needed = security[0]["key"]
    if caller in (UNKNOWN, NOBODY):
        assert status == 401, status
    elif caller != EVERYTHING and needed and caller not in needed:
        assert status in (403, 422), status  # 422: an unknown query parameter, which is looked at first
    else:
        assert status != 401


def main() -> int:
    """Send the cases; 1 when an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    began, tally = time.monotonic(), AnswerTally()
    wrong: list[str] = []
    runs = list(_runs())
    examples = -(-arguments.cases // len(runs))
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=10)
        options = {
            "api_keys_file": str(write_keys(folder / "keys")),
            "key_requests_per_second": 0,
            "max_sequences_per_request": 3,
            "max_items_per_sequence": 5,
            "key_queued_sequences": 3,
        }
        with served(folder / "service", bundle, path.parent, **options) as cluster:
            number = 0
            # Some operations have few different requests, and are drawn out before their share is sent
            while tally.cases < arguments.cases and len(wrong) < 20:
                for label, mode, caller in runs:
                    number += 1
                    try:
                        check_drawn(
                            f"http://127.0.0.1:{cluster.port}",
                            label,
                            mode,
                            examples=examples,
                            seed_number=arguments.seed + number,
                            callers=(caller,),
                            tally=tally,
                        )
                    except Exception as error:  # whatever is wrong with it, the others are to be seen, too
                        wrong.append(f"{label} {mode.value} {caller}: {str(error)[:1500]}")
                        print(wrong[-1], flush=True)  # noqa: T201
                    if caller == NOBODY:
                        print(f"{label}, {mode.value}: {tally.cases:,} cases so far", flush=True)  # noqa: T201
    report = {
        "cases": tally.cases,
        "seed": arguments.seed,
        "statuses": dict(sorted(tally.statuses.items())),
        "callers": dict(sorted(tally.callers.items())),
        "num_wrong": len(wrong),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report))  # noqa: T201
    return 1 if wrong else 0


def _runs() -> Iterator[tuple[str, GenerationMode, str]]:
    for label, mode in DRAWS:
        for caller in CALLERS:
            yield label, mode, caller


if __name__ == "__main__":
    sys.exit(main())
