"""Instructions that a core lacks are found, whatever the core; those it has are not."""

import shutil
import subprocess

import pytest

from tbn_tvm.errors import ToolError
from tbn_tvm.micro.disassembly import check_firmware, disassemble
from tbn_tvm.targets import ARCHITECTURES, board_names, load_board

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-as") is None, reason="arm-none-eabi-as not installed"
)


def since(architecture):
    """Whether a board's core is of this architecture or a later one."""
    return lambda board: (
        ARCHITECTURES.index(board.architecture) >= ARCHITECTURES.index(architecture)
    )


def has(feature):
    """Whether a board's core has a feature."""
    return lambda board: feature in board.features


def fpv5(board):
    """Whether a board's FPU has what came after the Cortex-M4's."""
    return "fpu" in board.features and not any("fpv4" in flag for flag in board.cpu_flags)


INSTRUCTIONS = [
    ("adds r0, r0, r1", since("armv6-m")),
    ("muls r0, r1, r0", since("armv6-m")),
    ("ldrsh r0, [r1, r2]", since("armv6-m")),
    ("push {r4, lr}", since("armv6-m")),
    ("bls .", since("armv6-m")),
    ("mrs r0, msp", since("armv6-m")),
    ("dsb", since("armv6-m")),
    ("udf #0", since("armv6-m")),
    ("ldr.w r0, [r1]", since("armv7-m")),
    ("movw r0, #1000", since("armv7-m")),
    ("udiv r0, r1, r2", since("armv7-m")),
    ("cbz r0, .+8", since("armv7-m")),
    ("it eq\n moveq r0, r1", since("armv7-m")),
    ("itte ls\n addls r0, r1\n mlals r0, r1, r2, r3\n subhi r0, r1", since("armv7-m")),
    ("ldrd r0, r1, [r2]", since("armv7-m")),
    ("smlal r0, r1, r2, r3", since("armv7-m")),
    ("ssat r0, #8, r1", since("armv7-m")),
    ("tbb [pc, r0]", since("armv7-m")),
    ("smlad r0, r1, r2, r3", has("dsp")),
    ("smlabt r0, r1, r2, r3", has("dsp")),
    ("smmulr r0, r1, r2", has("dsp")),
    ("qadd r0, r1, r2", has("dsp")),
    ("uhsub16 r0, r1, r2", has("dsp")),
    ("sxtb16 r0, r1", has("dsp")),
    ("sxtab r0, r1, r2", has("dsp")),
    ("it lt\n ssub8lt r0, r1, r2", has("dsp")),
    ("pkhbt r0, r1, r2", has("dsp")),
    ("umaal r0, r1, r2, r3", has("dsp")),
    ("lda r0, [r1]", since("armv8-m.main")),
    ("stlex r0, r1, [r2]", since("armv8-m.main")),
    ("bxns lr", since("armv8-m.main")),
    ("tt r0, r1", since("armv8-m.main")),
    ("dls lr, r0", since("armv8.1-m.main")),
    ("csel r0, r1, r2, eq", since("armv8.1-m.main")),
    ("clrm {r0, r1}", since("armv8.1-m.main")),
    ("vldr s0, [r0]", has("fpu")),
    ("vldr d0, [r0]", has("fpu")),
    ("vpush {d8-d9}", has("fpu")),
    ("vadd.f32 s0, s1, s2", has("fpu")),
    ("vfma.f32 s0, s1, s2", has("fpu")),
    ("vmrs APSR_nzcv, fpscr", has("fpu")),
    ("vcvtb.f32.f16 s0, s1", has("fpu")),
    ("it gt\n vmulgt.f32 s0, s1, s2", has("fpu")),
    ("vmaxnm.f32 s0, s1, s2", fpv5),
    ("vselge.f32 s0, s1, s2", fpv5),
    ("vrintz.f32 s0, s1", fpv5),
    ("vadd.f64 d0, d1, d2", has("double")),
    ("vcvt.f64.f32 d0, s1", has("double")),
    ("vadd.f16 s0, s1, s2", since("armv8.1-m.main")),
    ("vadd.f32 q0, q1, q2", has("mve")),
    ("vldrb.s16 q0, [r0]", has("mve")),
    ("vmladava.s8 r0, q1, q2", has("mve")),
    ("vpst\n vaddt.i32 q0, q1, q2", has("mve")),
    ("vctp.8 r0", has("mve")),
    (".inst.w 0xee243105", lambda board: False),
    (".inst.n 0xba80", lambda board: False),
]


