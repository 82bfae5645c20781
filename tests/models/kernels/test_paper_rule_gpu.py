"""
Rule ``paper`` as GPU kernels decides as the plain definition does.

Where there is a GPU they run on it. Elsewhere Triton's interpreter runs their very lines on the CPU (tests/conftest.py
asks for it), and its compiler, which needs no GPU, compiles them for two generations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.decoding.blocks import View
from models.decoding.contrastive import decide, decide_in_blocks
from models.decoding.paper import PAPER, agreement, confidence
from models.kernels.paper_rule import Decisions, SourceGroup
from models.vocabulary import TokenRange

pytest.importorskip("triton", reason="Triton is made for Linux only")
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from models.kernels import paper_rule_gpu

FIELDS = ("token_ids_N", "alpha_N", "beta_N", "score_N", "margin_N")
# Small next to what a GPU takes, so that small vocabularies have several spans and few positions several chunks.
SPAN_ITEMS, CHUNK_POSITIONS = 100, 70
REAL_SPAN_ITEMS, REAL_CHUNK_POSITIONS = paper_rule_gpu.SPAN_ITEMS, paper_rule_gpu.CHUNK_POSITIONS
# Shared memory that a program may have on an A100 (99 KB of it on smaller GPUs of its generation).
SHARED_MEMORY = 99 * 1024


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True, scope="module")
def small_spans() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(paper_rule_gpu, "SPAN_ITEMS", SPAN_ITEMS)
        monkeypatch.setattr(paper_rule_gpu, "CHUNK_POSITIONS", CHUNK_POSITIONS)
        # A GPU multiplies every row of a block alike. The interpreter leaves that to NumPy's BLAS, which on some
        # processors (AVX2) rounds a row by where in the block it stands.
        monkeypatch.setattr(InterpreterBuilder, "create_dot", every_row_alike)
        yield


def every_row_alike(builder: InterpreterBuilder, left: Any, right: Any, sums: Any, *precision: object) -> TensorHandle:
    """sums + left @ right, each element summed in the same order wherever it stands."""
    products = (left.data[:, :, None] * right.data[None]).sum(axis=1)
    return TensorHandle(products + sums.data, sums.dtype.scalar)


def random_views(seed: int, num_positions: int, width: int, num_tokens: int, scale: float) -> list[View]:
    """Three decoders whose logits have a standard deviation of about *scale*."""
    generator = torch.Generator().manual_seed(seed)
    return [
        View(
            torch.randn(num_positions, width, generator=generator) * scale / width**0.5,
            torch.randn(num_tokens, width, generator=generator),
        )
        for _ in range(3)
    ]


def decided(views: list[View], target_range: TokenRange) -> Decisions:
    return decided_together(views, [SourceGroup(views[2].table_VD, len(views[2].hidden_ND))], target_range)


def decided_together(views: list[View], sources: list[SourceGroup], target_range: TokenRange) -> Decisions:
    """By the kernels, wherever they run; decisions on the CPU."""
    decisions = paper_rule_gpu.decide_paper(
        [view.hidden_ND.to(DEVICE) for view in views],
        [view.table_VD.to(DEVICE) for view in views[:2]],
        [SourceGroup(source.table_VD.to(DEVICE), source.num_positions) for source in sources],
        target_range,
    )
    return Decisions(*(values_N.cpu() for values_N in decisions))


def defined(views: list[View], target_range: TokenRange) -> Decisions:
    target, base, source = views
    return decide_in_blocks(PAPER, target_expert=target, base=base, source_expert=source, target_range=target_range)


def global_margin(views: list[View]) -> Tensor:
    """Lead of the global step's winner, which the margin of a replaced item does not tell."""
    target, base, source = ((view.hidden_ND @ view.table_VD.T)[:, 1:] for view in views)
    scores = (1 + confidence(target)[:, None]) * target + agreement(base, source)[:, None] * (base - source)
    if scores.shape[1] == 1:
        return torch.full((len(scores),), torch.inf)
    top = scores.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def assert_same_decisions(ours: Decisions, plain: Decisions, views: list[View]) -> None:
    """
    Every token whose margin exceeds rounding, every weight and score up to it.

    A logit of size l is rounded by some 1e-7 l, which is the relative error of its probability, so of the weights;
    an error of a weight enters the score times l.
    """
    largest = max(float((view.hidden_ND @ view.table_VD.T).abs().max()) for view in views)
    weight_rounding = 1e-5 + 5e-7 * largest
    rounding = 2e-6 * (1 + largest) + 2 * weight_rounding * largest
    same = ours.token_ids_N == plain.token_ids_N
    close_call = (plain.margin_N < rounding) | (global_margin(views) < rounding)
    assert (same | close_call).all()
    for name in FIELDS[1:]:
        tolerance = weight_rounding if name in ("alpha_N", "beta_N") else 2 * rounding
        torch.testing.assert_close(getattr(ours, name)[same], getattr(plain, name)[same], rtol=0, atol=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[View], TokenRange]:
    num_tokens = draw(st.integers(2, 400))
    first = draw(st.integers(1, num_tokens - 1))
    views = random_views(
        seed=draw(st.integers(0, 10_000)),
        num_positions=draw(st.integers(1, 90)),
        width=draw(st.integers(1, 40)),
        num_tokens=num_tokens,
        scale=draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 300.0])),
    )
    return views, TokenRange(first, draw(st.integers(first, num_tokens - 1)))


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_the_kernels_decide_as_the_definition(case: tuple[list[View], TokenRange]) -> None:
    """Scale 300 underflows probabilities; vocabularies of up to four spans of 100 items, more at the target's edges."""
    views, target_range = case
    assert_same_decisions(decided(views, target_range), defined(views, target_range), views)


