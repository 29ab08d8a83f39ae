"""Exception types of the package: one per status code of the C ABI, each also the matching built-in type."""


class HybridGenError(RuntimeError):
    """Base of every error that HybridGen raises; `code` is the hg_status value."""

    code = 13


class InvalidArgument(HybridGenError, ValueError):
    """A field has a value outside the accepted ones; the message names both."""

    code = 3


class DeadlineExceeded(HybridGenError):
    """A wait lasted longer than HYBRIDGEN_TIMEOUT."""

    code = 4


class ResourceExhausted(HybridGenError, MemoryError):
    """A tier or the machine has no room; the message names the sizes."""

    code = 8


class FailedPrecondition(HybridGenError):
    """The call is not possible in this state, for example on a closed backend or after fork()."""

    code = 9


class Unimplemented(HybridGenError, NotImplementedError):
    """A request that HybridGen does not serve; refused by name."""

    code = 12


class Unavailable(HybridGenError):
    """Something the operating system should provide is not there."""

    code = 14


_BY_CODE = {
    error.code: error
    for error in (
        InvalidArgument,
        DeadlineExceeded,
        ResourceExhausted,
        FailedPrecondition,
        Unimplemented,
        Unavailable,
    )
}


def from_status(code: int, message: str) -> HybridGenError:
    """The exception for a status of the C ABI; unknown codes give the base class, whose code is INTERNAL."""
    return _BY_CODE.get(code, HybridGenError)(message)
