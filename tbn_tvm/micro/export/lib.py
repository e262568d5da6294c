"""A plain C library: one header with the contract, one source, and what it takes to build them."""

from __future__ import annotations

from tbn_tvm.micro.export.facts import Facts


def files(facts: Facts) -> dict[str, bytes]:
    """The library's files by path."""
    return {
        f"{facts.name}.h": facts.header.encode(),
        f"{facts.name}.c": facts.source.encode(),
        **facts.beside(""),
        "README.md": facts.render("lib/README.md.jinja"),
        "CMakeLists.txt": facts.render("lib/CMakeLists.txt.jinja"),
        "example/main.c": facts.render("lib/main.c.jinja"),
    }
