"""Every board builds and runs the same models in the emulator, within what its core has."""

import re

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.errors import DeviceError, FitError, ToolError
from tbn_tvm.micro import Session, build
from tbn_tvm.micro.project import SERVER_FLASH_BYTES, SERVER_RAM_BYTES
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.targets import board_names, load_board

SMALLEST = "stm32vldiscovery"
"""The board with the least RAM, 8 KiB."""

every_board = pytest.mark.parametrize("board", board_names())
BATCH = torch.export.Dim("batch", min=1)


class ConvNet(torch.nn.Module):
    """Two tiled convolutions, pooling and a tiled linear layer, in a few KiB."""

    def __init__(self):
        super().__init__()
        self.conv1 = TiledConv2d(1, 8, 3, padding=1, p=4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.conv2 = TiledConv2d(8, 8, 3, p=4)
        self.fc = TiledLinear(8, 10, p=2)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        x = torch.nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


class Shift(torch.nn.Module):
    """As little work as there can be."""

    def forward(self, x):
        return x + 1


@pytest.fixture(scope="module")
def conv_net():
    """The conv net, trained by nobody, exported with a free batch."""
    torch.manual_seed(0)
    net = ConvNet()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 1, 8, 8)
    return torch.export.export(freeze(net), (x,), dynamic_shapes=({0: BATCH},))


@pytest.fixture(scope="module")
def program():
    """Next to nothing, to put code into."""
    return torch.export.export(Shift(), (torch.zeros(1, 4),))


@pytest.fixture(scope="module")
def images():
    """Two inputs of the conv net, and of the shipped model, by their edge."""
    generator = np.random.default_rng(0)
    return {edge: generator.random((2, 1, edge, edge), "float32") for edge in (8, 28)}


@pytest.fixture(scope="module")
def models(conv_net, example, images):
    """The models by name: what to compile, inputs, and the host's outputs."""
    shipped = example / "mnist_mlp.pt2"
    made = {}
    for name, model, x in (("mnist_mlp", shipped, images[28]), ("conv_net", conv_net, images[8])):
        host = tbn_tvm.compile(model, "llvm")
        x = x.reshape(2, *host.signature.inputs[0].shape[1:])
        made[name] = model, x, host.run(x)
    return made


@pytest.mark.emulator
@pytest.mark.parametrize("name", ["mnist_mlp", "conv_net"])
@every_board
def test_every_board_gives_what_the_host_gives_in_as_many_instructions_each_time(
    board, name, models, tmp_path
):
    model, x, expected = models[name]
    session = Session(tbn_tvm.compile(model, board, name=name).save(tmp_path / name))
    counts = []
    for _ in range(2):
        with session:  # starts the emulator anew
            np.testing.assert_allclose(session.run(x), expected, rtol=1e-5, atol=2e-5)
            counts.append(session.statistics.instructions)
    tick = load_board(board).instructions_per_tick
    np.testing.assert_allclose(counts[0], counts[1], atol=float(tick) + 1)
    # By these figures a model is refused before there is a firmware.
    report, planned = session.build_report, session.project.memory
    assert planned["arena"] <= report.arena < planned["arena"] + 8
    assert 0 <= SERVER_RAM_BYTES - (report.ram - report.arena) < 64
    assert report.flash - report.weights >= SERVER_FLASH_BYTES
    assert report.ram + report.stack_reserved <= load_board(board).ram_bytes


def with_code(project, head="", tail=""):
    """A project with C at the begin and the end of the model's run."""
    source = project.files[f"{project.name}.c"].decode()
    before, opened, body = source.rpartition(f"void {project.name}_run(void)\n{{\n")
    body, closed, after = body.rpartition("}")
    assert opened and closed
    changed = f"{before}{opened}{head}{body}{tail}{closed}{after}"
    project.files[f"{project.name}.c"] = changed.encode()
    return project


