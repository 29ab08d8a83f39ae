"""The installed wheel: everything it needs comes with it, and vLLM finds it. Runs where it is installed."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import sysconfig

import hybridgen
import hybridgen._core
import pytest

SITE = pathlib.Path(sysconfig.get_paths()["purelib"])


def mapped_libraries():
    """Files that this process has mapped, by path."""
    maps = pathlib.Path("/proc/self/maps").read_text()
    return sorted({pathlib.Path(path) for path in re.findall(r"(/\S+\.so\S*)$", maps, re.MULTILINE)})


def test_package_lies_in_this_environment():
    assert pathlib.Path(hybridgen.__file__).is_relative_to(SITE)
    assert pathlib.Path(hybridgen._core.__file__).is_relative_to(SITE)


@pytest.mark.parametrize("name", ["libhybridgen", "libabsl_", "libnuma"])
def test_libraries_come_from_the_wheel(name):
    loaded = [path for path in mapped_libraries() if path.name.startswith(name)]
    assert loaded, f"no {name} is mapped"
    assert all(path.is_relative_to(SITE) for path in loaded), loaded


def test_c_and_cpp_runtimes_are_the_systems():
    carried = [path.name for path in SITE.glob("hybridgen*/**/*.so*")]
    assert not [name for name in carried if re.match(r"lib(stdc\+\+|gcc_s|c|m|pthread|torch|c10)\b", name)], carried


def test_requirements_are_declared_and_vllm_is_not_forced():
    requirements = {re.match(r"[\w-]+", line)[0] for line in importlib.metadata.requires("hybridgen")}
    assert requirements == {"numpy", "rich", "typer"}
    assert ">=0.32,<0.34" in importlib.metadata.metadata("hybridgen")["Summary"]


def test_vllm_discovers_the_plugin():
    from vllm.plugins import load_plugins_by_group

    plugins = load_plugins_by_group("vllm.general_plugins")
    assert plugins["hybridgen"].__module__ == "hybridgen.plugin"


def test_registering_names_our_class():
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    load_general_plugins()
    assert AttentionBackendEnum.CUSTOM.get_class().__module__.startswith("hybridgen.")


def test_command_line():
    command = pathlib.Path(sys.executable).with_name("hybridgen")
    output = subprocess.run([command, "info"], capture_output=True, text=True, check=True).stdout
    assert importlib.metadata.version("hybridgen") in output
    assert "portable" in output
