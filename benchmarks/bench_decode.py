"""
Decoding: ours, the released loop and the three float32 matrix products alone, interleaved in one process.

    python -m benchmarks.bench_decode
    python -m benchmarks.bench_decode --vocabularies 100000 --domains 4 --rounds 9 --million

The last line is JSON. Every time is in milliseconds per source position: items of other domains after the first
position of a sequence, 32 sequences of 43 items on average.

ours       Regenerator.regenerate by rule `paper`: encoder, decisions, assembly
anticipate the same by rule `anticipate`, the default, which asks the target expert alone, once per run of source items
products   h_T E_T' + h_M E_M' + h_S E_S' for the same positions into memory at hand, the faster of two block sizes
decide     the decisions alone, on the hidden states of 256 positions, and so are products and plain
plain      decide_in_blocks, the definition in torch
released   benchmarks/released.py on the same batch. Its [32, 128, V] logits of D + 1 networks take 9 GB at 100,000
           items, so they are timed on fewer rows and multiplied, and so is the time of one scoring call of all 32
           rows at real steps, by the number of calls; `released_whole` is the loop run through, where it fits.

Peak memory is that of a fresh process that holds the networks and does one batch; torch alone is `import`.

With --device cuda everything is on the GPU, 2,048 positions are decided, memory is what torch allocates there, tokens
are compared with the CPU's, and `ceilings` tells what the GPU gives at most in this run: the shares are what a decision
takes of it by its three products and by reading three tables once for all positions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import released
from benchmarks.measure import (
    BATCH,
    CPU,
    MAX_LENGTH,
    Clock,
    available_megabytes,
    ceilings,
    interleaved_seconds,
    machine,
    peak_megabytes,
    random_bundle,
    random_decoder,
    random_sequences,
    rounded,
    token_ranges,
)
from models.bundle import Bundle
from models.data.dataset import pad_right
from models.decoding.blocks import View
from models.decoding.contrastive import decide, decide_in_blocks
from models.decoding.paper import PAPER
from models.decoding.regenerator import Regenerator
from models.kernels.paper_rule import Decisions
from models.vocabulary import TokenRange

# What is timed on whole sequences; the rest on hidden states at hand.
WHOLE = ("ours", "anticipate")
SIDES = ("import", "ours", "released")
VOCABULARIES = (8_000, 32_000, 100_000, 184_860)
MILLION = 1_000_000
TARGET = 0
# Positions of the decisions alone; a GPU wants more to be busy.
SAMPLES = {"cpu": 256, "cuda": 2048}
PRODUCT_ROWS = {"cpu": (32, 256), "cuda": (256, 2048)}
# Memory that the baseline's logits may take while it is timed on some rows, and when it is run through.
ROWS_MEGABYTES = 1_000
WHOLE_MEGABYTES = 500
SCORING_CALLS = 3
# Leads below this may turn with the order of a sum.
FLOAT_MARGIN = 1e-4


def bench(num_items: int, num_domains: int, rounds: int, clock: Clock, device: torch.device = CPU) -> dict[str, Any]:
    """Times and ratios of one shape."""
    bundle, sequences = random_bundle(num_items, num_domains, device), random_sequences(BATCH, num_items)
    regenerator, target = Regenerator(bundle, "paper"), bundle.vocabulary.domains[TARGET]
    anticipating = Regenerator(bundle, "anticipate")
    results = regenerator.regenerate(sequences, target)
    num_scored = sum(int(np.count_nonzero(result.steps.positions > 0)) for result in results)
    num_sampled = SAMPLES[device.type]
    views = _views(bundle, num_sampled)
    target_range = bundle.vocabulary.token_ranges[TARGET]
    roles = dict(zip(("target_expert", "base", "source_expert"), views, strict=True))
    out = torch.empty(max(PRODUCT_ROWS[device.type]), num_items + 1, device=device)
    programs = {
        "ours": lambda: regenerator.regenerate(sequences, target),
        "anticipate": lambda: anticipating.regenerate(sequences, target),
        "decide": lambda: _decide(roles, target_range),
        **{f"products_{rows}": lambda rows=rows: _products(views, rows, out) for rows in PRODUCT_ROWS[device.type]},
        "plain": lambda: decide_in_blocks(PAPER, **roles, target_range=target_range),
    }
    seconds = interleaved_seconds(programs, rounds, clock, device)
    each = {name: 1e3 * value / (num_scored if name in WHOLE else num_sampled) for name, value in seconds.items()}
    each["products"] = min(each.pop(f"products_{rows}") for rows in PRODUCT_ROWS[device.type])
    baseline = _released_seconds(bundle, sequences, rounds, clock, device)
    each |= {name: 1e3 * value / num_scored for name, value in baseline.items()}
    return {
        "vocabulary": num_items,
        "domains": num_domains,
        "source_positions": num_scored,
        "ms_per_source_position": each,
        "ours_over_products": each["ours"] / each["products"],
        "decide_over_products": each["decide"] / each["products"],
        "plain_over_products": each["plain"] / each["products"],
        "released_over_ours": each["released"] / each["ours"],
        **_same_tokens(roles, target_range),
    }


def _views(bundle: Bundle, num_positions: int) -> list[View]:
    """Hidden states as a LayerNorm leaves them, standard normal, and the tables."""
    generator = torch.Generator().manual_seed(1)
    return [
        View(
            torch.randn(num_positions, bundle.config.width, generator=generator).to(network.item_embeddings_VD.device),
            network.item_embeddings_VD,
        )
        for network in (bundle.experts[TARGET], bundle.base, bundle.experts[1])
    ]


def _products(views: list[View], rows: int, out: Tensor) -> None:
    for view in views:
        for start in range(0, len(view.hidden_ND), rows):
            hidden_CD = view.hidden_ND[start : start + rows]
            torch.mm(hidden_CD, view.table_VD.T, out=out[: len(hidden_CD)])


def _decide(roles: dict[str, View], target_range: TokenRange) -> Decisions:
    target_expert, base, source_expert = roles.values()
    return decide(
        PAPER, target_expert=target_expert, base=base, source_experts=[source_expert], target_range=target_range
    )


def _same_tokens(roles: dict[str, View], target_range: TokenRange) -> dict[str, Any]:
    """Ours against the definition on the CPU."""
    on_cpu = {role: View(view.hidden_ND.cpu(), view.table_VD.cpu()) for role, view in roles.items()}
    plain = decide_in_blocks(PAPER, **on_cpu, target_range=target_range)
    different_N = _decide(roles, target_range).token_ids_N.cpu() != plain.token_ids_N
    return {
        "different_tokens": int(different_N.sum()),
        "different_tokens_beyond_float_margin": int((different_N & (plain.margin_N > FLOAT_MARGIN)).sum()),
    }


@torch.inference_mode()
def _released_seconds(
    bundle: Bundle, sequences: list[Any], rounds: int, clock: Clock, device: torch.device
) -> dict[str, float]:
    num_items, ranges = bundle.vocabulary.num_items, token_ranges(bundle.vocabulary.num_items, len(bundle.experts))
    networks = released.Networks(bundle.base, bundle.experts, ranges)
    whole_BL = pad_right(sequences, MAX_LENGTH + 1).to(device)
    per_row = MAX_LENGTH * (num_items + 1) * 4 / 1e6
    rows = int(min(BATCH, max(1, ROWS_MEGABYTES / per_row)))
    steps = [
        (step, source)
        for step in range(MAX_LENGTH)
        for source in range(len(ranges))
        if source != TARGET
        and ((whole_BL[:, step + 1] >= ranges[source].first) & (whole_BL[:, step + 1] <= ranges[source].last)).any()
    ]
    tables = [bundle.experts[TARGET], bundle.base, bundle.experts[1]]
    read_BT = whole_BL[:, :-1]
    step_hidden = [network(read_BT)[:, 5] for network in tables]
    logits = [hidden_BD @ network.item_embeddings_VD.T for hidden_BD, network in zip(step_hidden, tables, strict=True)]
    programs = {
        "logits": lambda: [released.network_logits(network, read_BT[:rows]) for network in tables[:2]],
        "call": lambda: [released.next_tokens(*logits, ranges[TARGET]) for _ in range(SCORING_CALLS)],
    }
    seconds = interleaved_seconds(programs, rounds, clock, device)
    num_networks = len(bundle.experts) + 1
    taken = {
        "released": seconds["logits"] / 2 * num_networks * BATCH / rows + seconds["call"] / SCORING_CALLS * len(steps)
    }
    if per_row * BATCH * num_networks <= WHOLE_MEGABYTES:
        whole = interleaved_seconds({"whole": lambda: released.decode(networks, whole_BL, TARGET)}, 1, clock, device)
        taken["released_whole"] = whole["whole"]
    return taken


def measure_memory(side: str, num_items: int, num_domains: int, device: torch.device) -> int | None:
    """Peak megabytes of a fresh process that does one batch; None where the machine has no room for it."""
    needed = {
        "import": 0,
        "ours": 1_000,
        "released": (num_domains + 2) * BATCH * MAX_LENGTH * (num_items + 1) * 4 / 1e6,
    }
    if side == "released" and needed[side] + 2_000 > available_megabytes(device):
        return None
    command = [sys.executable, "-m", "benchmarks.bench_decode", "--peak", side]
    command += ["--vocabularies", str(num_items), "--domains", str(num_domains)]
    command += ["--threads", str(torch.get_num_threads()), "--device", str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _peak(side: str, num_items: int, num_domains: int, device: torch.device) -> int:
    if side == "import":
        return peak_megabytes(device)
    bundle, sequences = random_bundle(num_items, num_domains, device), random_sequences(BATCH, num_items)
    if side == "ours":
        Regenerator(bundle, "paper").regenerate(sequences, bundle.vocabulary.domains[TARGET])
    else:
        networks = released.Networks(bundle.base, bundle.experts, token_ranges(num_items, num_domains))
        released.decode(networks, pad_right(sequences, MAX_LENGTH + 1).to(device), TARGET, num_steps=2)
    return peak_megabytes(device)


def main() -> None:
    """Run every shape; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--domains", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    parser.add_argument("--million", action="store_true", help="a million items as well")
    parser.add_argument("--memory", nargs="*", choices=SIDES, default=SIDES, help="whose peak memory to measure")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    if arguments.peak:
        print(_peak(arguments.peak, arguments.vocabularies[0], arguments.domains[0], device))
        return
    rows = []
    vocabularies = [*arguments.vocabularies, *([MILLION] if arguments.million else [])]
    for num_items in vocabularies:
        for num_domains in arguments.domains:
            row = bench(num_items, num_domains, arguments.rounds, arguments.clock, device)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # what the fresh processes are to have
            row["peak_megabytes"] = {
                side: measure_memory(side, num_items, num_domains, device) for side in arguments.memory
            }
            rows.append(row)
            print(_line(row), flush=True)
    ratios = [row["ours_over_products"] for row in rows]
    summary = {
        "benchmark": "decode",
        "machine": machine(),
        "clock": arguments.clock,
        "device": str(device),
        "median_ours_over_products": statistics.median(ratios),
    }
    if device.type == "cuda":
        summary["ceilings"] = rounded(ceilings(device))
        for row in rows:
            row["shares_of_ceilings"] = _shares(row, summary["ceilings"])
    print(json.dumps({**summary, "batch": [BATCH, MAX_LENGTH], "rows": rounded(rows)}))


def _shares(row: dict[str, Any], most: dict[str, float]) -> dict[str, float]:
    """What the decisions take of a GPU's ceilings; see the top of this file."""
    width = random_decoder(1, 0).config.width
    numbers = 3 * (row["vocabulary"] + 1) * width
    seconds = row["ms_per_source_position"]["decide"] / 1e3
    return {
        "float32_products": 2 * numbers / 1e12 / seconds / most["float32_tflop_per_second"],
        "tf32_products": 2 * numbers / 1e12 / seconds / most["tf32_tflop_per_second"],
        "memory": 4 * numbers / 1e9 / (seconds * SAMPLES["cuda"]) / most["copy_gigabytes_per_second"],
    }


def _line(row: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {value:.3f}" for name, value in row["ms_per_source_position"].items())
    return (
        f"V {row['vocabulary']:>9,} D {row['domains']}: {times} ms; ours/products {row['ours_over_products']:.2f}, "
        f"released/ours {row['released_over_ours']:.1f}, peak MB {row['peak_megabytes']}"
    )


if __name__ == "__main__":
    main()
