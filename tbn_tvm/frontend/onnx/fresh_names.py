"""Names for values that preparation adds to a graph."""

from __future__ import annotations

from tbn_tvm.frontend.onnx.graph import Graph, nodes_inside


class FreshNames:
    """Names that nothing in a graph or its branches has.

    Parameters
    ----------
    graph : Graph
        What it makes later under other names is not known.
    """

    def __init__(self, graph: Graph) -> None:
        self._taken = set(graph.constants) | {value.name for value in graph.inputs}
        for node in nodes_inside(graph.nodes):
            # What an input names and nothing makes is an error that must stay one.
            self._taken.update(node.output, node.input)
        # Counting from the start each time would be quadratic where all branches use one name.
        self._last: dict[str, int] = {}

    def like(self, name: str) -> str:
        """The name itself while it is free, and numbered after that."""
        found, number = name, self._last.get(name, 0)
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._last[name] = number
        self._taken.add(found)
        return found
