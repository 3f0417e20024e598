"""Why something failed, in words that say what to do where a user can do something about it."""

from __future__ import annotations

import errno

from latentflows.core.errors import LatentFlowsError

OUT_OF_MEMORY = (
    "Out of memory. Lower training.batch_size, objective.num_samples, the sizes of the model or the number of workers, "
    "or raise training.accumulate."
)


def reason_of(error: BaseException) -> str:
    """Name a full disk and missing memory; of anything else return the message, with the type where it is foreign."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full ({error.filename or 'while writing the run'}). Free space and use --resume."
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, LatentFlowsError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a GPU; torch need not be imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    told = ("allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in text for words in told)
