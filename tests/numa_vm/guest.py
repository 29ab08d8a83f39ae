#!/usr/bin/env python3
"""Runs GoogleTest programs in an emulated machine with several memory nodes: guest.py OPTIONS PROGRAM...

The guest is a Debian kernel and an initramfs of busybox, the programs and their shared libraries, emulated without KVM
and without privileges. Every test case of every program goes to $XML_OUTPUT_FILE, as of any test. Where the emulator
or the kernel is missing there is one skipped case that says so.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree

sys.dont_write_bytecode = True
import machines  # pylint: disable=wrong-import-position

# Of memory devices, in the order in which they must be loaded.
DEVICE_MODULES = ("libnvdimm", "device_dax", "kmem", "dax_hmem", "dax_cxl", "dax_pmem", "cxl_acpi", "cxl_pmem", "cxl_pci",
                  "cxl_mem")
# What a guest's programs learn of the environment of this one: how to repeat a test, and which tests to run.
PASSED_ON = ("HYBRIDGEN_TEST_SEED", "TESTBRIDGE_TEST_ONLY")
# Guests take seconds. This is for a machine that is busy with other work, and ends one that hangs.
TIMEOUT_SECONDS = 500


class Unavailable(Exception):
    """What a guest needs is not on this machine."""


def need(path: str | os.PathLike | None, what: str) -> str:
    if not path or not os.path.exists(path):
        raise Unavailable(f"{what} is not here: third_party/install.sh --tests could not install it")
    return str(path)


def shared_libraries(program: str) -> list[str]:
    """Absolute paths of the libraries and the loader that a program needs."""
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [word for line in listing.splitlines() for word in line.split() if word.startswith("/")]


def write_initramfs(folder: pathlib.Path, options: argparse.Namespace, machine: machines.Machine) -> pathlib.Path:
    root = folder / "root"
    for name in ("bin", "dev", "modules", "proc", "sys", "tests", "tmp"):
        (root / name).mkdir(parents=True)
    here = pathlib.Path(__file__).parent
    shutil.copy(need(shutil.which("busybox"), "busybox"), root / "bin/busybox")
    shutil.copy(here / "init.sh", root / "init")
    shutil.copy(here / "use_cxl.sh", root / "tests")
    if options.record:
        shutil.copy(here.parent.parent / "memory/testdata/record_tree.sh", root / "tests")
    files = {library: root / library[1:] for program in options.programs + options.library
             for library in shared_libraries(program)}
    files |= {program: root / "tests" / os.path.basename(program) for program in options.programs}
    files |= {library: root / "tests" / library for library in options.library}
    for source, target in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["strip", "-o", target, os.path.realpath(source)], check=True)  # memory of the guest is scarce
        shutil.copymode(source, target)
    (root / "tests/tests").write_text("".join(f"{os.path.basename(program)}\n" for program in options.programs))
    modules = DEVICE_MODULES if machine.has_memory_devices else ()
    for module in modules:
        shutil.copy(f"{options.guests}/linux-{options.kernel}/modules/{module}.ko", root / "modules")
    (root / "modules/order").write_text("".join(f"{module}\n" for module in modules))
    archive = folder / "initramfs"
    names = subprocess.run(["find", ".", "-print0"], check=True, cwd=root, capture_output=True).stdout
    with open(archive, "wb") as out:
        subprocess.run([need(shutil.which("cpio"), "cpio"), "--null", "-o", "-H", "newc", "--quiet", "--owner", "0:0"],
                       check=True, cwd=root, input=names, stdout=out)
    return archive


def emulator(options: argparse.Namespace, machine: machines.Machine) -> list[str]:
    if not machine.cxl_use:
        return [need(shutil.which("qemu-system-x86_64"), "qemu-system-x86")]
    qemu = f"{options.guests}/qemu-cxl/usr"
    return [need(f"{qemu}/bin/qemu-system-x86_64", "a qemu that emulates volatile CXL memory"), "-L",
            f"{qemu}/share/qemu", "-L", "/usr/share/seabios"]


def boot(folder: pathlib.Path, options: argparse.Namespace, machine: machines.Machine) -> pathlib.Path:
    """Runs the guest to its end; returns the folder of what it left. Its console goes to standard output."""
    kernel = need(f"{options.guests}/linux-{options.kernel}/vmlinuz", f"Debian's cloud kernel {options.kernel}")
    # The kernel hands options that it does not know to the first process, as its environment.
    environment = {"GUEST_MACHINE": f"{options.machine}-{options.kernel}", "CXL_USE": machine.cxl_use}
    environment |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    command = emulator(options, machine) + [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg,thread=single",
        *machines.emulator_options(machine),
        "-kernel", kernel, "-initrd", str(write_initramfs(folder, options, machine)),
        "-append", " ".join([machines.kernel_options(machine), *(f"{name}={value}" for name, value in environment.items())]),
        "-serial", "stdio", "-serial", f"file:{folder}/results.tar",
    ]
    started = time.monotonic()
    sys.stdout.flush()
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"\nguest {options.machine}-{options.kernel}: killed after {TIMEOUT_SECONDS} s")
    print(f"guest {options.machine}-{options.kernel}: {time.monotonic() - started:.1f} s in all")
    results = folder / "results"
    results.mkdir()
    try:
        with tarfile.open(folder / "results.tar") as archive:
            archive.extractall(results)
    except (FileNotFoundError, tarfile.ReadError):
        print(f"guest {options.machine}-{options.kernel}: left no results")
    return results


def one_case(name: str, outcome: str, message: str) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name="Guest")
    case = ElementTree.SubElement(suite, "testcase", name=name, classname="Guest")
    ElementTree.SubElement(case, outcome, message=message)
    return suite


def suites_of(program: str, results: pathlib.Path) -> list[ElementTree.Element]:
    """The program's test suites; a failed one in place of what is missing."""
    name = os.path.basename(program)
    try:
        status = (results / f"{name}.status").read_text().strip()
    except FileNotFoundError:
        return [one_case(name, "failure", "the guest ended before this program did")]
    try:
        suites = list(ElementTree.parse(results / f"{name}.xml").getroot())
    except (FileNotFoundError, ElementTree.ParseError):
        return [one_case(name, "failure", f"exited with {status} and left no results")]
    failed = any(case.find("failure") is not None for suite in suites for case in suite)
    if status != "0" and not failed:
        suites.append(one_case(name, "failure", f"exited with {status}"))
    return suites


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, choices=machines.MACHINES)
    parser.add_argument("--kernel", required=True, help="series, such as 6.12")
    parser.add_argument("--guests", required=True, help="where third_party/install_guests.sh put kernels and emulator")
    parser.add_argument("--library", action="append", default=[], help="a file that the programs open, by this path")
    parser.add_argument("--record", help="also record the machine as MACHINE-KERNEL.tree in this folder")
    parser.add_argument("programs", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
        try:
            results = boot(pathlib.Path(folder), options, machines.MACHINES[options.machine])
            suites = [suite for program in options.programs for suite in suites_of(program, results)]
            if options.record:
                shutil.copy(results / f"{options.machine}-{options.kernel}.tree", options.record)
        except Unavailable as reason:
            print(f"skipped: {reason}")
            suites = [one_case(options.machine, "skipped", str(reason))]
    root = ElementTree.Element("testsuites")
    root.extend(suites)
    if "XML_OUTPUT_FILE" in os.environ:
        ElementTree.ElementTree(root).write(os.environ["XML_OUTPUT_FILE"])
    return 1 if root.find(".//failure") is not None else 0


if __name__ == "__main__":
    sys.exit(main())
