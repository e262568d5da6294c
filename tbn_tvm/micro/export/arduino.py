"""An Arduino library, by the library specification 1.5 (revision 2.2).

Tests build the sketch against a stand-in for the core's header; no Arduino tool has built it yet.
"""

from __future__ import annotations

from tbn_tvm.micro.export.facts import Facts


def files(facts: Facts) -> dict[str, bytes]:
    """The library's files by path."""
    sketch = facts.title
    return {
        "library.properties": facts.render("arduino/library.properties.jinja"),
        "keywords.txt": facts.render("arduino/keywords.txt.jinja"),
        "README.md": facts.render("arduino/README.md.jinja"),
        f"src/{facts.name}.h": facts.header.encode(),
        f"src/{facts.name}.c": facts.source.encode(),
        **facts.beside("src/"),
        # The specification wants a sketch named like its folder.
        f"examples/{sketch}/{sketch}.ino": facts.render("arduino/sketch.ino.jinja"),
    }
