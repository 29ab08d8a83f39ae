"""HybridGen: paged attention for vLLM whose KV cache spans device memory, host DRAM and CXL memory.

Importing this package loads neither vLLM nor torch. vLLM itself finds the plug-in through the entry point
`hybridgen.plugin:register`.
"""

__version__ = "0.1.0"
