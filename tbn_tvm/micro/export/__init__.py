"""A model as C for other builds: a plain library, Arduino, Zephyr, Model Library Format."""

from tbn_tvm.micro.export.export import KINDS, Export, check_destination, create_export

__all__ = ["KINDS", "Export", "check_destination", "create_export"]
