"""What the benchmarks share: interleaved medians, peak memory, the machine in words, random networks and sequences."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from models.bundle import Bundle
from models.data.dataset import TOKENS, TokenArray
from models.kernels import paper_rule
from models.network.decoder import Decoder, DecoderConfig
from models.vocabulary import TokenRange, Vocabulary

# The released code's shapes: a batch of 32 padded to 128 positions, real lengths of 43 on average.
BATCH = 32
MAX_LENGTH = 128
MEAN_LENGTH = 43
SEED = 2025

CPU = torch.device("cpu")
# The command line of this environment, run from the repository's root.
TAESAR = (sys.executable, "-c", "from app.cli.taesar import main; main()")

Clock = Literal["wall", "cpu"]
CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved_seconds(
    programs: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = "wall", device: torch.device = CPU
) -> dict[str, float]:
    """
    Median seconds of each program, run in turn *rounds* times after one untimed run, so that a busy moment hits all.

    Args:
        programs: what to time, by name.
        rounds: how often each is timed.
        clock: ``cpu`` counts this process's processor time over all its threads: the clock for a machine shared with
            others, on which wall time tells of their work. With several threads it counts their waiting too.
        device: where the programs compute; a GPU is waited for.
    """
    now = CLOCKS[clock]
    for program in programs.values():
        program()
    _wait_for(device)
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = now()
            program()
            _wait_for(device)
            taken[name].append(now() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device) -> dict[str, float]:
    """
    What this GPU gives at most: memory copied in GB/s (read and written), and products of 8192 x 8192 in TFLOP/s.

    float32 as IEEE has it, and in tf32, the tensor cores' format.
    """
    source = torch.randn(1 << 28, device=device)
    copy = torch.empty_like(source)
    left, right, out = (torch.randn(8192, 8192, device=device) for _ in range(3))

    def product(allow_tf32: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.mm(left, right, out=out)
        torch.backends.cuda.matmul.allow_tf32 = False

    programs = {
        "copy": lambda: copy.copy_(source),
        "float32": lambda: product(allow_tf32=False),
        "tf32": lambda: product(allow_tf32=True),
    }
    seconds = interleaved_seconds(programs, 5, device=device)
    product_tflop = 2 * 8192**3 / 1e12
    return {
        "copy_gigabytes_per_second": 2 * source.nbytes / 1e9 / seconds["copy"],
        "float32_tflop_per_second": product_tflop / seconds["float32"],
        "tf32_tflop_per_second": product_tflop / seconds["tf32"],
    }


def peak_megabytes(device: torch.device = CPU) -> int:
    """
    Peak resident memory of this process so far, or on a GPU the peak of what torch allocated there.

    Not ``ru_maxrss``, which a child inherits from its parent.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def available_megabytes(device: torch.device = CPU) -> int:
    """Memory that a new program can have without swapping, or that is free on a GPU."""
    if device.type == "cuda":
        return round(torch.cuda.mem_get_info(device)[0] / 1e6)
    memory = Path("/proc/meminfo").read_text(encoding="ascii")
    return int(memory.split("MemAvailable:")[1].split()[0]) // 1024


def machine() -> dict[str, Any]:
    """Processor, threads, versions, and how busy others keep the machine."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled_kernel": paper_rule.is_available(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_kernels": torch.cuda.is_available() and _gpu_kernels_run(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _gpu_kernels_run() -> bool:
    from models.kernels import paper_rule_gpu

    return paper_rule_gpu.runs_on(torch.device("cuda", torch.cuda.current_device()))


def random_decoder(num_items: int, seed: int, *, max_length: int = MAX_LENGTH) -> Decoder:
    """A decoder of the released size with random weights, in evaluation mode; one network, not D copies in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = DecoderConfig(num_items=num_items, max_length=max_length, init_std=0.1)
        return Decoder(config).eval().requires_grad_(False)


def token_ranges(num_items: int, num_domains: int) -> list[TokenRange]:
    """Contiguous domains of nearly equal size."""
    bounds = [num_items * index // num_domains for index in range(num_domains + 1)]
    return [TokenRange(first + 1, last) for first, last in pairwise(bounds)]


def random_bundle(num_items: int, num_domains: int, device: torch.device = CPU) -> Bundle:
    """A bundle that lies in no folder: random base and experts over domains ``synthetic-0`` and so on."""
    names = tuple(f"synthetic-{index}" for index in range(num_domains))
    items = tuple(tuple(map(str, range(r.first, r.last + 1))) for r in token_ranges(num_items, num_domains))
    base, *experts = (random_decoder(num_items, seed).to(device) for seed in range(num_domains + 1))
    return Bundle(Path(), "random", Vocabulary(names, items), base.config, {}, base, tuple(experts))


def random_sequences(
    num_sequences: int, num_items: int, *, mean_length: int = MEAN_LENGTH, seed: int = SEED
) -> list[TokenArray]:
    """Mixed sequences over all domains, uniform items, log-normal lengths of about that mean between 3 and 129."""
    generator = np.random.default_rng(seed)
    spread = generator.lognormal(0, 0.6, num_sequences)
    lengths = np.clip(np.round(spread * mean_length / spread.mean()), 3, MAX_LENGTH + 1).astype(int)
    return [generator.integers(1, num_items + 1, length).astype(TOKENS) for length in lengths]


def rounded(value: Any) -> Any:
    """Numbers of a result to four digits, through lists and mappings."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value
