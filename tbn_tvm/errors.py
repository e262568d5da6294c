"""The errors a user can cause, and the exit code each one ends the command line with."""


class TbnError(Exception):
    """Something asked for could not be done; the message says what to do about it.

    Attributes
    ----------
    exit_code : int
        The command line's exit status, 1.
    """

    exit_code = 1


class UsageError(TbnError):
    """The request itself is malformed: an unknown name, a contradictory or missing argument."""

    exit_code = 2


class FormatError(TbnError, ValueError):
    """A tiled tensor, or a file that should hold one, does not obey the format."""


class ArtifactError(TbnError):
    """An artifact file is damaged, incomplete, or of a schema this version does not read."""


class InputError(TbnError, ValueError):
    """Data given to a compiled model differs in name, shape or dtype from what it takes."""


class FitError(TbnError):
    """A model needs more memory than the board has."""


class ToolError(TbnError):
    """A tool this step needs (compiler, emulator) is missing or failed."""


class DeviceError(TbnError):
    """The device did not answer, answered wrongly, or reported a fault."""
