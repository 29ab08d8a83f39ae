"""The machines that guests are: memory nodes, what firmware says of them, memory devices, and the emulator's options.

A machine's name is that of its recorded tree in memory/testdata, without the kernel.
"""

import dataclasses

@dataclasses.dataclass(frozen=True)
class Node:
    mebibytes: int
    cpus: str = ""  # "0-1"; empty: a node without CPUs


@dataclasses.dataclass(frozen=True)
class Access:
    """What firmware's HMAT says of memory `target` as seen from the CPUs of `initiator`."""

    initiator: int
    target: int
    nanoseconds: int
    gigabytes_per_second: int


@dataclasses.dataclass(frozen=True)
class Machine:
    nodes: tuple[Node, ...]
    distances: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    hmat: tuple[Access, ...] = ()
    # How the memory of a CXL type-3 device is used: see use_cxl.sh. Empty: there is no such device.
    cxl_use: str = ""
    # Firmware sets the memory of the last node aside for a driver (the kernel calls it soft reserved, or hmem).
    last_node_set_aside: bool = False

    @property
    def has_memory_devices(self) -> bool:
        return bool(self.cxl_use) or self.last_node_set_aside


# 640 MiB in all at least: with less, kernels switch transparent huge pages off.
_HOME = Node(384, "0-1")
_FAR = Node(256)
_NEAR_ACCESS = Access(0, 0, 100, 200)
_FAR_DISTANCE = {(0, 1): 20}

MACHINES = {
    "one": Machine((Node(640, "0-1"),)),
    "nohmat": Machine((_HOME, _FAR), _FAR_DISTANCE),
    "cxl": Machine((_HOME, _FAR), _FAR_DISTANCE, (_NEAR_ACCESS, Access(0, 1, 250, 25))),
    "2s-cxl": Machine(
        (Node(384, "0"), Node(256, "1"), _FAR),
        {(0, 1): 21, (0, 2): 24, (1, 2): 34},
        (_NEAR_ACCESS, Access(0, 1, 140, 120), Access(1, 0, 140, 120), Access(1, 1, 100, 200), Access(0, 2, 250, 25),
         Access(1, 2, 350, 20)),
    ),
    "hbm-cxl": Machine(
        (_HOME, _FAR, _FAR),
        {(0, 1): 13, (0, 2): 24, (1, 2): 30},
        (_NEAR_ACCESS, Access(0, 1, 120, 800), Access(0, 2, 250, 25)),
    ),
    # Without HMAT: with it, the kernel takes only a node that is set aside to its last byte.
    "hmem": Machine((Node(640, "0-1"), _FAR), _FAR_DISTANCE, last_node_set_aside=True),
} | {
    f"cxltype3{suffix}": Machine((Node(640, "0-1"),), {}, (_NEAR_ACCESS, Access(0, 1, 150, 50)), use)
    for suffix, use in (("", "movable"), ("-kernel", "kernel"), ("-devdax", "devdax"), ("-persistent", "persistent"))
}


def kernel_options(machine: Machine) -> str:
    # Without KVM the time stamp counter is the host's, and measuring its rate fails beside other work; randomness is at
    # hand; a panic ends the guest.
    options = ("console=ttyS0,115200 quiet loglevel=4 panic=-1 mitigations=off notsc clocksource=hpet no_timer_check"
               " random.trust_cpu=on")
    if machine.last_node_set_aside:
        # As firmware's memory map would: type 1 (memory) becomes soft reserved. The last 2 MiB, where the emulator keeps
        # tables, become reserved (2), so that the device ends at a multiple of its alignment.
        *others, last = machine.nodes
        start = sum(node.mebibytes for node in others)
        options += f" memmap={last.mebibytes - 2}M%{start}M-1+0xefffffff memmap=2M%{start + last.mebibytes - 2}M-1+2"
    return options


def _cxl_device(use: str) -> list[str]:
    """One CXL type-3 device of 256 MiB behind a host bridge; HMAT's node 1 is its port."""
    memory = "volatile-memdev=device"
    if use == "persistent":
        memory = "persistent-memdev=device,lsa=labels"
    return [
        "-numa", "node,nodeid=1",
        "-object", "acpi-generic-port,id=port,pci-bus=cxl.1,node=1",
        "-object", "memory-backend-ram,id=device,share=on,size=256M",
        "-object", "memory-backend-ram,id=labels,size=256K",
        "-device", "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1",
        "-device", "cxl-rp,port=0,bus=cxl.1,id=root_port,chassis=0,slot=2",
        "-device", f"cxl-type3,bus=root_port,{memory},id=type3,sn=0xabcd",
        "-machine", "cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=1G",
    ]


def emulator_options(machine: Machine) -> list[str]:
    options = [
        # The kernel programs no CXL region under a hypervisor, whose caches it cannot flush.
        "-cpu", "max,-hypervisor" if machine.cxl_use else "max",
        "-smp", "2",
        "-m", f"{sum(node.mebibytes for node in machine.nodes)}M",
        "-machine", "q35" + (",hmat=on" if machine.hmat else "") + (",cxl=on" if machine.cxl_use else ""),
    ]
    for number, node in enumerate(machine.nodes):
        initiator = number if node.cpus else 0
        options += [
            "-object", f"memory-backend-ram,id=memory{number},size={node.mebibytes}M",
            "-numa", f"node,nodeid={number},memdev=memory{number}" + "".join(
                f",cpus={cpus}" for cpus in node.cpus.split() if cpus) + (f",initiator={initiator}" if machine.hmat else ""),
        ]
    for (source, target), distance in machine.distances.items():
        options += ["-numa", f"dist,src={source},dst={target},val={distance}"]
    if machine.cxl_use:
        options += _cxl_device(machine.cxl_use)
    for access in machine.hmat:
        row = f"hmat-lb,initiator={access.initiator},target={access.target},hierarchy=memory"
        options += [
            "-numa", f"{row},data-type=access-latency,latency={access.nanoseconds}",
            "-numa", f"{row},data-type=access-bandwidth,bandwidth={access.gigabytes_per_second}G",
        ]
    return options
