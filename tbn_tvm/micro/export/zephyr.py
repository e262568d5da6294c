"""A Zephyr module with a sample application.

Tests build both with stand-ins for the CMake functions and headers they use; Zephyr itself has not
built them yet.
"""

from __future__ import annotations

from tbn_tvm.micro.export.facts import Facts


def files(facts: Facts) -> dict[str, bytes]:
    """The module's files by path."""
    sample = f"samples/{facts.name}"
    return {
        "zephyr/module.yml": facts.render("zephyr/module.yml.jinja"),
        "CMakeLists.txt": facts.render("zephyr/CMakeLists.txt.jinja"),
        "Kconfig": facts.render("zephyr/Kconfig.jinja"),
        "README.md": facts.render("zephyr/README.md.jinja"),
        f"include/{facts.name}.h": facts.header.encode(),
        f"src/{facts.name}.c": facts.source.encode(),
        **facts.beside("src/"),
        f"{sample}/CMakeLists.txt": facts.render("zephyr/sample.cmake.jinja"),
        f"{sample}/prj.conf": facts.render("zephyr/prj.conf.jinja"),
        f"{sample}/sample.yaml": facts.render("zephyr/sample.yaml.jinja"),
        f"{sample}/src/main.c": facts.render("zephyr/main.c.jinja"),
    }
