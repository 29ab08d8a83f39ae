#!/usr/bin/env bash
# Fetches what the guests of tests/numa_vm need beside packages of the distribution, and unpacks it below the cache:
# Debian's cloud kernels 6.12 and 6.1, and a qemu that emulates volatile CXL memory. Nothing of it is installed, and
# apt's own state stays as it is. Quick when nothing is missing, safe to run twice at once. A part that cannot be had is
# named and left out: the tests that need it say so and are skipped.
set -euo pipefail

readonly GUESTS="${HYBRIDGEN_GUESTS:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridgen/guests}"
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf '[install] %s\n' "$*" >&2; }

# Prints the address of the archive from which this machine takes the given suite.
archive_of() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $1" | head -n 1
}

# apt-get with sources, lists and cache of its own.
private_apt() {
  apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" \
    -o "Dir::Cache=$work/cache" -o APT::Sandbox::User= -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
}

prepare_private_apt() {
  local main security
  main="$(archive_of bookworm)"
  security="$(archive_of bookworm-security)"
  [[ -n "$main" && -n "$security" ]] || return 1
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  printf "deb [signed-by=$KEYRING] %s %s main\n" "$main" bookworm "$main" bookworm-backports "$security" \
    bookworm-security >"$work/sources.list"
  private_apt update
}

# The newest cloud kernel of a series such as 6.12, as a package name.
newest_kernel() {
  apt-cache -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" \
    -o "Dir::Cache=$work/cache" pkgnames "linux-image-$1" | grep -E "^linux-image-${1/./\\.}\.[0-9]+.*-cloud-amd64$" |
    sort -V | tail -n 1
}

# Downloads packages and unpacks them into a folder; their names and versions go to the list of what is there.
unpack() {
  local folder="$1" packages
  shift
  packages="$(mktemp -d "$work/packages.XXXXXX")"
  (cd "$packages" && private_apt download "$@" >&2) || return 1
  local package
  for package in "$packages"/*.deb; do
    dpkg-deb --extract "$package" "$folder" || return 1
    dpkg-deb --showformat '${Package} ${Version}\n' --show "$package" >>"$folder/packages.txt"
  done
  rm -rf "$packages"
}

fetch_kernel() {
  local series="$1" package from to
  package="$(newest_kernel "$series")"
  [[ -n "$package" ]] || return 1
  from="$work/kernel-$series"
  to="$work/linux-$series"
  unpack "$from" "$package" || return 1
  mkdir -p "$to/modules"
  cp "$from"/boot/vmlinuz-* "$to/vmlinuz"
  cp "$from/packages.txt" "$to/"
  find "$from" -path '*/drivers/cxl/*' -o -path '*/drivers/dax/*' -o -path '*/drivers/nvdimm/*' | while read -r module; do
    case "$module" in
      *.ko) cp "$module" "$to/modules/" ;;
      *.ko.xz) xz --decompress --stdout "$module" >"$to/modules/$(basename "$module" .xz)" ;;
    esac
  done
  mv "$to" "$GUESTS/linux-$series"
}

fetch_qemu() {
  unpack "$work/qemu-cxl" -t bookworm-backports qemu-system-x86 qemu-system-common qemu-system-data || return 1
  mv "$work/qemu-cxl" "$GUESTS/qemu-cxl"
}

fetch_missing() {
  local part
  for part in "$@"; do
    [[ ! -e "$GUESTS/$part" ]] || continue
    say "fetching $part for the guests of tests/numa_vm"
    case "$part" in
      linux-*) fetch_kernel "${part#linux-}" ;;
      qemu-cxl) fetch_qemu ;;
    esac || say "$part cannot be fetched: tests that need it will be skipped"
  done
  # Changes with what is there, so that Bazel runs the tests again.
  cat "$GUESTS"/*/packages.txt >"$work/packages.txt" 2>/dev/null || true
  mv "$work/packages.txt" "$GUESTS/packages.txt"
}

readonly PARTS=(linux-6.12 linux-6.1 qemu-cxl)
complete() {
  local part
  for part in "${PARTS[@]}"; do [[ -e "$GUESTS/$part" ]] || return 1; done
}

complete && exit 0
mkdir -p "$GUESTS"
exec 9>"$GUESTS.lock"
flock 9
complete && exit 0
work="$(mktemp -d "$GUESTS/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT
if [[ ! -e "$KEYRING" ]] || ! prepare_private_apt; then
  say "the guests of tests/numa_vm need the archive of Debian 12: their tests will be skipped"
  exit 0
fi
fetch_missing "${PARTS[@]}"
