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
# # False sharing between hosts
#
# Two hosts share memory page by page. Threads that write words of their own on *one page* share nothing, and
# yet the page goes to and fro. What does that cost, beside pages of their own and a word that all really
# share? And what does the page protocol do about it: `policy` says when a locked operation goes to the page
# instead of the page to it.

# %%
import os
from pathlib import Path

import coremesh

PATTERNS = os.environ.get("FALSE_SHARING_PATTERNS", "private false true read").split()
POLICIES = os.environ.get("FALSE_SHARING_POLICIES", "never always adaptive").split()
MILLISECONDS = int(os.environ.get("FALSE_SHARING_MILLISECONDS", "1000"))

# %%
result = coremesh.sweep(
    coremesh.loads.share,
    {"pattern": PATTERNS, "policy": POLICIES, "milliseconds": [MILLISECONDS]},
    vcpus=2,
    hosts=2,
    memory="512M",
    at_once=1,
)
result

# %% [markdown]
# Operations a second, and what passed between the hosts meanwhile:

# %%
result.good.pivot_table(index="pattern", columns="policy", values="operations_per_second")

# %%
result.good.pivot_table(index="pattern", columns="policy", values="mesh_stats.page_bytes")

# %%
axes = result.plot("pattern", "operations_per_second", by="policy", ideal=False)
axes.set_yscale("log")
axes.set_ylim(bottom=None)

# %% [markdown]
# ## Which pages?
#
# A machine lists the pages that its hosts take from each other most. With the guest's symbols the users have
# names: the kernel's own here, for a program's page has none.

# %%
with coremesh.Machine(vcpus=2, hosts=2, memory="512M", initrd=coremesh.loads.initramfs()) as machine:
    machine.wait_shell()
    coremesh.loads.share.run(machine, pattern="false", milliseconds=MILLISECONDS)
    Path("kallsyms").write_text(machine.run("grep -i ' [tdb] ' /proc/kallsyms | head -n 20000").output)
    contended = machine.contended_pages(8, symbols="kallsyms")
contended

# %%
coremesh.shutdown()
