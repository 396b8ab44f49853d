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
# # A sweep that survives
#
# The way from this computer to a cluster is one word, `address`. Trials then run on all of its nodes, and
# each row says on which. And because much can go wrong in a long night, this notebook makes it go wrong: a
# trial that fails, a trial whose process is killed, and a sweep that is asked for again.
#
# `COREMESH_ADDRESS` names the cluster, `auto` or host:port; without it the sweep runs here.

# %%
import os
import signal
from pathlib import Path

import coremesh

ADDRESS = os.environ.get("COREMESH_ADDRESS")
OUT = Path("survivors.csv")


# %% [markdown]
# ## A trial is a function
#
# It gets the machine, the parameters that it names, and a seed of its own. What it returns are columns.


# %%
def trial(machine, turns, marks):
    if turns == 2000 and not Path(marks, "failed").exists():
        Path(marks, "failed").touch()
        raise RuntimeError("the first try always fails")
    if turns == 3000 and not Path(marks, "killed").exists():
        Path(marks, "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    done = machine.run(f"i=0; while [ $i -lt {turns} ]; do i=$((i + 1)); done; echo $i")
    return {"counted": int(done.output)}


options = {"out": OUT, "memory": "256M", "append": "quiet", "address": ADDRESS}
parameters = {"turns": [1000, 2000, 3000], "marks": [str(Path.cwd())]}
first = coremesh.sweep(trial, parameters, **options)
first.table[["turns", "counted", "guest_seconds", "nodes", "attempts", "error"]]

# %% [markdown]
# Two rows have an error, and the third is whole. What succeeded is not run again; what failed is, and so is
# a value that is new:

# %%
parameters["turns"].append(4000)
second = coremesh.sweep(trial, parameters, resume=True, **options)
assert not second.failures
second.table[["turns", "counted", "guest_seconds", "nodes", "attempts", "error"]]

# %%
second.plot("turns", "guest_seconds", ideal=False)

# %% [markdown]
# Another process can read the rows at any time, while the sweep runs too. And one page has all of it, for
# people without Python:

# %%
assert len(coremesh.SweepResult.read(OUT)) == 4
second.report("survivors.html", title="A sweep that survives")

# %%
coremesh.shutdown()
