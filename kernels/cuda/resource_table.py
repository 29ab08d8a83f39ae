"""Prints the table of docs/cuda_kernels.md: resource_table.py ARCHITECTURE,... REPORT-OF-PTXAS...

Registers and spills are what ptxas says. Occupancy is computed from them and from the launchers' shared memory: the
blocks that fit an SM, by registers (allocated in steps of 8 a thread), shared memory (1 KiB reserved per block) and
warps. Fails if a kernel is missing for an architecture, or spills more than 64 bytes a thread.
"""
import re
import subprocess
import sys

# Architecture: bytes of shared memory and warps of an SM (CUDA programming guide, compute capabilities).
SMS = {"80": (164 << 10, 64), "90": (228 << 10, 64), "100": (228 << 10, 64), "120": (100 << 10, 48)}
REGISTERS = 65536


def shape(kernel, kv, head_size, rows):
    """Threads and dynamic shared memory of a block, as DecodeShape and PrefillShape compute them."""
    row = (head_size // 8 + 1) * 16
    chunk = 2 * 16 * (head_size // (16 if kv.startswith("Float8") else 8) + 1) * 16
    if kernel == "Prefill":
        return 128, 64 * row + 2 * (4 if head_size <= 128 else 2) * chunk
    warps = 4 if head_size <= 128 else 2
    return warps * 32, rows * row + warps * 2 * chunk


def parse(report):
    """Yields (kernel, architecture, registers, spilled bytes)."""
    pattern = re.compile(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'\n.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.S)
    for symbol, architecture, spilled, registers in pattern.findall(report):
        name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
        name = re.sub(r"hybridgen::|cuda::|arch::|^void |\([A-Za-z:]*Params\)\n?$", "", name).replace("(Repack)", "")
        yield name, architecture, int(registers), int(spilled)


def cell(architecture, registers, spilled, threads, shared):
    """Registers and the warps that fit an SM, of its most."""
    memory, most = SMS[architecture]
    warps = threads // 32
    blocks = min(REGISTERS // (threads * ((registers + 7) // 8 * 8)), memory // (shared + 1024), most // warps)
    text = "%d, %d/%d" % (registers, blocks * warps, most)
    return text + ", %d B spilled" % spilled if spilled else text


def main():
    kernels, failures = {}, []
    architectures = sys.argv[1].split(",")
    for path in sys.argv[2:]:
        with open(path) as report:
            for name, *numbers in parse(report.read()):
                kernels.setdefault(name.strip(), []).append(numbers)
    print("| kernel | threads | shared memory, bytes | " + " | ".join("sm_" + a for a in architectures) + " |")
    print("|---|---|---|" + "---|" * len(architectures))

    def order(name):
        return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]

    for symbol in sorted(kernels, key=order):
        name = symbol
        # An MmaTile<T, Kv, head size> or a VectorTile<T, head size, rows>.
        match = re.match(r"(\w+)Kernel<(?:MmaTile<(\w+), (\w+), (\d+)>|VectorTile<(\w+), (\d+), (\d+)>) ?>", name)
        if match:
            element, kv = (match[2], match[3]) if match[2] else (match[5], match[5])
            head_size, rows = int(match[4] or match[6]), int(match[7] or 16)
            threads, shared = shape(match[1], kv, head_size, rows)
            types = element.lower() + (" over " + kv.lower() if kv != element else "")
            name = "%s, %s, head %d, %s" % (match[1].lower(), types, head_size,
                                            "16 rows by mma" if match[2] else "%d by vectors" % rows)
        else:
            threads, shared = 128, 0
            if "Repack" in name:
                shared = 16 * (128 * (1 if "Float8" in name else 2) + 16)
                name = name.replace("RepackKernel<", "").replace(", 0>", " pack").replace(", 1>", " unpack")
                name += ", head 128"
        cells = []
        for architecture, registers, spilled in sorted(kernels[symbol], key=lambda x: int(x[0])):
            cells.append(cell(architecture, registers, spilled, threads, shared))
        print("| %s | %d | %d | %s |" % (name, threads, shared, " | ".join(cells)))
        if [numbers[0] for numbers in sorted(kernels[symbol], key=lambda x: int(x[0]))] != architectures:
            failures.append(symbol + " is not compiled once for every architecture")
        failures += [symbol + " spills" for numbers in kernels[symbol] if numbers[2] > 64]
    if failures or not kernels:
        sys.exit("\n".join(failures) or "no kernel in the reports")


if __name__ == "__main__":
    main()
