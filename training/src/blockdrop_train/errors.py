"""The errors that a user can mend; the command line prints them without a trace."""


class ConfigError(Exception):
    """A configuration that does not say what is needed."""


class DataError(Exception):
    """A data set that is missing or not what its format says."""


class TrainingError(Exception):
    """A training that came to nothing."""


class CheckpointError(Exception):
    """A checkpoint that is missing or does not fit."""


class ExportError(Exception):
    """A net that cannot be written, or a bundle that does not agree with its net."""
