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
# # First scaling
#
# One guest computer after another, with 1, 2, 4 and 8 cores, each running the same parallel load: a SHA-256
# sum on every core at once. How much does a guest of *n* cores get done on this host, and what does a core
# cost at boot?
#
# An emulated core is a thread of the host: up to the host's own number of cores, the work done should grow
# with the guest's; beyond it, cores share.

# %%
import os
import time

import coremesh
import matplotlib.pyplot as plt
import pandas as pd

CORES = [int(word) for word in os.environ.get("FIRST_SCALING_CORES", "1 2 4 8").split()]
MEGABYTES = int(os.environ.get("FIRST_SCALING_MEGABYTES", "16"))

host_cores = len(os.sched_getaffinity(0))
print(f"{host_cores} host cores")

# %% [markdown]
# ## A guest with a shell
#
# Without a kernel, a `Machine` boots Debian's, with a busybox shell on the console. `run` gives a command's
# output and status. A machine shows itself as a table:

# %%
with coremesh.Machine(vcpus=2, memory="512M") as machine:
    print(machine.run("uname -rm; nproc").output)
    display(machine)  # noqa: F821

# %% [markdown]
# ## The load
#
# Each core hashes as many zeros as every other, so *n* cores have *n* times the work. The time is that of the
# host's clock, less what an empty command takes.

# %%
LOAD = (
    "for cpu in $(seq 0 $(($(nproc) - 1))); do "
    f"  (head -c {MEGABYTES << 20} /dev/zero | taskset -c $cpu sha256sum) & "
    "done; wait"
)


def seconds(machine, command):
    begin = time.monotonic()
    result = machine.run(command, timeout=600)
    assert result.ok, result.output
    return time.monotonic() - begin, result.output


rows = []
for cores in CORES:
    with coremesh.Machine(vcpus=cores, memory="512M", append="quiet") as machine:
        boot = machine.wait_shell(timeout=600)
        overhead, _ = seconds(machine, "true")
        load, output = seconds(machine, LOAD)
        sums = {line.split()[0] for line in output.splitlines()}
        assert len(output.splitlines()) == cores and len(sums) == 1, output
        stats = machine.stats()
    rows.append(
        {
            "cores": cores,
            "boot, s": boot,
            "load, s": load - overhead,
            "MB/s": cores * MEGABYTES / (load - overhead),
            "interrupts": int(stats["interrupts"].sum()),
            "blocks translated": int(stats["translations"].sum()),
        }
    )

results = pd.DataFrame(rows).set_index("cores")
results["throughput, of one core"] = results["MB/s"] / results["MB/s"].iloc[0]
results.round(2)

# %% [markdown]
# ## The picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))

left.plot(results.index, results["throughput, of one core"], "o-", label="measured")
ideal = [min(cores, host_cores) for cores in results.index]
left.plot(results.index, ideal, "--", color="grey", label=f"ideal on {host_cores} host cores")
left.set(title="Hashing on every core at once", xlabel="guest cores", ylabel="throughput, of one core")
left.set_ylim(bottom=0)
left.legend()

right.plot(results.index, results["boot, s"], "o-")
right.set(title="Boot to shell", xlabel="guest cores", ylabel="seconds of emulation")
right.set_ylim(bottom=0)

figure.tight_layout()

# %% [markdown]
# Ray was started once for all these machines, and stops with this notebook; `coremesh.shutdown()` stops it
# sooner.

# %%
coremesh.shutdown()
