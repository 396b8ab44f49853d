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
# # A lock's collapse
#
# One counter under one lock, and more and more cores that want it. A test-and-set lock lets all waiters
# write one word; a ticket lock lets all read one word, in order; a queued (MCS) lock lets each wait at a
# word of its own; a futex lets them sleep. Which keeps its throughput?
#
# `coremesh.loads.lock` is that work, with a version, so that one name is the same work everywhere.

# %%
import os

import coremesh

CORES = [int(word) for word in os.environ.get("LOCK_COLLAPSE_CORES", "1 2 4 8 16").split()]
KINDS = os.environ.get("LOCK_COLLAPSE_KINDS", "tas ticket mcs futex").split()
MILLISECONDS = int(os.environ.get("LOCK_COLLAPSE_MILLISECONDS", "1000"))

coremesh.loads.table()

# %% [markdown]
# ## The sweep
#
# Every combination is one machine. Each trial has the computer for itself, so that no other one disturbs its
# times.

# %%
result = coremesh.sweep(
    coremesh.loads.lock,
    {"vcpus": CORES, "kind": KINDS, "milliseconds": [MILLISECONDS]},
    memory="512M",
    append="quiet",
    at_once=1,
)
result

# %% [markdown]
# ## The picture
#
# The rate is by the guest's own clock. The program has checked that no increment under the lock was lost.

# %%
axes = result.plot("vcpus", "acquisitions_per_second", by="kind", ideal=False)
axes.set_title("One lock, more cores")

# %% [markdown]
# How fair was it? The least of the threads' shares, in hundredths of the largest:

# %%
result.good.pivot_table(index="vcpus", columns="kind", values="fairness_percent")

# %%
coremesh.shutdown()
