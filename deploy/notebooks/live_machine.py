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
# # A look into a live machine
#
# A machine is an object of this notebook while its guest runs: its console, registers, memory and counters
# are there.

# %%
import asyncio

import coremesh

machine = coremesh.Machine(vcpus=2, memory="256M", append="quiet")
machine.wait_shell()
machine

# %% [markdown]
# ## The guest at work, without waiting for it
#
# The slow calls have variants for an event loop, which a notebook has: the cell goes on while the guest
# counts.

# %%
work = asyncio.create_task(machine.run_async("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo $i"))
seen = []
while not work.done():
    seen.append(int(machine.totals()["stats"]["translations"]))
    await asyncio.sleep(0.2)
(await work).output, len(seen)

# %% [markdown]
# ## Registers and memory
#
# While the machine is paused no core runs. The kernel's command line lies somewhere in its memory: here it
# is found from outside, by reading the guest's RAM.

# %%
machine.pause()
registers = machine.registers(0)
{name: hex(registers[name]) for name in ("rip", "rsp", "cr3")}

# %%
first = machine.read_memory(0, 16 << 20)
where = first.find(machine.cmdline.encode())
hex(where), first[where : where + len(machine.cmdline)].decode()

# %%
machine.resume()
print(machine.run("echo the guest goes on").output)
machine.stats()[["state", "translations", "interrupts", "kicks"]]

# %%
machine.stop()
