"""
The whole of Taesar on real data in a minute or two: prepare, train, serve, regenerate over HTTP.

    python examples/demo.py [folder] [--keep]

With --keep the service stays up until Ctrl-C, and its pages at /ui show all of it in a browser. Some users are taken
out of the sample before anything sees it; at the end the service rewrites the history of one of them for each domain.
Everything is written to the folder (``demo-run``), which is emptied first.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
from rich.console import Console
from rich.table import Table

SAMPLE = Path(__file__).with_name("food-kitchen-sample.csv.gz")
SEED = 2025
NUM_HELD_BACK = 40
SHOWN_ITEMS = 20
SHOWN_PAIRS = 5
READY_SECONDS = 60
STOP_SECONDS = 20
# Enough for experts that tell the domains apart; the defaults train to the best epoch and take far longer.
BRIEFLY = ("--epochs", "10", "--expert-epochs", "4", "--learning-rate", "0.002", "--no-trial")

console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> None:
    """Run the demo; a step that fails ends it with that step's exit code."""
    started = time.perf_counter()
    keep = "--keep" in sys.argv[1:]
    folder = Path(next((argument for argument in sys.argv[1:] if argument != "--keep"), "demo-run"))
    empty(folder)
    held_back = hold_back_users(folder / "interactions.csv")
    dataset, bundle = folder / "dataset", folder / "bundle"
    taesar("prepare", folder / "interactions.csv", "--out", dataset)
    taesar("train", dataset, "--out", bundle, *BRIEFLY)
    targets = pl.read_parquet(dataset / "vocabulary.parquet")["domain"].unique(maintain_order=True).to_list()
    for target in targets:
        taesar("regenerate", bundle, dataset, "--target", target, "--out", folder / target)
        show_mapping(pl.read_parquet(folder / target / "mapping.parquet"), target)
        evaluate(folder, target)
    with service(bundle, log=folder / "service.log") as client:
        for target in targets:
            show_sequence(*best_known(held_back, regenerate(client, held_back, target)), target)
        submit_jobs(client, folder / "interactions.csv", targets)
        seconds = time.perf_counter() - started
        console.print(f"\n[bold]Done in {seconds:.0f} s.[/bold] Everything it wrote is in {folder}/.")
        if keep:
            stay_up(client)
            return
    console.print("`make demo KEEP=1` ends with the address of a page that shows all of this, and stays up.")


