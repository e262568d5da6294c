"""Reading ``.pt2`` files: nothing in a file is run, and none costs more than its size.

A saved program is a zip archive of raw tensors, JSON and pickles. PyTorch's loader falls back to
unpickling anything, evaluates the expressions of symbolic sizes as Python, imports what names in
the JSON ask for, and compiles guards from source text. So an archive is read here first, held
against what ``torch.export.save`` writes for a model of tensors, and only a copy of what was
checked is given to PyTorch.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import FormatError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MAX_MEMBERS = 100_000
MAX_ELEMENTS = 2**31

# Below the archive's one folder, as torch 2.8 and newer write it, and without a folder, as older.
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_PICKLES = re.compile(
    r"data/(weights|constants|sample_inputs)/model\.pt"
    r"|serialized_(state_dict|constants|example_inputs)\.pt"
)
_CONFIGS = re.compile(r"data/(weights|constants)/model_\w+_config\.json")
_PROGRAMS = re.compile(r"models/model\.json|serialized_exported_program\.json")
_LABELS = re.compile(r"archive_format|archive_version|version|byteorder|\.\w+|\.data/\w+")
_EXTRAS = re.compile(r"extra/.*|extra_files/.*|.*/")

_NAME = re.compile(r"[A-Za-z_][\w.]*")
_PLAIN = re.compile(r"[^\"'\\\x00-\x1f]*")
_TARGET = re.compile(
    r"torch\.ops\.[a-z]\w*\.\w+(\.\w+)?|torch\.sym_\w+|torch\._sym_\w+"
    r"|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|le|lt|ge|gt|and_|or_|getitem|pos)"
)
_FUNCTION_NAMES = """
    Symbol Integer Float Rational Add Mul Pow Mod FloorDiv CleanDiv CeilDiv PythonMod
    ModularIndexing Max Min Abs IntTrueDiv FloatTrueDiv CeilToInt FloorToInt TruncToInt ToFloat
    PowByNatural Identity Equality Unequality StrictGreaterThan StrictLessThan GreaterThan LessThan
    Eq Ne Gt Ge Lt Le And Or Not ceiling floor true false
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Constant, ast.Name, ast.Load),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.Compare, ast.Eq, ast.NotEq),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_CONTAINERS = frozenset(
    [None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"]
)


def load_program(path: Path) -> ExportedProgram:
    """Load a program saved by ``torch.export.save``.

    Raises
    ------
    FormatError
        For what is no such file, is damaged, or holds more than tensors and a graph.
    Exception
        Whatever PyTorch raises for a graph that it does not understand.
    """
    import torch

    import tbn_tvm.nn.ops  # noqa: F401  (the operators a saved program refers to)

    return torch.export.load(checked_copy(path.read_bytes()))


def checked_copy(content: bytes) -> io.BytesIO:
    """The archive's members that were checked, as an archive of their own."""
    members = _read_archive(content)
    folder = _common_folder(members)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            below = name.removeprefix(folder)
            if _EXTRAS.fullmatch(below):
                continue
            if _PICKLES.fullmatch(below):
                _check_pickle(below, data)
            elif _CONFIGS.fullmatch(below):
                _check_tensors(below, _parse(below, data), members, folder)
            elif _PROGRAMS.fullmatch(below):
                program = _parse(below, data)
                # Source text that would be compiled: checks of inputs, which we do ourselves.
                program["guards_code"] = []
                _check(program, "")
                data = json.dumps(program).encode()
            elif not (_TENSORS.fullmatch(below) or _LABELS.fullmatch(below)):
                raise FormatError(f"it holds {below!r}, which is no part of a saved program")
            archive.writestr(name, data)
    copy.seek(0)
    return copy


def _read_archive(content: bytes) -> dict[str, bytes]:
    """The members of a zip archive that stores them as they are."""
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_MEMBERS or sum(i.file_size for i in infos) > len(content):
                raise FormatError("its members are larger than the file itself")
            for info in infos:
                if info.compress_type != zipfile.ZIP_STORED or info.filename in members:
                    raise FormatError(f"member {info.filename!r} is compressed or there twice")
                members[info.filename] = archive.read(info)
    except FormatError:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged input
        raise FormatError(f"not an archive, or damaged ({error})") from None
    return members


def _common_folder(members: dict[str, bytes]) -> str:
    if "serialized_exported_program.json" in members:
        return ""
    folders = {name.partition("/")[0] for name in members}
    if len(folders) != 1:
        raise FormatError("its members are not in one folder")
    return f"{folders.pop()}/"


def _parse(name: str, data: bytes) -> dict:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise FormatError(f"{name} is no JSON object")
    return value


def _check_pickle(name: str, data: bytes) -> None:
    """A pickle must load where only tensors and containers may be made."""
    import torch

    if not data:
        return
    if zipfile.is_zipfile(io.BytesIO(data)):
        _read_archive(data)  # stored, not compressed
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # any: PyTorch would go on to unpickle without restrictions
        raise FormatError(
            f"{name} is damaged or holds more than tensors, which could run code when loaded"
        ) from None


def _check_tensors(name: str, config: dict, members: dict[str, bytes], folder: str) -> None:
    """Tensors described in a configuration must lie within what the archive stores for them."""
    total, allowed = 0, 2**24 + 16 * sum(map(len, members.values()))
    base = name.rpartition("/")[0]
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise FormatError(f"{name} describes no tensors")
    for tensor, entry in entries.items():
        where = f"tensor {tensor!r}"
        try:
            path, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or not _TENSORS.fullmatch(f"{base}/{path}"):
                raise FormatError(f"{where} is a Python object, which could run code when loaded")
            sizes = [size["as_int"] for size in meta["sizes"]]
            stored = len(members[f"{folder}{base}/{path}"])
        except (KeyError, TypeError) as error:
            raise FormatError(f"{where} is described wrongly ({error!r})") from None
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise FormatError(f"{where} has sizes {sizes}")
        elements = math.prod(sizes)
        # A view may repeat what is stored, but not without end.
        total += elements
        if (elements and not stored) or elements > MAX_ELEMENTS or total > allowed:
            raise FormatError(f"{where} has {elements:,} elements, and {stored:,} bytes are stored")


def _check(value, key: str) -> None:
    """Every string of a program must be what its place asks for."""
    if isinstance(value, dict):
        if key == "custom_obj_values" and value:
            raise FormatError("the program holds custom objects; only tensors are supported")
        if key == "metadata":
            # What each node was in the Python source, which nothing here needs.
            value.clear()
        for inner, held in value.items():
            if not _PLAIN.fullmatch(inner):
                raise FormatError(f"the name {inner!r} is none that PyTorch gives")
            _check(held, inner)
    elif isinstance(value, list):
        for held in value:
            _check(held, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_text(text: str, key: str) -> None:
    if key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_containers(text)
    elif key in ("target", "as_operator"):
        if not _TARGET.fullmatch(text):
            raise FormatError(f"the program calls {text!r}, which is no operator on tensors")
    elif key in ("name", "forward_arg_names"):
        if text and not _NAME.fullmatch(text):
            raise FormatError(f"the name {text!r} is none that PyTorch gives")
    elif not _PLAIN.fullmatch(text) and key != "as_string":
        raise FormatError(f"the text {text!r} ({key}) is none that PyTorch writes")


def _check_expression(text: str) -> None:
    """Arithmetic on symbols and numbers; PyTorch evaluates the text as Python."""
    refusal = FormatError(f"the size {text[:80]!r} is no arithmetic on symbols")
    if len(text) > 2000:
        raise refusal
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal from None
    powers = 0
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise refusal
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name not in _FUNCTIONS:
                raise refusal
            if name in ("Pow", "PowByNatural"):
                powers += 1
                _check_exponent(node.args[1:], refusal)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            powers += 1
            _check_exponent([node.right], refusal)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not node.value.isidentifier():
                raise refusal
            if isinstance(node.value, int) and abs(node.value) >= 2**63:
                raise refusal
            if not isinstance(node.value, (str, int, float)):
                raise refusal
    if powers > 4:
        raise refusal


def _check_exponent(arguments: list[ast.expr], refusal: FormatError) -> None:
    """At most 8, whichever way it is written."""
    numbers = [n.value for a in arguments for n in ast.walk(a) if isinstance(n, ast.Constant)]
    if len(arguments) != 1 or not all(isinstance(n, int) and n <= 8 for n in numbers):
        raise refusal


def _check_containers(text: str) -> None:
    """Inputs and outputs nest in Python's own containers; others are imported by name."""
    if not text:
        return
    try:
        pending = [json.loads(text)]
    except (ValueError, RecursionError):
        raise FormatError("the structure of inputs or outputs is damaged") from None
    while pending:
        held = pending.pop()
        if isinstance(held, list):
            pending.extend(held)
        elif isinstance(held, dict):
            if held.get("type") not in _CONTAINERS:
                raise FormatError(
                    f"inputs or outputs are of {held.get('type')}: expected tuples, lists and dicts"
                )
            pending.append(held.get("children_spec"))
