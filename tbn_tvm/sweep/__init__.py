"""What a model would take at several compression factors, before any of them is trained."""

from tbn_tvm.sweep.rows import Row, Sweep, sweep

__all__ = ["Row", "Sweep", "sweep"]
