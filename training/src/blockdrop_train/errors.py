"""The errors that a user can mend; the command line prints them without a trace."""


class UserError(Exception):
    """What the user gave cannot be worked with."""


class ConfigError(UserError):
    """A configuration that does not say what is needed."""


class DataError(UserError):
    """A data set that is missing or not what its format says."""


class TrainingError(UserError):
    """A training that came to nothing."""


class CheckpointError(UserError):
    """A checkpoint that is missing or does not fit."""


class ExportError(UserError):
    """A net that cannot be written, or a bundle that does not agree with its net."""


MENDABLE = (UserError, ValueError, OSError)
"""What the command line reports in one line: these, and files that cannot be read or written."""
