# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh fetch``: images into the user's cache."""

from __future__ import annotations

import typer
from coremesh.cluster.cli.progress import fetch_progress
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.options import parse_size
from coremesh.core.errors import ConfigurationError, shown


def fetch_images(what: str, flavour: str, *, refresh: bool, disk: str | None, ssh: bool) -> None:
    """Get what was asked for, with bars in a terminal, and print where it is."""
    if what != "debian":
        raise ConfigurationError(f"no system {shown(what)} to fetch; there is debian.")
    if ssh and disk is None:
        raise ConfigurationError("--ssh is for a disk: add --disk 4G.")
    size = None if disk is None else parse_size(disk, "disk")
    with fetch_progress() as progress:
        image = fetch_debian(flavour, refresh=refresh, progress=progress)
        made = None
        if size is not None:
            from coremesh.cluster.machine.images.debian_disk import fetch_debian_disk

            made = fetch_debian_disk(size, flavour, ssh=ssh, refresh=refresh, progress=progress)
    typer.echo(f"kernel   {image.kernel_version:24} {image.kernel}")
    typer.echo(f"busybox  {image.busybox_version:24} {image.busybox}")
    if made is not None:
        typer.echo(f"disk     {made.release:24} {made.disk}")
        typer.echo("'coremesh boot --disk debian' boots it; root logs in without a password on the console.")
