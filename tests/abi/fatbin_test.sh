#!/usr/bin/env bash
# libhybridgen.so holds machine code for every architecture that the kernels are compiled for, and PTX of the last:
# fatbin_test.sh LIBRARY ARCHITECTURES
set -euo pipefail

library="$1"
architectures="$2"

# The section's format: containers (magic 0xba55ed50, header and total size), each with entries (kind 1 = PTX, 2 = ELF;
# sizes; architecture). cuobjdump prints the same where the toolkit has it.
section="$(mktemp)"
trap 'rm -f "$section"' EXIT
objcopy --dump-section .nv_fatbin="$section" "$library" /dev/null
python3 - "$section" "$architectures" <<'PY'
import struct
import sys

data = open(sys.argv[1], "rb").read()
wanted = {("elf", int(a)) for a in sys.argv[2].split(",")}
wanted.add(("ptx", int(sys.argv[2].split(",")[-1])))
at, containers = 0, 0
while at + 16 <= len(data):
    magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
    if magic != 0xBA55ED50:
        at += 8  # padding between containers
        continue
    containers += 1
    found, entry, end = set(), at + header, at + header + size
    while entry + 32 <= end:
        kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
        arch = struct.unpack_from("<I", data, entry + 28)[0]
        found.add(({1: "ptx", 2: "elf"}.get(kind, str(kind)), arch))
        entry += entry_header + entry_size
    missing = wanted - found
    # The linker of device code adds containers of its own, without PTX.
    if missing - {w for w in wanted if w[0] == "ptx"} and found:
        sys.exit(f"container {containers} has {sorted(found)}, and not {sorted(missing)}")
    print(f"container {containers}: {sorted(found)}")
    at = end
if containers == 0:
    sys.exit("the library holds no device code")
PY
if command -v cuobjdump >/dev/null; then
  cuobjdump --list-elf "$library"
else
  echo "cuobjdump is not installed: its own list is left out"
fi
