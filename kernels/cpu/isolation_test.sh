#!/bin/bash
# The objects compiled with ISA flags must not define weak (inline, template) symbols: the linker keeps one copy for the
# whole program, and it could be the one that the CPU cannot run. Arguments: the ISA libraries.
set -u
failed=0
seen=0
for library in "$@"; do
  symbols=$(nm --defined-only "$library") || { echo "nm cannot read $library"; exit 1; }
  seen=$((seen + $(grep -c ' [tT] ' <<<"$symbols")))
  weak=$(awk 'NF == 3 && $2 ~ /^[WwVvuiI]$/' <<<"$symbols" | c++filt)
  # The sanitizers' own runtime hooks are the same code in every object.
  weak=$(grep -vE ' (__asan|__ubsan|__sanitizer|__odr_asan|DW\.ref)' <<<"$weak")
  if [[ -n "$weak" ]]; then
    echo "$library defines symbols that the linker may merge across ISA levels:"
    echo "$weak"
    failed=1
  fi
  # One exported symbol: the rows.
  exported=$(awk 'NF == 3 && $2 ~ /^[A-TX-Z]$/ {print $3}' <<<"$symbols" | c++filt | grep -vE '^(__asan|__ubsan|__odr_asan)')
  if [[ $(wc -l <<<"$exported") -ne 1 || ! "$exported" =~ ^hybridgen::k[A-Za-z0-9]+Kernels$ ]]; then
    echo "$library should export its rows and nothing else, but exports:"
    echo "$exported"
    failed=1
  fi
done
if [[ $seen -lt 100 ]]; then
  echo "only $seen functions seen: the test looks at the wrong files"
  failed=1
fi
exit $failed