def empty(folder: Path) -> None:
    """Make *folder*, without what an earlier demo left there; refuse to empty any other folder."""
    mark = folder / ".taesar-demo"
    if folder.exists():
        if not mark.exists():
            sys.exit(f"{folder} exists and is not a demo's; name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark.touch()


def hold_back_users(rest: Path) -> list[dict[str, Any]]:
    """Write the sample without some users to *rest*; return theirs as the service takes them, oldest item first."""
    table = pl.read_csv(SAMPLE, schema_overrides={"user": pl.String, "item": pl.String})
    users = random.Random(SEED).sample(sorted(table["user"].unique()), NUM_HELD_BACK)
    table.filter(~pl.col("user").is_in(users)).write_csv(rest)
    console.rule("Data", align="left")
    console.print(
        f"{table.height:,} real interactions of {table['user'].n_unique():,} people with groceries and kitchenware;\n"
        f"{NUM_HELD_BACK} people are held back: no stage sees them before the last."
    )
    return [
        {
            "user_id": user,
            "items": table.filter(pl.col("user") == user)
            .sort("timestamp", maintain_order=True)
            .select(item_id="item", domain="domain")
            .to_dicts(),
        }
        for user in users
    ]


def taesar(*arguments: str | Path) -> None:
    """Run one command of ``taesar`` as a reader would, and show it."""
    console.rule(str(arguments[0]).capitalize(), align="left")
    console.print(f"[bold]$ taesar {shlex.join(map(str, arguments))}[/bold]", soft_wrap=True, highlight=False)
    # Threads that wait without spinning: twice as fast where others use the same cores, and a demo cannot know.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run([executable(), *map(str, arguments)], check=False, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def evaluate(folder: Path, target: str) -> None:
    """A report of recommenders that count, which takes seconds; the page shows it."""
    quickly = ("--recommender", "popularity,markov", "--seeds", "1", "--ranking", "unseen")
    made = ("--bundle", folder / "bundle", "--composite", folder / target)
    taesar("evaluate", folder / "dataset", "--target", target, *made, *quickly, "--out", folder / "reports" / target)


def submit_jobs(client: httpx.Client, interactions: Path, targets: list[str]) -> None:
    """A job for every target over all that was read: its decisions are the mappings that the page shows."""
    console.rule("POST /jobs", align="left")
    for target in targets:
        with interactions.open("rb") as file:
            data = {"target_domain": target, "purpose": "training"}
            job = client.post("/jobs", data=data, files={"file": (interactions.name, file)}).raise_for_status().json()
        while job["state"] in ("queued", "running"):
            time.sleep(0.2)
            job = client.get(f"/jobs/{job['job_id']}").raise_for_status().json()
        counts = job["counts"]
        console.print(f"{target}: {job['state']}, {counts['sequences']:,} sequences, {counts['replaced']:,} replaced")


def stay_up(client: httpx.Client) -> None:
    """Leave the service running for a browser until Ctrl-C."""
    console.print(f"\nThe page: [bold]{client.base_url}/ui[/bold]   (Ctrl-C ends it)", highlight=False)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def executable() -> str:
    """The ``taesar`` beside the running interpreter."""
    return str(Path(sys.executable).with_name("taesar"))


@contextlib.contextmanager
def service(bundle: Path, *, log: Path) -> Iterator[httpx.Client]:
    """A client of a real server of *bundle* on a free port; the server ends with the block, whatever happens in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", "--bundle", str(bundle), "--port", str(port)]
    console.rule("Serve", align="left")
    console.print(f"[bold]$ taesar {shlex.join(command)}[/bold]", soft_wrap=True, highlight=False)
    # A setting of the reader's own service, a key for instance, is not for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAESAR_")}
    environment["TAESAR_DATA"] = str(bundle.parent / "service")
    environment["TAESAR_REPORTS"] = str(bundle.parent / "reports")
    with log.open("w") as output:
        server = subprocess.Popen([executable(), *command], stdout=output, stderr=output, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            wait_until_ready(client, server, log)
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(client: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once /readyz says yes; end the demo with the server's log when it dies or stays silent."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    sys.exit(f"the server is not ready; its log:\n{log.read_text()}")


def regenerate(client: httpx.Client, sequences: list[dict[str, Any]], target: str) -> dict[str, Any]:
    """POST /regenerate with every decision explained."""
    console.rule(f"POST /regenerate, target {target}", align="left")
    answer = client.post("/regenerate", json={"target_domain": target, "explain": True, "sequences": sequences})
    if answer.is_error:
        sys.exit(f"{answer.status_code}: {answer.text}")
    return dict(answer.json())


def show_sequence(before: dict[str, Any], after: dict[str, Any], target: str) -> None:
    """One held-back person's history: what each of the latest items became, then the counts and the new sequence."""
    steps = {step["position"]: step for step in after["steps"]}
    table = Table("item", "domain", "what became of it", "alpha", "beta", "margin", box=None, pad_edge=False)
    for position, item in list(enumerate(before["items"]))[-SHOWN_ITEMS:]:
        step = steps.get(position)
        if step is None:
            # Steps tell of other domains' items only; a target item that the model knows is in the answer.
            kept = item["domain"] == target and item["item_id"] in after["items"]
            fate = "kept" if kept else "[dim]unknown to the model, skipped[/dim]"
            table.add_row(item["item_id"], item["domain"], fate)
            continue
        fate = f"[green]-> {step['item_id']}[/green]" if step["action"] == "replaced" else "[red]deleted[/red]"
        numbers = (step["alpha"], step["beta"], step["margin"])
        table.add_row(item["item_id"], item["domain"], fate, *("" if n is None else f"{n:.3f}" for n in numbers))
    console.print(f"Held-back user {before['user_id']}, the latest {min(SHOWN_ITEMS, len(before['items']))} items:")
    console.print(table)
    # The answer's numbers are its counts: together they are as many as the items that were sent.
    counts = ", ".join(
        f"{count} {what.replace('_', ' but ')}" for what, count in after.items() if isinstance(count, int) and count
    )
    console.print(f"{len(before['items'])} items: {counts}. The {target} sequence, {len(after['items'])} items:")
    console.print(" ".join(after["items"]), highlight=False)


def show_mapping(mapping: pl.DataFrame, target: str) -> None:
    """The most frequent source -> target pairs over all training sequences."""
    pairs = mapping.drop_nulls("target_item").sort("count", "source_item", descending=[True, False]).head(SHOWN_PAIRS)
    table = Table("source item", f"{target} item", "times", "share of its decisions", box=None, pad_edge=False)
    for source, item, count, share in pairs.select("source_item", "target_item", "count", "share").iter_rows():
        table.add_row(source, item, str(count), f"{share:.0%}")
    console.print(f"Top of the mapping, {mapping['count'].sum():,} decisions over all sequences:")
    console.print(table if len(pairs) else "nothing was replaced")


def best_known(before: list[dict[str, Any]], answer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The held-back person whose items the model knows best, before and after: it has the most to show."""
    pairs = zip(before, answer["sequences"], strict=True)
    return min(pairs, key=lambda pair: pair[1]["unknown"] / len(pair[0]["items"]))


if __name__ == "__main__":
    main()
