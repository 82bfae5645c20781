"""The compiled rule ``paper`` decides as the plain definition does, bit for bit alike in any company."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.blocks import View
from models.decoding.contrastive import decide, decide_in_blocks
from models.decoding.paper import PAPER, agreement, confidence
from models.kernels import paper_rule
from models.kernels.build import build
from models.kernels.paper_rule import Decisions
from models.vocabulary import TokenRange

compiled = pytest.mark.skipif(not paper_rule.is_available(), reason="no C++ compiler, so there is no compiled rule")

FIELDS = ("token_ids_N", "alpha_N", "beta_N", "score_N", "margin_N")


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


def decided(views: list[View], target_range: TokenRange, rows: slice = slice(None)) -> Decisions:
    target, base, source = (View(view.hidden_ND[rows], view.table_VD) for view in views)
    return decide(PAPER, target_expert=target, base=base, source_experts=[source], target_range=target_range)


def defined(views: list[View], target_range: TokenRange) -> Decisions:
    target, base, source = views
    return decide_in_blocks(PAPER, target_expert=target, base=base, source_expert=source, target_range=target_range)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[View], TokenRange]:
    num_tokens = draw(st.integers(2, 700))
    first = draw(st.integers(1, num_tokens - 1))
    last = draw(st.integers(first, num_tokens - 1))
    views = random_views(
        seed=draw(st.integers(0, 10_000)),
        num_positions=draw(st.integers(1, 90)),
        width=draw(st.integers(1, 40)),
        num_tokens=num_tokens,
        scale=draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 300.0])),
    )
    return views, TokenRange(first, last)


@compiled
@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_compiled_rule_decides_as_the_definition(case: tuple[list[View], TokenRange]) -> None:
    """
    Every token whose margin exceeds rounding, every weight and score to it; scale 300 underflows probabilities.

    A logit of size l is rounded by some 1e-7 l, which is the relative error of its probability, so of the weights;
    an error of a weight enters the score times l.
    A token may differ where a lead is smaller than rounding: in the step that the margin tells of, or, unseen by the
    margin, in the global step, where another winner may turn a replacement into a deletion.
    """
    views, target_range = case
    ours, plain = decided(views, target_range), defined(views, target_range)
    largest = max(float((view.hidden_ND @ view.table_VD.T).abs().max()) for view in views)
    weight_rounding = 1e-5 + 5e-7 * largest
    rounding = 2e-6 * (1 + largest) + 2 * weight_rounding * largest
    same = ours.token_ids_N == plain.token_ids_N
    close_call = (plain.margin_N < rounding) | (global_margin(views) < rounding)

    assert (same | close_call).all()
    for name in FIELDS[1:]:
        left, right = getattr(ours, name)[same], getattr(plain, name)[same]
        assert not left.isnan().any()
        tolerance = weight_rounding if name in ("alpha_N", "beta_N") else 2 * rounding
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance)
    kept = ours.token_ids_N[ours.token_ids_N != 0]
    assert target_range.mask(kept).all()
    assert (ours.margin_N >= 0).all()


def global_margin(views: list[View]) -> torch.Tensor:
    """Lead of the global step's winner, infinite where there is one item."""
    target, base, source = ((view.hidden_ND @ view.table_VD.T)[:, 1:] for view in views)
    scores = (1 + confidence(target)[:, None]) * target + agreement(base, source)[:, None] * (base - source)
    if scores.shape[1] == 1:
        return torch.full((len(scores),), torch.inf)
    top = scores.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


@compiled
@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 5), st.data())
def test_a_position_alone_equals_itself_in_any_company(
    case: tuple[list[View], TokenRange], num_threads: int, data: st.DataObject
) -> None:
    """Bit for bit: alone, in any slice, by any number of threads."""
    views, target_range = case
    together = decided(views, target_range)
    chosen = data.draw(st.integers(0, len(together.token_ids_N) - 1))
    start = data.draw(st.integers(0, chosen))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        alone = decided(views, target_range, slice(chosen, chosen + 1))
        some = decided(views, target_range, slice(start, None))
    finally:
        torch.set_num_threads(before)
    for name in FIELDS:
        whole = getattr(together, name)
        assert torch.equal(whole[chosen : chosen + 1], getattr(alone, name))
        assert torch.equal(whole[start:], getattr(some, name))


@compiled
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=5), st.integers(0, 10_000), st.integers(1, 3))
def test_source_domains_together_equal_each_alone(sizes: list[int], seed: int, num_threads: int) -> None:
    """Bit for bit: positions of several source domains in one call, empty ones included."""
    target, base, source = random_views(seed, sum(sizes), 12, 150, scale=2.0)
    tables = [torch.roll(source.table_VD, shift, dims=0) for shift in range(len(sizes))]
    target_range = TokenRange(20, 90)
    parts = [view.hidden_ND.split(sizes) for view in (target, base, source)]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        sources = [View(hidden, table) for hidden, table in zip(parts[2], tables, strict=True)]
        together = decide(PAPER, target_expert=target, base=base, source_experts=sources, target_range=target_range)
    finally:
        torch.set_num_threads(before)
    alone = [
        decided([View(t, target.table_VD), View(b, base.table_VD), View(s, table)], target_range)
        for t, b, s, table in zip(*parts, tables, strict=True)
    ]
    for name in FIELDS:
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


