"""Stack bounds: what cannot be bounded is refused, and no run uses more than the bound."""

import re
import subprocess

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm import compiler
from tbn_tvm.errors import FitError, ToolError
from tbn_tvm.micro import Session, build, stack
from tbn_tvm.micro.disassembly import Instruction
from tbn_tvm.micro.stack import CallGraph, Usage, read_usage, stack_report
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.targets import board_names, load_board

ENTRY = 0x100


def graph(**functions: str) -> CallGraph:
    """Functions of instructions, one a line, four bytes each; calls and jumps name functions."""
    starts, at = {}, ENTRY
    for name, text in functions.items():
        starts[name] = at
        at += 4 * len(text.strip().splitlines())
    code = []
    for name, text in functions.items():
        for index, line in enumerate(text.strip().splitlines()):
            mnemonic, _, operands = line.strip().partition(" ")
            if mnemonic[0] in "bc" and operands in starts:
                operands = f"{starts[operands]:x} <{operands}>"
            code.append(Instruction(name, starts[name] + 4 * index, 4, mnemonic, operands))
    named = {
        start: (name, 4 * len(functions[name].strip().splitlines()))
        for name, start in starts.items()
    }
    return CallGraph(code, named, {})


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("bx lr", 0),
        ("push {r4, lr}\npop {r4, pc}", 8),
        ("push {r4, lr}\nsub sp, #40\nadd sp, #40\npop {r4, pc}", 48),
        ("stmdb sp!, {r4, r5, r6, r7, r8, r9, sl, fp, lr}\nsub.w sp, sp, #516\nbx lr", 552),
        ("vpush {d8-d15}\nvpush {s16-s18}\nvpop {s16-s18}\nvpop {d8-d15}\nbx lr", 76),
        ("str.w lr, [sp, #-4]!\nldr.w pc, [sp], #4", 4),
        ("strd r4, r5, [sp, #-16]!\nldrd r4, r5, [sp], #16\nbx lr", 16),
        ("push {r3}\npush {r4}\npop {r4}\npush {r5}\npop {r5}\npop {r3}\nbx lr", 8),
        ("add r1, sp, #12\nstr r3, [sp, #80]\nldr r3, [sp, #8]\nmov r0, sp\nbx lr", 0),
        ("push {r4, lr}\npopne {r4, pc}\nsub sp, #8\nadd sp, #8\npop {r4, pc}", 16),
    ],
)
def test_the_stack_of_a_function_is_what_its_deepest_path_takes(text, nbytes):
    assert graph(function=text).bound(ENTRY).nbytes == nbytes


def test_a_loop_that_gives_back_what_it_took_takes_it_once():
    text = "push {r4}\npop {r4}\nbne 100 <function>\nbx lr"
    assert graph(function=text).bound(ENTRY).nbytes == 4


def test_the_deepest_call_counts_at_its_depth_and_tail_calls_at_theirs():
    calls = graph(
        caller="push {r4, lr}\nbl small\nsub sp, #32\nbl small\nadd sp, #32\npop {r4, lr}\nb large",
        small="push {r4, lr}\npop {r4, pc}",
        large="sub sp, #44\nadd sp, #44\nbx lr",
    )
    bound = calls.bound(ENTRY)
    assert bound.nbytes == 48
    assert bound.path == (("caller", 40), ("small", 8))


def test_what_follows_a_function_that_never_returns_is_not_its_callers_code():
    calls = graph(caller="bl stops", after="push {r4, r5}\nbx lr", stops="b stops")
    assert calls.bound(ENTRY).nbytes == 0


def test_a_functions_code_that_goes_on_in_the_next_one_belongs_to_it():
    assert graph(first="push {r4}", second="push {r5}\nbx lr").bound(ENTRY).nbytes == 8


