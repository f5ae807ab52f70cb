from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from tapml import target
from tapml.errors import EnvironmentalError, RecipeError
from tapml.target import (
    DeviceSection,
    TargetSection,
    cpus,
    demand_here,
    host_cpu,
    missing_here,
    resolve,
)


def cpuinfo(vendor: str, features: tuple[str, ...], *, without: tuple[str, ...] = ()) -> str:
    """A /proc/cpuinfo of a machine with these features (LLVM's names)."""
    flags = sorted({target.FLAGS["x86_64"][f] for f in features if f not in without})
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {' '.join(flags)} lm\n"
    return f"{one}\n{one}"


@pytest.mark.parametrize("name", ["znver1", "znver3", "znver4", "znver5", "bdver4"])
def test_an_amd_host_is_the_cpu_that_its_flags_describe(name: str) -> None:
    found = host_cpu(cpuinfo("AuthenticAMD", cpus("x86_64")[name]), "x86_64")
    assert cpus("x86_64")[found] == cpus("x86_64")[name]


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "cascadelake", "sapphirerapids"])
def test_an_intel_host_is_the_cpu_that_its_flags_describe(name: str) -> None:
    assert host_cpu(cpuinfo("GenuineIntel", cpus("x86_64")[name]), "x86_64") == name


def test_features_that_a_hypervisor_hides_are_not_used() -> None:
    hidden = tuple(f for f in cpus("x86_64")["znver4"] if f.startswith("avx512"))
    found = host_cpu(cpuinfo("AuthenticAMD", cpus("x86_64")["znver4"], without=hidden), "x86_64")
    assert found == "znver3"


def test_a_host_of_an_unknown_vendor_is_a_level_of_the_architecture() -> None:
    assert host_cpu(cpuinfo("HygonGenuine", cpus("x86_64")["znver2"]), "x86_64") == "x86-64-v3"
    assert host_cpu("", "x86_64") == "x86-64"


def test_an_aarch64_host_is_known_by_its_part() -> None:
    text = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    assert host_cpu(text, "aarch64") == "neoverse-n1"
    assert host_cpu(text.replace("0xd0c", "0xfff"), "aarch64") == "generic"


def test_every_name_of_the_tables_is_known_to_llvm() -> None:
    names = {name for vendor in target._VENDORS.values() for name in vendor}  # pyright: ignore[reportPrivateUsage]
    assert names <= cpus("x86_64").keys()
    assert set(target._ARM_PARTS.values()) <= cpus("aarch64").keys()  # pyright: ignore[reportPrivateUsage]
    for arch, mcpu in target.PRESETS.values():
        assert mcpu in cpus(arch)


def test_the_host_is_resolved_in_full() -> None:
    found = resolve(TargetSection())
    cores = len(os.sched_getaffinity(0))
    assert found == resolve(TargetSection(preset="cpu"))
    assert (found.cores, found.device.threads) == (cores, cores)
    flags = Path("/proc/cpuinfo").read_text().split()
    assert set(target.cpuinfo_flags(found)) <= set(flags)


@pytest.mark.parametrize(
    ("preset", "bits", "registers", "triple"),
    [
        ("x86-64", 128, 16, "x86_64-linux-gnu"),
        ("x86-64-v3", 256, 16, "x86_64-linux-gnu"),
        ("x86-64-v4", 512, 32, "x86_64-linux-gnu"),
        ("aarch64", 128, 32, "aarch64-linux-gnu"),
    ],
)
def test_a_preset_sizes_the_vector_registers(
    preset: str, bits: int, registers: int, triple: str
) -> None:
    found = resolve(TargetSection(preset=preset))
    assert (found.vector_bits, found.vector_registers, found.mtriple) == (bits, registers, triple)


def test_fields_go_over_the_preset() -> None:
    device = DeviceSection(threads=1)
    found = resolve(TargetSection(preset="x86-64-v2", mcpu="znver3", cores=8, device=device))
    assert (found.mcpu, found.cores, found.device.threads) == ("znver3", 8, 1)


def test_a_cpu_of_another_architecture_brings_its_triple() -> None:
    assert resolve(TargetSection(mcpu="neoverse-n1")).mtriple == "aarch64-linux-gnu"


def test_an_unknown_cpu_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown CPU 'znver33' of x86_64\n.*'znver3'") as caught:
        resolve(TargetSection(preset="x86-64", mcpu="znver33"))
    assert (caught.value.field, caught.value.exit_code) == ("target.mcpu", 2)


def test_the_table_is_small() -> None:
    path = Path(target.__file__).with_name("llvm_cpus.json")
    assert path.stat().st_size < 200_000


@pytest.mark.slow
def test_the_table_is_the_wheels() -> None:
    from tapml_stages.platforms.llvm_table import table

    path = Path(target.__file__).with_name("llvm_cpus.json")
    assert json.loads(path.read_text()) == table()


@pytest.mark.slow
def test_llvm_agrees_on_this_host() -> None:
    from tapml_stages.compat import tvm

    ours, llvms = resolve(TargetSection()).mcpu, tvm.target.codegen.llvm_get_system_cpu()
    assert set(cpus("x86_64")[ours]) >= set(cpus("x86_64")[str(llvms)])


def test_this_machine_can_run_code_for_itself_and_not_for_another_architecture() -> None:
    assert missing_here(resolve(TargetSection(preset="cpu"))) == ()
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    foreign = resolve(TargetSection(kind="llvm", mcpu="generic", mtriple=f"{other}-linux-gnu"))
    assert missing_here(foreign) == (other,)
    with pytest.raises(EnvironmentalError, match=f"cannot be run and timed here: no {other}"):
        demand_here(foreign)
