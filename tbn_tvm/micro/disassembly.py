"""What a firmware's machine code must not hold: instructions its core lacks, and library calls that
bare metal has no use for.

Emulators run more than the cores they stand for (QEMU's M3 executes the M4's SMLAD), so running a
firmware proves nothing here. The disassembly does, against the lists of the Armv6-M, Armv7-M and
Armv8-M Architecture Reference Manuals.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tbn_tvm.errors import ToolError
from tbn_tvm.targets import Board

DISASSEMBLER = "arm-none-eabi-objdump"
INSTALL_DISASSEMBLER = "apt-get install binutils-arm-none-eabi"
_TIME_LIMIT_S = 60


@dataclass(frozen=True)
class Instruction:
    """A line of the disassembly.

    Attributes
    ----------
    function : str
        The symbol it follows.
    address, size : int
        In bytes.
    mnemonic, operands : str
        As the disassembler prints them.
    """

    function: str
    address: int
    size: int
    mnemonic: str
    operands: str


@dataclass(frozen=True)
class Finding:
    """Something that a firmware must not hold, and where."""

    function: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.function}: {self.where}: {self.reason}"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARMV6_M = _names(
    """adc add adr and asr b bic bkpt bl blx bx cmn cmp cps cpsid cpsie dmb dsb eor isb ldm ldmia
    ldr ldrb ldrh ldrsb ldrsh lsl lsr mov mrs msr mul mvn neg nop orr pop push rev rev16 revsh ror
    rsb sbc sev stm stmia str strb strh sub svc sxtb sxth tst udf uxtb uxth wfe wfi yield"""
)
_ARMV6_M_WIDE = _names("bl dmb dsb isb mrs msr udf")
"""The only 32-bit encodings of Armv6-M."""

_ARMV8_M = _names(
    """blxns bxns lda ldab ldaex ldaexb ldaexh ldah sg stl stlb stlex stlexb stlexh stlh tt tta ttat
    ttt"""
)
_ARMV8_M_BASE = (
    _ARMV6_M
    | _ARMV8_M
    | _names("cbnz cbz clrex ldrex ldrexb ldrexh movt movw sdiv strex strexb strexh udiv")
)
_ARMV7_M = _ARMV6_M | _names(
    """addw bfc bfi cbnz cbz clrex clz csdb dbg ldmdb ldrbt ldrd ldrex ldrexb ldrexh ldrht ldrsbt
    ldrsht ldrt mla mls movt movw orn pld pldw pli pssbb rbit rrx sbfx sdiv smlal smull ssat ssbb
    stmdb strbt strd strex strexb strexh strht strt subw tbb tbh teq ubfx udiv umlal umull usat"""
)
_ARMV8_1_M = _names(
    """asrl aut autg bf bfcsel bfl bflx bfx bti bxaut cinc cinv clrm cneg csel cset csetm csinc
    csinv csneg dls dlstp lctp le letp lsll lsrl pac pacbti pacg sqrshr sqrshrl sqshl sqshll srshr
    srshrl uqrshl uqrshll uqshl uqshll urshr urshrl wls wlstp"""
)
_BASE = {
    "armv6-m": _ARMV6_M,
    "armv7-m": _ARMV7_M,
    "armv7e-m": _ARMV7_M,
    "armv8-m.base": _ARMV8_M_BASE,
    "armv8-m.main": _ARMV7_M | _ARMV8_M,
    "armv8.1-m.main": _ARMV7_M | _ARMV8_M | _ARMV8_1_M,
}
"""Instructions of each architecture, without its extensions."""

_DSP = re.compile(
    r"(s|u|q|uq|sh|uh)(add|sub)(8|16)|(s|u|q|uq|sh|uh)(asx|sax)|qd?(add|sub)|sel|pkh(bt|tb)"
    r"|sml(a|al)(bb|bt|tb|tt|w[bt])|smlaw[bt]|sml[as]l?dx?|smml[as]r?|smmulr?|smu[as]dx?"
    r"|smul(bb|bt|tb|tt|w[bt])|[su]sat16|[su]xta[bh]|[su]xta?b16|usada?8|umaal"
)
_VFP = _names(
    """vabs vadd vcmp vcmpe vcvt vcvtb vcvtr vcvtt vdiv vfma vfms vfnma vfnms vldm vldmdb vldmia
    vldr vlldm vlstm vmla vmls vmov vmrs vmsr vmul vneg vnmla vnmls vnmul vpop vpush vsqrt vstm
    vstmdb vstmia vstr vsub"""
)
_FPV5 = _names(
    """vcvta vcvtm vcvtn vcvtp vmaxnm vminnm vrinta vrintm vrintn vrintp vrintr vrintx vrintz
    vseleq vselge vselgt vselvs"""
)
_CONDITIONS = _names("eq ne cs hs cc lo mi pl vs vc hi ls ge lt gt le al")
_IT = re.compile(r"it[te]{0,3}")
_VECTOR_OPERAND = re.compile(r"\bq[0-7]\b")

_HOSTED = re.compile(
    r"_*(malloc|calloc|realloc|free|sbrk|v?s?n?i?printf|fi?printf|puts|putchar|fwrite|fputs|write|"
    r"exit|abort|assert_func|atexit)(_r)?"
)
"""Library functions that need a heap, files or a process."""

_SOFTWARE = {
    "fpu": re.compile(r"__aeabi_(f(add|sub|rsub|mul|div|cmp\w+|2u?iz)|u?i2f)"),
    "double": re.compile(r"__aeabi_(d(add|sub|rsub|mul|div|cmp\w+|2u?iz|2f)|u?i2d|f2d)"),
    "divide": re.compile(r"__aeabi_u?idiv(mod)?"),
}
"""Arithmetic in software that a core with the feature does in one instruction."""


def check_firmware(elf: Path, board: Board) -> list[Finding]:
    """What a firmware holds that its board's core lacks, or that has no place on bare metal.

    Raises
    ------
    ToolError
        Where the disassembler is missing or fails.
    """
    core = _Core(board)
    findings = [
        Finding(name, "linked in", "needs a heap, files or a process, which bare metal has not")
        for name in _function_names(elf)
        if _HOSTED.fullmatch(name)
    ]
    for instruction in disassemble(elf):
        reason = core.refusal(instruction)
        if reason:
            where = f"{instruction.address:#x}: {instruction.mnemonic} {instruction.operands}"
            findings.append(Finding(instruction.function, where.rstrip(), reason))
    return findings


def disassemble(elf: Path) -> Iterator[Instruction]:
    """The instructions of a firmware, decoded with all that any M-profile core has.

    Raises
    ------
    ToolError
        Where the disassembler is missing or fails.
    """
    tool = shutil.which(DISASSEMBLER)
    if tool is None:
        raise ToolError(f"{DISASSEMBLER} is not on PATH; on Debian: {INSTALL_DISASSEMBLER}")
    command = [tool, "-d", "-w", "-m", "armv8.1-m.main", str(elf)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"{DISASSEMBLER} ran for more than {_TIME_LIMIT_S} s and was stopped"
        ) from None
    if result.returncode:
        raise ToolError(f"{DISASSEMBLER} failed:\n{result.stderr.strip()}")
    return _parse(result.stdout)


_SYMBOL = re.compile(r"[0-9a-f]+ <(.+)>:")
_CODE = re.compile(r"\s*([0-9a-f]+):\t([0-9a-f]{4}(?: [0-9a-f]{4})?) *\t(?!\.)(\S*)\t?([^@;]*)")


def _parse(text: str) -> Iterator[Instruction]:
    function = ""
    for line in text.splitlines():
        if symbol := _SYMBOL.fullmatch(line):
            function = symbol.group(1)
        # Data in between has no mnemonic, or a directive.
        elif code := _CODE.match(line):
            address, halves, mnemonic, operands = code.groups()
            size = 2 * len(halves.split())
            yield Instruction(function, int(address, 16), size, mnemonic, operands.strip())


class _Core:
    """What a board's core can execute."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.base = _BASE[board.architecture]
        self.narrow = board.architecture in ("armv6-m", "armv8-m.base")
        # FPv4 is the Cortex-M4's unit; all later ones are FPv5.
        self.fpv5 = not any("fpv4" in flag for flag in board.cpu_flags)
        features = set(board.features)
        if "udiv" in self.base:
            features.add("divide")
        self.software = [pattern for name, pattern in _SOFTWARE.items() if name in features]

    def refusal(self, instruction: Instruction) -> str | None:
        """Why the core cannot execute an instruction, or None."""
        mnemonic = instruction.mnemonic.removesuffix(".n").removesuffix(".w")
        if not mnemonic:
            return "no instruction at all"
        if mnemonic.startswith("v"):
            return self._vector_refusal(mnemonic, instruction.operands)
        forms = _forms(mnemonic)
        if any(_DSP.fullmatch(form) for form in forms):
            return None if "dsp" in self.board.features else "the core has no DSP extension"
        if self.board.architecture == "armv6-m" and instruction.size == 4:
            known = not forms.isdisjoint(_ARMV6_M_WIDE)
        else:
            known = not forms.isdisjoint(self.base)
            known = known or (not self.narrow and _IT.fullmatch(mnemonic) is not None)
        if not known:
            return f"not in {self.board.architecture}"
        return self._call_refusal(instruction)

    def _vector_refusal(self, mnemonic: str, operands: str) -> str | None:
        features = self.board.features
        name, *types = mnemonic.split(".")
        forms = _forms(name)
        scalar = not _VECTOR_OPERAND.search(operands) and not forms.isdisjoint(_VFP | _FPV5)
        if not scalar:
            return None if "mve" in features else "the core has no MVE"
        if not features & {"fpu", "mve"}:
            return "the core has no FPU"
        if "f64" in types and "double" not in features:
            return "the core's FPU has no double precision"
        if not self.fpv5 and forms.isdisjoint(_VFP):
            return "the core's FPU is FPv4, this is FPv5"
        half = "f16" in types and forms.isdisjoint({"vcvtb", "vcvtt"})
        if half and self.board.architecture != "armv8.1-m.main":
            return "the core's FPU has no arithmetic of half precision"
        return None

    def _call_refusal(self, instruction: Instruction) -> str | None:
        if instruction.function.startswith("__aeabi_") or "<" not in instruction.operands:
            return None
        called = instruction.operands.rpartition("<")[2].rstrip(">")
        if any(pattern.fullmatch(called) for pattern in self.software):
            return "arithmetic in software that the core does in hardware"
        return None


def _forms(mnemonic: str) -> set[str]:
    """A mnemonic as it is, and without its condition and its flag-setting ``s``."""
    forms = {mnemonic}
    forms |= {mnemonic.removesuffix(condition) for condition in _CONDITIONS}
    return forms | {form.removesuffix("s") for form in forms}


def _function_names(elf: Path) -> list[str]:
    from elftools.elf.elffile import ELFFile

    with elf.open("rb") as file:
        return sorted(
            {
                symbol.name
                for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols()
                if symbol["st_info"]["type"] == "STT_FUNC"
            }
        )