def test_all_of_a_function_is_behind_its_jump_table():
    table = graph(
        function="push {r4, lr}\ntbb [pc, r3]\nbl other\npop {r4, pc}\nsub sp, #60\nb next",
        other="push {r4, r5}\nbx lr",
        next="push {r4}\nbx lr",
    )
    assert table.bound(ENTRY).nbytes == 72


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        ({"a": "push {lr}\nbl b", "b": "push {lr}\nbl a"}, "recursion through a -> b -> a"),
        ({"a": "bl a"}, "recursion through a -> a"),
        ({"a": "blx r3"}, "a calls through a pointer at 0x100: blx r3"),
        ({"a": "bx r3"}, "a calls through a pointer"),
        ({"a": "sub.w sp, sp, r3\nbx lr"}, "a moves the stack pointer at 0x100 by an amount"),
        ({"a": "mov sp, r7\nbx lr"}, "a moves the stack pointer"),
        ({"a": "msr MSP, r0\nbx lr"}, "a moves the stack pointer"),
        ({"a": "push {r4}\nb 100 <a>"}, "stack pointer of a cannot be followed: it moves it in a"),
        ({"a": "push {r4}"}, "stack pointer of a cannot be followed: it runs into data at 0x104"),
    ],
)
def test_what_has_no_bound_is_refused(functions, told):
    with pytest.raises(ToolError, match=told):
        graph(**functions).bound(ENTRY)


def test_a_frame_that_only_the_compiler_knows_counts_at_every_call():
    calls = graph(
        large="ldr r4, [pc, #8]\nadd sp, r4\nbl small\nbx lr", small="push {r4}\npop {r4}\nbx lr"
    )
    calls._usage = {"large": Usage(600, True)}
    assert calls.bound(ENTRY).nbytes == 604


def test_usage_files_are_read_the_larger_of_two_of_a_name(tmp_path):
    (tmp_path / "a.su").write_text("a.c:1:6:run\t8\tstatic\nd/a.c:3:6:other\t40\tdynamic,bounded\n")
    (tmp_path / "b.su").write_text("b.c:1:6:run\t24\tstatic\nb.c:3:6:free\t16\tdynamic\n")
    assert read_usage(tmp_path) == {
        "run": Usage(24, True),
        "other": Usage(40, True),
        "free": Usage(16, False),
    }
    (tmp_path / "c.su").write_text("nonsense\n")
    with pytest.raises(ToolError, match="not what -fstack-usage writes"):
        read_usage(tmp_path)


HEAD = """
#include <stdint.h>
void run(void); void Reset_Handler(void);
volatile uint32_t sink;
void Reset_Handler(void) { run(); for (;;) {} }
static void Fault_Handler(void) { for (;;) {} }
__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
  0, Reset_Handler, Fault_Handler };
"""


def report(source, tmp_path, board="mps2-an386"):
    """Of a firmware of one file."""
    board = load_board(board)
    (tmp_path / "code.c").write_text(HEAD + source)
    command = ["arm-none-eabi-gcc", *board.cpu_flags, "-O2", "-fstack-usage", "-nostartfiles"]
    link = ["-Wl,-eReset_Handler,--section-start=.vectors=0,-Ttext=0x1000", "--specs=nano.specs"]
    subprocess.run([*command, *link, "code.c", "-lm", "-o", "a.elf"], cwd=tmp_path, check=True)
    return stack_report(tmp_path / "a.elf", read_usage(tmp_path), board, "run")


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("source", "told"),
    [
        pytest.param(
            "void fill(uint32_t *, uint32_t);\n"
            "__attribute__((noipa)) void fill(uint32_t *p, uint32_t n)"
            "{ while (n--) p[n] = sink; sink = p[0]; }\n"
            "void run(void) { uint32_t a[sink]; fill(a, sink); }",
            "run takes an amount that is only known at run time",
            id="an array of variable length",
        ),
        pytest.param(
            "__attribute__((noipa)) uint32_t f(uint32_t n)"
            "{ return n < 2u ? n : f(n - 1u) * f(n - 2u) + sink; }\n"
            "void run(void) { sink = f(sink); }",
            r"recursion through f\S* -> f",
            id="recursion",
        ),
        pytest.param(
            "void (*volatile hook)(void);\nvoid run(void) { hook(); sink++; }",
            "run calls through a pointer",
            id="a pointer",
        ),
        pytest.param(
            "void (*volatile hook)(void);\nvoid run(void) { hook(); }",
            "run calls through a pointer",
            id="a pointer, in tail position",
        ),
    ],
)
@pytest.mark.parametrize("board", ["microbit", "mps2-an386"])
def test_compiled_code_that_has_no_bound_is_refused(source, told, board, tmp_path):
    with pytest.raises(ToolError, match=told):
        report(source, tmp_path, board)