def assembled(path, text):
    """An ELF file of assembly for all that any M-profile core has."""
    extensions = "".join(f".arch_extension {name}\n" for name in ("mve.fp", "fp.dp", "dsp"))
    source = path / "code.s"
    source.write_text(f".syntax unified\n.thumb\n.arch armv8.1-m.main\n{extensions}{text}\n")
    subprocess.run(["arm-none-eabi-as", source, "-o", path / "code.elf"], check=True)
    return path / "code.elf"


@pytest.fixture(scope="module")
def elf(tmp_path_factory):
    """Each instruction in a function of its own."""
    functions = (
        f".type f{index}, %function\nf{index}:\n {text}"
        for index, (text, _) in enumerate(INSTRUCTIONS)
    )
    return assembled(tmp_path_factory.mktemp("code"), "\n".join(functions))


@pytest.mark.parametrize("name", board_names())
def test_exactly_what_the_core_lacks_is_found(name, elf):
    board = load_board(name)
    refused = {int(finding.function[1:]) for finding in check_firmware(elf, board)}
    lacking = {index for index, (_, has_it) in enumerate(INSTRUCTIONS) if not has_it(board)}
    assert [INSTRUCTIONS[i][0] for i in sorted(refused ^ lacking)] == []


def test_an_instruction_is_read_with_its_function_place_and_size(elf):
    first = list(disassemble(elf))[:3]
    assert [(i.function, i.address, i.size, i.mnemonic) for i in first] == [
        ("f0", 0, 2, "adds"),
        ("f1", 2, 2, "muls"),
        ("f2", 4, 2, "ldrsh"),
    ]
    assert first[0].operands == "r0, r0, r1"


def test_data_between_instructions_is_none(tmp_path):
    elf = assembled(tmp_path, "f: nop\n.word 0xfb213002, 0xee243105\n.byte 1, 2\ng: nop")
    assert [i.mnemonic for i in disassemble(elf)] == ["nop", "nop"]
    assert check_firmware(elf, load_board("microbit")) == []


@pytest.mark.parametrize(
    ("called", "boards"),
    [
        ("__aeabi_fadd", {"mps2-an386", "mps2-an500", "mps2-an505", "mps3-an547", "netduinoplus2"}),
        ("__aeabi_dmul", {"mps2-an500", "mps3-an547"}),
        ("__aeabi_idiv", set(board_names()) - {"microbit"}),
        ("__aeabi_l2f", set()),
        ("memcpy", set()),
    ],
)
def test_software_for_what_the_core_does_in_hardware_is_found(called, boards, tmp_path):
    elf = assembled(tmp_path, f"f: bl {called}\n{called}: bx lr")
    found = {name for name in board_names() if check_firmware(elf, load_board(name))}
    assert found == boards


@pytest.mark.parametrize("name", ["malloc", "_malloc_r", "_sbrk", "printf", "siprintf", "_exit"])
def test_what_needs_a_heap_files_or_a_process_is_found(name, tmp_path):
    elf = assembled(tmp_path, f".type {name}, %function\n{name}: bx lr")
    (finding,) = check_firmware(elf, load_board("mps2-an386"))
    assert str(finding).startswith(f"{name}: linked in: needs a heap")


def test_a_missing_disassembler_is_told_with_its_package(elf, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="arm-none-eabi-objdump is not on PATH; on Debian: apt-get"):
        check_firmware(elf, load_board("mps2-an386"))