@pytest.mark.emulator
@every_board
def test_ticks_become_instructions_at_the_rate_of_the_boards_timer(board, program, tmp_path):
    loops = 1_500_000  # of two instructions
    loop = f"""
  for (uint32_t i = {loops}u, once = 1u; once; once = 0u) {{
    __asm volatile(".syntax unified\\n1: subs %0, #1\\nbne 1b" : "+l"(i) : : "cc");
  }}
"""
    project = with_code(tbn_tvm.compile(program, board, name="net"), loop)
    with Session(project.save(tmp_path / "net")) as session:
        session.run(np.zeros((1, 4), "float32"))
    (counted,) = session.statistics.instructions
    assert 2 * loops <= counted < 2 * loops + 400


TRAP = "  *(volatile uint32_t *)0xE000ED14u {} 8u;\n"
"""Sets or clears CCR.UNALIGN_TRP (Armv7-M ARM, B3.2.8); Armv6-M always traps."""

UNALIGNED = """  __asm volatile("ldr r3, [%0]" : : "l"(arena.bytes + 1) : "r3", "memory");\n"""


@pytest.mark.emulator
@every_board
def test_a_model_never_reads_or_writes_unaligned_words(board, conv_net, images, tmp_path):
    """The core traps what it, or another core, could not execute."""
    always = load_board(board).architecture == "armv6-m"
    trap = ("", "") if always else (TRAP.format("|="), TRAP.format("&= ~"))
    project = with_code(tbn_tvm.compile(conv_net, board, name="net"), *trap)
    with Session(project.save(tmp_path / "net")) as session:
        session.run(images[8][:1])


@pytest.mark.emulator
@pytest.mark.parametrize("board", ["microbit", "mps2-an386"])
def test_an_unaligned_word_is_trapped_where_it_should_be(board, program, tmp_path):
    trap = "" if board == "microbit" else TRAP.format("|=")
    project = with_code(tbn_tvm.compile(program, board, name="net"), trap + UNALIGNED)
    with Session(project.save(tmp_path / "net")) as session, pytest.raises(DeviceError):
        session.run(np.zeros((1, 4), "float32"))


@pytest.mark.emulator
def test_firmware_with_an_instruction_the_core_lacks_is_not_built(program, tmp_path):
    smlad = """  __asm volatile(".inst.w 0xfb213002");\n"""
    project = with_code(tbn_tvm.compile(program, "mps2-an385", name="net"), smlad)
    with pytest.raises(
        ToolError, match=r"mps2-an385's Cortex-M3:\n  net_run: 0x\w+: smlad .*: .* no DSP extension"
    ):
        build(project.save(tmp_path / "net"))
    assert not (tmp_path / "net" / "build" / "firmware.elf").exists()


def exported(model, count):
    """A model of so many inputs as a program."""
    return torch.export.export(freeze(model), (torch.zeros(1, count),))


ROOM = 8_192 - 1_024 - SERVER_RAM_BYTES
"""For the arena, on the smallest board: Shift writes its output over its input, 4 bytes a value."""


@pytest.mark.emulator
def test_what_just_fits_is_not_refused_and_links(tmp_path):
    project = tbn_tvm.compile(exported(Shift(), ROOM // 4), SMALLEST, name="net")
    assert project.memory["arena"] == ROOM
    assert build(project.save(tmp_path / "net")).arena == ROOM


@pytest.mark.parametrize(
    ("model", "count", "told"),
    [
        pytest.param(
            Shift(),
            ROOM // 4 + 1,
            [
                f"RAM: {ROOM + 4:,} bytes of arena, 1,024 of stack and {SERVER_RAM_BYTES} of "
                "the server's, 8,192 available"
            ],
            id="one value too many",
        ),
        pytest.param(
            TiledLinear(2048, 16, p=16),
            2048,
            [r"RAM: 8,\d+ bytes of arena", r"input_x: 8,192 bytes", r"step0_\w+: \d+ bytes"],
            id="an input too large",
        ),
        pytest.param(
            TiledLinear(1024, 1100, p=1, bias=False),
            1024,
            [r"flash: 140,8\d\d bytes of weights, 131,072 available", r"140,8\d\d bytes"],
            id="weights too large",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_no_compiler_at_hand(model, count, told, monkeypatch):
    model = exported(model, count)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FitError, match=f"the model does not fit {SMALLEST}:") as refusal:
        tbn_tvm.compile(model, SMALLEST, name="net")
    for line in told:
        assert re.search(f"(?m)^  .*{line}", str(refusal.value)), str(refusal.value)