SWITCH = """
extern float expf(float), tanhf(float), powf(float, float);
void run(void)
{
  volatile uint32_t large[300];
  for (uint32_t i = 0; i < 300u; ++i) large[i] = sink;
  switch (large[sink]) {
    case 0: sink = 5; break;
    case 1: sink = (uint32_t)expf((float)sink); break;
    case 2: sink = (uint32_t)tanhf((float)sink); break;
    case 3: sink = (uint32_t)((uint64_t)sink * large[4] / large[3]); break;
    case 4: sink = 77u / sink; break;
    case 5: sink = (uint32_t)powf((float)sink, 1.5f); break;
    default: sink = 9;
  }
}
"""


@pytest.mark.emulator
@pytest.mark.parametrize("board", board_names())
def test_jump_tables_large_frames_and_the_library_are_followed_on_every_core(board, tmp_path):
    found = report(SWITCH, tmp_path, board)
    assert 1_200 <= found.model < 1_600
    assert found.total == found.model + found.total_path[0][1]  # no interrupts


@pytest.fixture(scope="module")
def shipped(example):
    """The shipped model, imported once."""
    return compiler.import_model(example / "mnist_mlp.pt2", name="mnist_mlp")


@pytest.mark.emulator
@pytest.mark.parametrize("board", board_names())
def test_no_board_uses_more_stack_than_the_bound_and_none_much_less(board, shipped, tmp_path):
    shape = shipped.signature.inputs[0].with_batch(1).shape
    with Session(tbn_tvm.compile(shipped, board).save(tmp_path / "net")) as session:
        session.run(np.ones(shape, "float32"))
    bound, used = session.build_report.stack, session.statistics.stack_used
    assert bound.model < used <= bound.total <= bound.with_fault
    # No interrupt came; the rest of the path was taken.
    entry = stack.EXCEPTION_BYTES
    if load_board(board).features & {"fpu", "mve"}:
        entry = stack.EXCEPTION_FPU_BYTES
    assert bound.total <= used + entry + stack.EXCEPTION_PADDING + 16
    assert bound.model_path[0][0] == "mnist_mlp_run"
    assert sum(nbytes for _, nbytes in bound.model_path) == bound.model


@pytest.mark.emulator
def test_the_disassembly_agrees_with_the_compiler_about_frames(shipped, tmp_path):
    for board in ("microbit", "mps3-an547"):
        elf = tbn_tvm.compile(shipped, board).save(tmp_path / board) / "build" / "firmware.elf"
        build(tmp_path / board)
        usage = read_usage(elf.parent)
        image = stack._Image.read(elf)
        functions = CallGraph(stack.disassemble(elf), image.functions, {})
        compared = 0
        for address, (name, _size) in image.functions.items():
            known = usage.get(re.sub(r"\.\d+$", "", name))
            # A fault's handler begins the stack anew where that is full.
            if known is not None and name != "Fault_Handler":
                assert functions._walk(address, None).deepest == known.nbytes, name
                compared += 1
        assert compared > 10


@pytest.mark.emulator
def test_a_model_whose_stack_exceeds_the_reserve_is_refused(tmp_path):
    program = torch.export.export(freeze(TiledLinear(16, 8, p=4)), (torch.zeros(1, 16),))
    project = tbn_tvm.compile(program, "stm32vldiscovery", name="net")
    source = project.files["net.c"]
    large = b"{\n  volatile uint8_t large[1000];\n  large[0] = large[999] = 0u;\n"
    project.files["net.c"] = source.replace(
        b"void net_run(void)\n{\n", b"void net_run(void)\n" + large
    )
    with pytest.raises(
        FitError, match=r"may use 1,\d+ bytes of stack, .* keeps 1,024 .* net_run 1"
    ):
        build(project.save(tmp_path / "net"))
