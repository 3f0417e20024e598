"""Errors a user can meet; each message says what was expected, what was got, and what to do."""


class LatentFlowsError(Exception):
    """Root of every error raised on purpose; the command line prints its message without a traceback."""


class ShapeError(LatentFlowsError, ValueError):
    """A tensor does not have the shape that the interface states."""


class DataError(LatentFlowsError, ValueError):
    """Input data, or a file, is missing, malformed or out of range."""


class NonFiniteError(DataError):
    """A value that must be finite is NaN or infinite."""


class ConfigurationError(LatentFlowsError, ValueError):
    """A setting is unknown or out of range."""


class CombinationError(LatentFlowsError, ValueError):
    """Two parts, each valid alone, cannot do what their places together need."""


class MissingDirectionError(LatentFlowsError, ValueError):
    """A bijection was used in a direction that it does not have."""


class CheckpointError(LatentFlowsError, ValueError):
    """A saved run or model is missing, damaged, or belongs to something else."""
