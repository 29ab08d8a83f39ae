#!/usr/bin/env bash
# What ptxas reported of every kernel: ptxas_test.sh ARCHITECTURES REPORT... All kernels are there for all architectures,
# and none moves more than a few registers to memory. With --table the same reports become the Markdown table of
# docs/cuda_kernels.md.
set -uo pipefail

if [[ "$1" == --table ]]; then
  shift
  mode=table
else
  mode=test
fi
architectures="$1"
shift
cat "$@" | c++filt | awk -v architectures="$architectures" -v mode="$mode" '
  /Compiling entry function/ {
    architecture = $0
    sub(/.* for .sm_/, "", architecture)
    sub(/[^0-9].*/, "", architecture)
    kernel = $0
    sub(/.*entry function ./, "", kernel)
    sub(/. for .sm_.*/, "", kernel)
    sub(/^void /, "", kernel)
    sub(/\(hybridgen::[^(]*Params\)$/, "", kernel)
    gsub(/hybridgen::|cuda::|arch::|\(|\)/, "", kernel)
    kernels[kernel] = 1
  }
  /spill stores/ {
    stores = $0
    sub(/.*frame, /, "", stores)
    sub(/ bytes spill stores.*/, "", stores)
    spills[kernel, architecture] = stores
  }
  /Used [0-9]+ registers/ {
    registers = $0
    sub(/.*Used /, "", registers)
    sub(/ registers.*/, "", registers)
    used[kernel, architecture] = registers
  }
  END {
    count = split(architectures, names, ",")
    failures = 0
    for (kernel in kernels) {
      line = "| `" kernel "` |"
      for (i = 1; i <= count; ++i) {
        if (!((kernel, names[i]) in used)) {
          print kernel ": not compiled for sm_" names[i]
          ++failures
        } else if (spills[kernel, names[i]] + 0 > 64) {
          print kernel ": " spills[kernel, names[i]] " bytes spilled on sm_" names[i]
          ++failures
        }
        spilled = spills[kernel, names[i]] + 0
        line = line " " used[kernel, names[i]] (spilled > 0 ? " (" spilled " B)" : "") " |"
      }
      if (mode == "table") print line | "sort -V"
      ++total
    }
    close("sort -V")
    if (mode == "test") print total " kernels, " count " architectures"
    exit (failures > 0 || total == 0)
  }'
