"""vLLM's CPU worker with HybridGen. Importing it is for worker processes only (compat.cpu_worker_class)."""

from hybridgen import compat
from hybridgen.worker import HybridGenWorker


class HybridGenCpuWorker(HybridGenWorker, compat.cpu_worker_class()):
    """All that it adds is in HybridGenWorker."""
