# SPDX-License-Identifier: GPL-2.0-or-later
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A Python device and a hook on a live machine
#
# A device is a class of this notebook. Its object stays here while the guest uses it: what it prints is
# seen, and its attributes change under the guest's eyes.

# %%
import coremesh
import pandas

machine = coremesh.Machine(vcpus=2, memory="256M", append="quiet")
machine.wait_shell()
machine


# %% [markdown]
# ## A device
#
# A thermometer with two registers of 32 bits: 0 is the temperature, 4 the alarm's threshold, in
# millidegrees. It drives interrupt 5 while it is warmer than that.


# %%
class Thermometer(coremesh.PythonDevice):
    def __init__(self, temperature):
        self.temperature = temperature
        self.threshold = 2**32 - 1

    def read(self, offset, size):
        return self.temperature if offset == 0 else self.threshold

    def write(self, offset, size, value):
        if offset == 4:
            self.threshold = value
            self.set_irq(self.temperature > value)


thermometer = Thermometer(21_500)
attached = machine.attach(thermometer, mmio=0xFED00000, irq=5)
int(machine.run("devmem 0xFED00000 32").output, 16)

# %% [markdown]
# An attribute of the object is a register of the guest:

# %%
thermometer.temperature = 99_000
machine.run("devmem 0xFED00004 32 80000")
int(machine.run("devmem 0xFED00000 32").output, 16), thermometer.threshold

# %% [markdown]
# ## A hook
#
# A device can also be a hook: the guest says where it is by writing a port, and the notebook looks at the
# machine in that moment. A write is posted, so the guest is already a little further; a guest that reads
# would wait.


# %%
class Marks(coremesh.PythonDevice):
    def __init__(self):
        self.rows = []

    def write(self, offset, size, value):
        counts = machine.totals()["stats"]
        self.rows.append(
            {
                "mark": chr(value),
                **{name: counts[name] for name in ("translations", "interrupts", "exits_io")},
            }
        )


marks = Marks()
machine.attach(marks, ports=(0x240, 1))
machine.run(
    "mark() { printf $1 | dd of=/dev/port bs=1 seek=576 conv=notrunc 2>/dev/null; };"
    "mark a; seq 20000 | sha256sum; mark b; ls -lR /proc/sys >/dev/null; mark c"
)
machine.run("true")
pandas.DataFrame(marks.rows).set_index("mark").diff()

# %% [markdown]
# ## What the devices cost
#
# Each device counts its accesses, and each pair of device and vCPU has its own count.

# %%
machine.device_stats().loc[
    ["Thermometer", "Marks", "uart"], ["accesses", "access_ns", "most_at_once", "vcpus"]
]

# %%
machine.device_stats(by_vcpu=True).loc["uart"]

# %%
attached.detach()
print(machine.run("devmem 0xFED00000 32").output)
machine.stop()