@settings(max_examples=5, deadline=None)
@given(case=cases(), data=st.data())
def test_a_position_alone_equals_itself_in_any_company(
    case: tuple[list[View], TokenRange], data: st.DataObject
) -> None:
    """Bit for bit, at whatever place of a block or chunk it stands."""
    views, target_range = case
    together = decided(views, target_range)
    chosen = data.draw(st.integers(0, len(together.token_ids_N) - 1))
    alone = decided([View(view.hidden_ND[chosen : chosen + 1], view.table_VD) for view in views], target_range)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[chosen : chosen + 1], part)


def test_source_domains_together_equal_each_alone() -> None:
    """Bit for bit, a domain without a position included."""
    sizes, target_range = [75, 0, 3], TokenRange(20, 90)
    target, base, source = random_views(1, sum(sizes), 12, 150, scale=2.0)
    tables = [torch.roll(source.table_VD, shift, dims=0) for shift in range(len(sizes))]
    sources = [SourceGroup(table, size) for table, size in zip(tables, sizes, strict=True)]
    together = decided_together([target, base, source], sources, target_range)
    parts = [view.hidden_ND.split(sizes) for view in (target, base, source)]
    alone = [
        decided([View(t, target.table_VD), View(b, base.table_VD), View(s, table)], target_range)
        for t, b, s, table in zip(*parts, tables, strict=True)
        if len(t)
    ]
    for whole, pieces in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_among_equal_scores_the_lowest_token_wins() -> None:
    """Tokens 3, 7 and 250 of 300 score alike, over three spans, and so do whole rows of zeros."""
    table = torch.zeros(300, 4)
    table[[3, 7, 250]] = 1.0
    hidden = torch.cat([torch.ones(20, 4), torch.zeros(20, 4)])
    decisions = decided([View(hidden, table)] * 3, TokenRange(2, 260))

    # All zeros: token 1 wins globally, which is not the target's.
    assert decisions.token_ids_N.tolist() == [3] * 20 + [0] * 20
    assert decisions.margin_N.tolist() == [0.0] * 40


def test_weights_are_as_close_to_the_truth_as_float32_allows() -> None:
    """Against float64 over eight spans, whose parts are put together."""
    views, target_range = random_views(1, 40, 32, 801, scale=2.0), TokenRange(1, 800)
    ours = decided(views, target_range)
    target, base, source = ((view.hidden_ND.double() @ view.table_VD.double().T)[:, 1:] for view in views)

    torch.testing.assert_close(ours.alpha_N.double(), confidence(target), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.beta_N.double(), agreement(base, source), rtol=0, atol=1e-6)


def test_kernels_that_do_not_run_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No C compiler, an old GPU, a driver that does not fit: the definition decides, and the log says why."""

    def without_compiler(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    assert paper_rule_gpu.runs_on(torch.device(DEVICE))
    paper_rule_gpu.runs_on.cache_clear()
    monkeypatch.setattr(paper_rule_gpu, "decide_paper", without_compiler)
    assert not paper_rule_gpu.runs_on(torch.device(DEVICE))
    paper_rule_gpu.runs_on.cache_clear()
    assert "Failed to find C compiler" in caplog.text


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models.kernels import paper_rule_gpu as kernels

compiled = {}
for kernel in kernels.KERNELS:
    integers = {"N": "i32", "D": "i32", "S": "i32", "bounds": "*i32", "tokens": "*i32"}
    signature = {name: integers.get(name, "*fp32") for name in kernel.arg_names}
    # As a launch has it: whatever may be known to be divisible by 16, is.
    known = [(place,) for place, name in enumerate(kernel.arg_names) if name not in ("N", "S", "bounds")]
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={}, attrs={place: [["tt.divisibility", 16]] for place in known}
    )
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    built = triton.compile(source, target=target, options={"num_warps": kernels.NUM_WARPS})
    compiled[kernel.__name__] = [len(built.asm["cubin"]), built.metadata.shared]
print(json.dumps(compiled))
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus(capability: int) -> None:
    """For Ampere and Hopper, to machine code, within the shared memory that a program has there."""
    command = [sys.executable, "-c", COMPILE, str(capability)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert len(built) == 5
    assert all(num_bytes > 0 and shared <= SHARED_MEMORY for num_bytes, shared in built.values())


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU: the kernels were interpreted and compiled, not run")
def test_decide_takes_the_kernels_for_what_lies_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several spans and chunks of their real size."""
    monkeypatch.setattr(paper_rule_gpu, "SPAN_ITEMS", REAL_SPAN_ITEMS)
    monkeypatch.setattr(paper_rule_gpu, "CHUNK_POSITIONS", REAL_CHUNK_POSITIONS)
    calls: list[object] = []
    real = paper_rule_gpu.decide_paper
    monkeypatch.setattr(paper_rule_gpu, "decide_paper", lambda *arguments: calls.append(arguments) or real(*arguments))
    views, target_range = random_views(3, 9_000, 128, 20_001, 2.0), TokenRange(1, 5_000)
    target, base, source = (View(view.hidden_ND.cuda(), view.table_VD.cuda()) for view in views)
    ours = decide(PAPER, target_expert=target, base=base, source_experts=[source], target_range=target_range)
    on_cpu = Decisions(*(getattr(ours, name).cpu() for name in FIELDS))
    assert calls
    assert_same_decisions(on_cpu, defined(views, target_range), views)
