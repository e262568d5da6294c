"""The arena: buffers alive together never overlap, and no plan beats its lower bound."""

import random
import time
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations

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


def placed(order) -> int:
    """Size of the arena where each buffer in turn takes the lowest offset that is free."""
    offsets, top = {}, 0
    for buffer in order:
        there = sorted((offsets[b], b) for b in offsets if meet(b, buffer))
        offset = 0
        for start, other in there:
            if offset + buffer.nbytes > start:
                offset = max(
                    offset, -(-(start + other.nbytes) // buffer.alignment) * buffer.alignment
                )
            else:
                break
        offsets[buffer] = offset
        top = max(top, offset + buffer.nbytes)
    return -(-top // 4) * 4


@dataclass(frozen=True, order=True)
class Hashed:
    """A buffer that dictionaries and sorting take."""

    name: str
    nbytes: int
    alignment: int
    first: int
    last: int


def hashed(made) -> list[Hashed]:
    return [Hashed(b.name, b.nbytes, b.alignment, b.first, b.last) for b in made]


@SETTINGS
@given(buffers())
def test_no_plan_is_larger_than_greedy_by_size(made):
    by_size = sorted(hashed(made), key=lambda b: (-b.nbytes, b.first, b.last, b.name))
    assert plan_arena(made).nbytes <= placed(by_size)


@SETTINGS
@given(buffers().filter(lambda made: len(made) <= 6))
def test_few_buffers_get_the_smallest_arena_there_is(made):
    smallest = min(placed(order) for order in permutations(hashed(made)))
    assert plan_arena(made).nbytes == smallest


def test_where_greedy_orders_leave_gaps_the_search_finds_a_plan_without():
    """Random programs: how often each way meets the lower bound."""
    generator, met, greedy = random.Random(0), 0, 0
    for _ in range(40):
        made = []
        for index in range(12):
            first = generator.randrange(-1, 9)
            made.append(
                Buffer(
                    f"b{index}",
                    4 * generator.randrange(1, 100),
                    4,
                    first,
                    first + generator.randrange(1, 4),
                )
            )
        plan = plan_arena(made)
        by_size = sorted(hashed(made), key=lambda b: (-b.nbytes, b.first, b.last, b.name))
        met += plan.nbytes == plan.lower_bound
        greedy += placed(by_size) == plan.lower_bound
    assert met >= 38 > greedy


def test_many_buffers_are_placed_in_a_moment():
    generator = random.Random(0)
    made = []
    for index in range(600):
        first = generator.randrange(200)
        last = first + generator.randrange(12)
        made.append(Buffer(f"b{index}", 4 * generator.randrange(1, 5_000), 4, first, last))
    elementwise = [Buffer(f"c{i}", 4_000, 4, i, i + 1) for i in range(200)]
    choices = [(b.name, a.name) for a, b in pairwise(elementwise)]
    begin = time.process_time()
    plan = plan_arena(made + elementwise, choices)
    assert time.process_time() - begin < 20
    assert plan.nbytes < 1.2 * plan.lower_bound


# -- in place --------------------------------------------------------------------------------


@st.composite
def with_choices(draw) -> tuple[list[Buffer], list[tuple[str, str]]]:
    """Buffers, some of which may be written over some others that end where they begin."""
    made = draw(buffers())
    equal = [Buffer(b.name, 4 * (b.nbytes % 5), 4, b.first, b.last) for b in made]
    pairs = [
        (b.name, a.name)
        for a in equal
        for b in equal
        if a is not b and a.last == b.first and a.nbytes == b.nbytes and a.first < b.first
    ]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return equal, chosen


@SETTINGS
@given(with_choices())
def test_only_buffers_that_may_share_do_and_the_others_stay_apart(given):
    made, choices = given
    plan = plan_arena(made, choices)
    assert set(plan.in_place.items()) <= set(choices)
    assert len(set(plan.in_place.values())) == len(plan.in_place)
    for a, b in combinations(made, 2):
        if not (meet(a, b) and a.nbytes and b.nbytes):
            continue
        if plan.in_place.get(b.name) == a.name or plan.in_place.get(a.name) == b.name:
            assert plan.offsets[a.name] == plan.offsets[b.name]
            continue
        before = plan.offsets[a.name] + a.nbytes <= plan.offsets[b.name]
        assert before or plan.offsets[b.name] + b.nbytes <= plan.offsets[a.name], (a, b)


@SETTINGS
@given(with_choices(), st.randoms(use_true_random=False))
def test_sharing_never_makes_an_arena_larger_and_is_left_where_it_saves_nothing(given, random):
    made, choices = given
    plan, apart = plan_arena(made, choices), plan_arena(made)
    assert plan.nbytes <= apart.nbytes
    assert plan.lower_bound <= plan.nbytes
    if plan.nbytes == apart.nbytes:
        assert not plan.in_place
    assert plan == plan_arena(random.sample(made, len(made)), random.sample(choices, len(choices)))


def test_a_chain_of_elementwise_steps_needs_one_buffer():
    made = [Buffer(f"b{i}", 100, 4, i - 1, i) for i in range(6)]
    choices = [(f"b{i + 1}", f"b{i}") for i in range(5)]
    assert plan_arena(made).nbytes == 200
    plan = plan_arena(made, choices)
    assert (plan.nbytes, plan.lower_bound) == (100, 100)
    assert plan.in_place == dict(choices)


def test_of_two_operands_a_sum_takes_the_place_of_one():
    made = [
        Buffer("a", 100, 4, -1, 0),
        Buffer("b", 100, 4, -1, 0),
        Buffer("sum", 100, 4, 0, 1),
        Buffer("difference", 100, 4, 0, 1),
    ]
    choices = [("sum", "a"), ("sum", "b"), ("difference", "a"), ("difference", "b")]
    plan = plan_arena(made, choices)
    assert plan.nbytes == 200
    assert set(plan.in_place) == {"sum", "difference"}
    assert set(plan.in_place.values()) == {"a", "b"}


@pytest.mark.parametrize(
    ("made", "nbytes"),
    [([], 0), ([Buffer("b", 0, 4, 0, 1)], 0), ([Buffer("b", 5, 4, 0, 0)], 8)],
    ids=["nothing", "an empty buffer", "an odd size"],
)
def test_small_arenas(made, nbytes):
    assert plan_arena(made).nbytes == nbytes
