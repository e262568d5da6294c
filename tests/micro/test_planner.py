"""The arena: buffers alive together never overlap, and no plan beats its lower bound."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbn_tvm.micro.planner import plan_arena
from tbn_tvm.micro.program import Buffer

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def buffers(draw) -> list[Buffer]:
    """Any sizes and lifetimes, as inputs (from -1), intermediate values and scratch have them."""
    made = []
    for index in range(draw(st.integers(1, 14))):
        first = draw(st.integers(-1, 10))
        made.append(
            Buffer(
                f"buffer{index}",
                nbytes=draw(st.integers(0, 100) | st.sampled_from([4, 64, 1024])),
                alignment=draw(st.sampled_from([1, 4, 8, 16])),
                first=first,
                last=first + draw(st.integers(0, 5)),
            )
        )
    return made


@st.composite
def chains(draw) -> list[Buffer]:
    """A network without branches: each value is made at one step and read at the next."""
    words = draw(st.lists(st.integers(1, 300), min_size=1, max_size=10))
    return [Buffer(f"b{i}", 4 * size, 4, i - 1, i) for i, size in enumerate(words)]


def meet(a: Buffer, b: Buffer) -> bool:
    """Whether two buffers are alive at the same step."""
    return any(a.first <= step <= a.last for step in range(b.first, b.last + 1))


@SETTINGS
@given(buffers())
def test_buffers_alive_together_do_not_overlap(made):
    offsets = plan_arena(made).offsets
    for a, b in combinations(made, 2):
        if meet(a, b) and a.nbytes and b.nbytes:
            before = offsets[a.name] + a.nbytes <= offsets[b.name]
            behind = offsets[b.name] + b.nbytes <= offsets[a.name]
            assert before or behind, (a, b)


@SETTINGS
@given(buffers())
def test_every_buffer_is_aligned_and_inside_the_arena(made):
    plan = plan_arena(made)
    assert set(plan.offsets) == {buffer.name for buffer in made}
    for buffer in made:
        assert plan.offsets[buffer.name] >= 0
        assert plan.offsets[buffer.name] % buffer.alignment == 0
        assert plan.offsets[buffer.name] + buffer.nbytes <= plan.nbytes


@SETTINGS
@given(buffers())
def test_the_lower_bound_is_the_fullest_step(made):
    plan = plan_arena(made)
    steps = range(-1, 16)
    alive = [sum(b.nbytes for b in made if b.first <= step <= b.last) for step in steps]
    assert plan.lower_bound == max(alive)
    assert plan.lower_bound <= plan.nbytes
    assert plan.nbytes % 4 == 0


@SETTINGS
@given(buffers(), st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_the_buffers(made, random):
    shuffled = random.sample(made, len(made))
    assert plan_arena(shuffled) == plan_arena(made)


@SETTINGS
@given(chains())
def test_a_chain_takes_no_more_than_its_lower_bound(made):
    plan = plan_arena(made)
    assert plan.nbytes == plan.lower_bound


def test_a_chain_that_placing_the_largest_first_would_fragment():
    sizes = [40, 20, 32, 48]  # 32 goes above 48, and 20 fits neither between nor below
    made = [Buffer(f"b{i}", size, 4, i - 1, i) for i, size in enumerate(sizes)]
    assert plan_arena(made).nbytes == 80


def test_buffers_that_never_meet_share_memory():
    made = [Buffer(f"b{i}", 100, 4, i, i) for i in range(5)]
    assert plan_arena(made).nbytes == 100


def test_buffers_that_all_meet_lie_side_by_side():
    made = [Buffer(f"b{i}", 100, 4, 0, 9) for i in range(5)]
    assert plan_arena(made).nbytes == 500


@pytest.mark.parametrize(
    ("made", "nbytes"),
    [([], 0), ([Buffer("b", 0, 4, 0, 1)], 0), ([Buffer("b", 5, 4, 0, 0)], 8)],
    ids=["nothing", "an empty buffer", "an odd size"],
)
def test_small_arenas(made, nbytes):
    assert plan_arena(made).nbytes == nbytes
