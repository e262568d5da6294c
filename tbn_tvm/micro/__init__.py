"""Bare metal: memory plan, generated C, build, and a session with the device."""

from tbn_tvm.micro.build import BuildReport, build
from tbn_tvm.micro.project import Project
from tbn_tvm.micro.session import Session

__all__ = ["BuildReport", "Project", "Session", "build"]
