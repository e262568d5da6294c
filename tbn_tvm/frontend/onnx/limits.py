"""How much of a file's word is taken: bounds that no model meets and hostile files do."""

from __future__ import annotations

FIRST_OPSET = 17
"""The oldest version of ONNX's operators that is read."""

MAX_FILE_BYTES = 2**31 - 1
"""Bytes of a model file: what protocol buffers can hold. Weights beyond that are external data."""

MAX_NODES = 50_000
"""Nodes once functions are inlined. The largest published models have a tenth of that."""

MAX_DEPTH = 32
"""How deep functions and subgraphs nest; the libraries that read them recurse."""

MAX_ELEMENTS = 2**31
"""Elements of one tensor."""

MAX_RANK = 16
"""Axes of one tensor."""

SPARE_BYTES = 2**28
"""What folded constants may take in all beyond what the file's size allows."""

FOLD_FACTOR = 16
"""What folded constants may take for each byte of the file's tensors."""
