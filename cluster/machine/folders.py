# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's shared folders: what a person writes of them, and the devices made where the devices are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from coremesh.core.errors import ConfigurationError, shown
from coremesh.core.input_file import path_of

if TYPE_CHECKING:
    from coremesh.hw.virtio.model import VirtioModel

MOST_FOLDERS: Final = 8
SECURITY: Final = ("none", "mapped")
LONGEST_TAG: Final = 31  # Linux looks at no more of a mount's tag


@dataclass(frozen=True)
class Folder:
    """A folder `path`, on the host that has the devices, which the guest mounts by its `tag`.

    Without a tag it is the folder's name. With `read_only` the guest changes nothing. `security` says whose
    the files are: with 'none' the guest sees the host's owners, its own user's files as root's, and cannot
    give them away; with 'mapped' the guest's owners and modes are kept beside the files, as attributes.
    The guest cannot leave the folder: no symbolic link is followed on the host, no device or pipe opened.
    """

    path: str | os.PathLike[str]
    tag: str = ""
    read_only: bool = False
    security: str = "none"

    def checked(self) -> Folder:
        """Return it with an absolute path and a tag. Raises :class:`ConfigurationError`."""
        path = path_of("shared folder", self.path).absolute()
        tag = self.tag or path.name or "root"
        if not isinstance(tag, str) or not tag.isascii() or not tag.isprintable() or " " in tag:
            raise ConfigurationError(f"{shown(tag)} is no tag of a shared folder; write tag=NAME, in ASCII.")
        if len(tag) > LONGEST_TAG or "," in tag:
            raise ConfigurationError(
                f"the tag {shown(tag)} of a shared folder is too long, or has a comma: at most {LONGEST_TAG} "
                "characters, as tag=work."
            )
        if self.security not in SECURITY:
            raise ConfigurationError(
                f"no security {shown(self.security)} of a shared folder; there are {', '.join(SECURITY)}."
            )
        if not isinstance(self.read_only, bool):
            raise ConfigurationError(f"a share's read_only is True or False, not {shown(self.read_only)}.")
        return replace(self, path=path, tag=tag)


def parse_folder(text: str) -> Folder:
    """Return the folder that a person wrote as ``DIR[,tag=NAME][,readonly][,security=none|mapped]``.

    A comma in the folder's name is written twice. Raises :class:`ConfigurationError`.
    """
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    if "\0" in text or not parts[0]:
        raise ConfigurationError(f"{shown(text)} names no folder; write DIR, or DIR,tag=NAME.")
    share = Folder(parts[0])
    for part in parts[1:]:
        name, _, value = part.partition("=")
        if part == "readonly":
            share = replace(share, read_only=True)
        elif name == "tag" and value and not share.tag:
            share = replace(share, tag=value)
        elif name == "security" and value:
            share = replace(share, security=value)
        else:
            raise ConfigurationError(
                f"{shown(part)} is no option of a shared folder; there are tag=NAME, readonly and "
                "security=none|mapped. A comma in the folder's name is written twice."
            )
    return share


def check_folders(value: Any) -> tuple[Folder, ...]:
    """Return folders as the machine takes them: a list of :class:`Folder`, paths, or texts for parse_folder.

    Raises :class:`ConfigurationError`.
    """
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"folders is a list of folders or of Folder(...), not {shown(value)}.")
    folders = tuple(_folder(each).checked() for each in value)
    tags = [share.tag for share in folders]
    if len(set(tags)) < len(tags):
        raise ConfigurationError(f"two shared folders have one tag; give each a tag=NAME of its own: {tags}.")
    if len(folders) > MOST_FOLDERS:
        raise ConfigurationError(f"a machine has at most {MOST_FOLDERS} shared folders, not {len(folders)}.")
    return folders


def _folder(value: Any) -> Folder:
    if isinstance(value, Folder):
        return value
    return parse_folder(value) if isinstance(value, str) else Folder(path_of("shared folder", value))


def open_folders(folders: Iterable[Folder], vcpus: int, stack: ExitStack) -> list[VirtioModel]:
    """Open the folders and return their devices; `stack` closes them. Raises :class:`ConfigurationError`."""
    from coremesh.hw.backend.p9.folder import SharedFolder
    from coremesh.hw.virtio.p9 import Virtio9p

    models: list[VirtioModel] = []
    for number, share in enumerate(folders):
        try:
            folder = SharedFolder(share.path, read_only=share.read_only, security=share.security)
        except OSError as error:
            raise ConfigurationError(
                f"the folder {shown(os.fspath(share.path))} cannot be shared ({error.strerror}): give one "
                "that is there, on the host that has the devices, and that you may read."
            ) from None
        stack.callback(folder.close)
        models.append(Virtio9p(folder, name=f"virtio-9p{number}", tag=share.tag, workers=max(2, vcpus)))
    return models
