# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPUs and RAM of one host, and the interrupts to them."""

import atexit
import importlib
import os
import time
import weakref
from collections.abc import Callable, Sequence

from coremesh.core._native import MeshOptions, NativeHost, Platform, calls_under_way, host_tsc_hz
from coremesh.core.cores import usable_cores
from coremesh.core.memory_layout import MemoryKind, MemoryLayout
from coremesh.core.mesh import Mesh
from coremesh.core.state import State, StateError, check_shape, check_version

MAX_VCPUS = 255
STATE_VERSION = 1
#: What makes a host's platform, by the guest's architecture: a module with a function ``make_platform``.
ARCHITECTURES = {"x86_64": "coremesh.core.x86.processors"}
_WORD = (1 << 64) - 1
_LEAVE_SECONDS = 5.0


class Host(NativeHost):
    """One host's share of a machine. All methods may be called from any Python thread.

    ``memory`` is the whole machine's, wherever its pages are; one vCPU for each of ``apic_ids``, the
    machine's ``total_vcpus`` in all. ``architecture`` is the guest's, one of ``ARCHITECTURES``; on x86 the
    vCPU with APIC id 0 is the bootstrap processor.
    ``tsc_hz`` 0 means the host's own rate. ``protection`` of translated code: 'auto', 'userfaultfd' or
    'mprotect'; of shared memory also 'userfaultfd-copy'. ``mesh``: this host's place in a machine of several.
    ``code_buffer_bytes`` bounds the translations of each vCPU (1 MiB at least; they are dropped and made anew
    when it is full); 0 chooses 32 to 128 MiB by the host's memory. With ``restarts`` a vCPU that
    triple-faults ends nothing: :meth:`wait` tells of it, and ``begin_restart``, ``reset_vcpus`` and
    ``end_restart`` may follow on host 0. ``neighbours``: the machine's vCPUs that share this computer's
    cores, those of this host among them (0: these alone). Where they are more than the cores, a vCPU that
    waits gives its core away.
    Raises OSError with the way out when the host refuses, ValueError for impossible sizes.
    """

    def __init__(
        self,
        *,
        memory: MemoryLayout,
        apic_ids: Sequence[int],
        total_vcpus: int,
        tsc_hz: int = 0,
        protection: str = "auto",
        mesh: Mesh | None = None,
        code_buffer_bytes: int = 0,
        architecture: str = "x86_64",
        restarts: bool = False,
        neighbours: int = 0,
    ) -> None:
        rate = tsc_hz or host_tsc_hz()
        package_cores = None if mesh is None else mesh.package_cores
        super().__init__(
            memory=[
                (region.gpa, region.bytes, region.offset, region.kind is MemoryKind.ROM)
                for region in memory.regions
            ],
            platform=_maker(architecture)(apic_ids, total_vcpus, rate, package_cores),
            tsc_hz=rate,
            protection=protection,
            mesh=None if mesh is None else _options(mesh),
            code_buffer_bytes=code_buffer_bytes,
            shadows=[(shadow.gpa, shadow.bytes, shadow.rom_offset) for shadow in memory.shadows],
            restarts=restarts,
            neighbours=max(neighbours, len(apic_ids)),
            cores=usable_cores(),
        )
        _alive.add(self)

    def transact(self, operation: str, gpa: int, size: int, operand: int = 0, expected: int = 0) -> int:
        """Execute one atomic operation on guest memory, wherever the page is; return what was there before.

        ``operation`` is 'load', 'store', 'compare_swap' (store ``operand`` if ``expected`` is there),
        'exchange', 'add', 'and', 'or', 'xor', 'min', 'max', 'min_signed' or 'max_signed'; ``size`` is 1, 2,
        4, 8 or, aligned, 16 bytes within one page at guest-physical address ``gpa``. Sequentially consistent.
        Raises ValueError for an operation that there is not, IndexError for what is no RAM.
        """
        low, high = self.transact_words(operation, gpa, size, _words(operand), _words(expected))
        return low | high << 64

    def save_state(self) -> State:
        """The state of all vCPUs and their local APICs at one moment between two instructions, and the clock.

        While paused, or before the start. Plain data: 'version'; 'tsc', what the machine's time-stamp counter
        shows, and 'tsc_hz'; 'vcpus' in order, each with 'registers', 'lapic', 'events' (what waits for it,
        and whether it sleeps) and 'msrs' (by number). RAM is not part of it (:meth:`ram_extents`). What a
        device sends meanwhile is in it or is not: stop the devices first.
        Raises RuntimeError when the machine runs or has ended.
        """
        return {"version": STATE_VERSION, "tsc_hz": self.tsc_hz, **self.save_vcpus()}

    def load_state(self, state: State) -> None:
        """Continue from what :meth:`save_state` of a host with the same vCPUs returned; before the start.

        Time goes on from the saved moment at once: call :meth:`start` soon. Raises
        :class:`~coremesh.core.state.StateError` for what is not a state of this machine, naming the field,
        and RuntimeError for a host that was started or is one of several. The host is to be thrown away then.
        """
        owner = "the vCPUs"
        check_version(state, STATE_VERSION, owner)
        check_shape(state, self.save_state(), owner)
        if state["tsc_hz"] != self.tsc_hz:
            raise StateError(
                f"the state was saved with a time-stamp counter of {state['tsc_hz']} Hz, this machine has "
                f"{self.tsc_hz} Hz: build it with tsc_hz={state['tsc_hz']}"
            )
        try:
            self.load_vcpus(state)
        except (ValueError, OverflowError) as error:
            raise StateError(
                f"the saved state of {owner} holds in {error} what no processor of this machine holds; it is "
                "damaged: load another copy of it"
            ) from error


_alive: weakref.WeakSet[Host] = weakref.WeakSet()
os.register_at_fork(after_in_child=_alive.clear)


@atexit.register
def _stop_all() -> None:
    """Leave no native thread that could still want the interpreter when it ends.

    A vCPU that asks a device, or a thread that waits in ``Host.wait``, would be unwound by Python in the
    middle of C++, which ends the process with SIGABRT (core/native/python/module.hpp).
    """
    hosts = list(_alive)
    for host in hosts:
        host.stop()
    until = time.monotonic() + _LEAVE_SECONDS
    while hosts and calls_under_way() and time.monotonic() < until:
        time.sleep(0.001)


def _maker(architecture: str) -> Callable[[Sequence[int], int, int, int | None], Platform]:
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"there is no guest architecture {architecture!r}; take one of: {known}")
    maker: Callable[[Sequence[int], int, int, int | None], Platform] = importlib.import_module(
        ARCHITECTURES[architecture]
    ).make_platform
    return maker


def _words(value: int) -> tuple[int, int]:
    return value & _WORD, value >> 64 & _WORD


def _options(mesh: Mesh) -> MeshOptions:
    return MeshOptions(
        host=mesh.host,
        hosts=mesh.hosts,
        homes=mesh.homes,
        vcpu_hosts=sorted(mesh.vcpu_hosts.items()),
        policy=mesh.policy,
        hold_us=mesh.hold_us,
        prefetch=mesh.prefetch,
        first_touch=mesh.first_touch,
        pass_on=mesh.pass_on,
        devices=mesh.device_host,
    )