@compiled
def test_weights_are_as_close_to_the_truth_as_float32_allows() -> None:
    """Against float64 over 20,000 items, where sums of small terms could drift."""
    views = random_views(1, 40, 32, 20_001, scale=2.0)
    target_range = TokenRange(1, 20_000)
    ours = decided(views, target_range)
    target, base, source = ((view.hidden_ND.double() @ view.table_VD.double().T)[:, 1:] for view in views)
    scores = (1 + confidence(target)[:, None]) * target + agreement(base, source)[:, None] * (base - source)

    torch.testing.assert_close(ours.alpha_N.double(), confidence(target), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.beta_N.double(), agreement(base, source), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.score_N.double(), scores.amax(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(ours.token_ids_N, scores.argmax(dim=1) + 1)


@pytest.mark.parametrize("decide_either", [decided, defined])
def test_among_equal_scores_the_lowest_token_wins(decide_either: object) -> None:
    """Tokens 3, 7 and 250 of 300 score alike, and so do whole rows of zeros."""
    table = torch.zeros(300, 4)
    table[[3, 7, 250]] = 1.0
    hidden = torch.cat([torch.ones(20, 4), torch.zeros(20, 4)])
    decisions = decide_either([View(hidden, table)] * 3, TokenRange(2, 260))  # type: ignore[operator]

    # All zeros: token 1 wins globally, which is not the target's.
    assert decisions.token_ids_N.tolist() == [3] * 20 + [0] * 20
    assert decisions.margin_N.tolist() == [0.0] * 40


@compiled
def test_disjoint_and_certain_distributions_give_finite_weights() -> None:
    """Logits 500 apart: every probability but one underflows in every decoder."""
    table = torch.eye(9)
    target, base, source = torch.zeros(3, 1, 9)
    target[0, 2], base[0, 2], source[0, 5] = 500.0, 500.0, 500.0
    decisions = decided([View(target, table), View(base, table), View(source, table)], TokenRange(1, 3))

    assert decisions.token_ids_N.tolist() == [2]
    assert decisions.alpha_N.tolist() == [1.0]
    # Locally the source expert knows nothing of its own favourite: uniform over 3 items against certainty.
    expected = agreement(base[:, 1:4], source[:, 1:4])
    torch.testing.assert_close(decisions.beta_N, expected, rtol=0, atol=1e-6)


@compiled
def test_views_into_larger_tensors_are_read_as_they_are() -> None:
    """Hidden states and tables need not be contiguous."""
    views = random_views(3, 20, 16, 50, scale=1.0)
    strided = [View(view.hidden_ND.T.contiguous().T, torch.cat([view.table_VD] * 2, dim=1)[:, :16]) for view in views]
    for name in FIELDS:
        one, other = (getattr(decided(which, TokenRange(5, 30)), name) for which in (views, strided))
        assert torch.equal(one, other)


@compiled
def test_no_positions_are_decided_to_no_tokens() -> None:
    views = [View(view.hidden_ND[:0], view.table_VD) for view in random_views(3, 2, 4, 9, scale=1.0)]
    assert decided(views, TokenRange(1, 4)).token_ids_N.tolist() == []


@pytest.fixture
def no_library_loaded() -> Iterator[None]:
    paper_rule.loaded_library.cache_clear()
    yield
    paper_rule.loaded_library.cache_clear()


@pytest.mark.usefixtures("no_library_loaded")
def test_without_a_compiler_the_definition_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    views, target_range = random_views(5, 30, 8, 60, scale=3.0), TokenRange(10, 40)
    ours, plain = decided(views, target_range), defined(views, target_range)
    assert not paper_rule.is_available()
    assert all(torch.equal(getattr(ours, name), getattr(plain, name)) for name in FIELDS)


@pytest.mark.skipif(shutil.which("false") is None, reason="no program that fails")
def test_a_compiler_that_fails_is_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build(paper_rule.SOURCE) is None


@compiled
def test_a_library_is_compiled_once_and_again_when_its_source_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    first = build(source)
    assert first is not None
    written = first.stat().st_mtime_ns
    assert build(source) == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    source.write_text('extern "C" int one() { return 2; }\n')
    assert build(source) not in (None, first)


@compiled
def test_a_library_is_compiled_again_when_a_header_that_it_shares_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Headers are followed from one to the next; those of the system are the compiler's version's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "one.cpp"
    source.write_text('#include <vector>\n#include "near.hpp"\nextern "C" int one() { return ONE; }\n')
    (tmp_path / "near.hpp").write_text('#include "far.hpp"\n')
    (tmp_path / "far.hpp").write_text("constexpr int ONE = 1;\n")
    first = build(source)
    assert first is not None
    assert build(source) == first
    (tmp_path / "far.hpp").write_text("constexpr int ONE = 2;\n")
    assert build(source) not in (None, first)


@compiled
def test_source_that_does_not_compile_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "wrong.cpp"
    source.write_text("this is not C++\n")
    assert build(source) is None
    assert list((tmp_path / "cache" / "taesar").iterdir()) == []


@compiled
def test_a_cache_that_cannot_be_written_does_not_stop_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("no folder can be made in here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    library = build(source)
    assert library is not None
    assert library.is_file()
    shutil.rmtree(library.parent)


@compiled
def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = next(path for name in ("c++", "g++", "clang++") if (path := shutil.which(name)))
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only"]
    command.append(str(paper_rule.SOURCE))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@compiled
def test_calls_from_two_threads_do_not_meet() -> None:
    """A job and a request decide side by side, each in memory of its own."""
    calls = [
        (random_views(seed=1, num_positions=40, width=24, num_tokens=301, scale=2.0), TokenRange(1, 50)),
        (random_views(seed=2, num_positions=7, width=24, num_tokens=3001, scale=2.0), TokenRange(200, 900)),
    ]
    alone = [decided(*call) for call in calls]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda number: decided(*calls[number % 2]), range(200)))

    for number, found in enumerate(together):
        for field in FIELDS:
            assert torch.equal(getattr(found, field), getattr(alone[number % 2], field))
