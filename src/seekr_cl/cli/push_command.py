"""``seekr push``: a model folder onto the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out
from seekr_cl.errors import ConfigError
from seekr_cl.models.card import CARD
from seekr_cl.models.hub import check_name, parcel_of, push
from seekr_cl.system.sizes import size
from seekr_cl.system.visible import visible


def push_command(given: Any) -> None:
    """Lists what is sent, sends it, and says where it is.

    Raises:
        SeekrError: for a folder, name, token or network with which it cannot be done.
    """
    folder = Path(given.folder)
    if not folder.is_dir():
        raise ConfigError(f"{given.folder}: no such folder")
    check_name(given.repo)
    parcel = parcel_of(folder, given.base)
    console = out()
    sizes = {name: parcel.size(name) for name in parcel.files}
    if not given.json:
        for name in parcel.files:
            console.print(
                f"{'would send' if given.dry_run else 'send'} {visible(name)}, {size(sizes[name])}", soft_wrap=True
            )
        for name, reason in parcel.left_out:
            console.print(f"leave out {visible(name)}: {reason}", soft_wrap=True)
        if CARD not in parcel.files:
            console.print("there is no README.md: nobody will know what this is, or under which licence")
    url = None if given.dry_run else push(parcel, given.repo, given.private, given.message or "Upload with seekr push")
    if given.json:
        content = {
            "repo": given.repo, "private": given.private, "dry_run": given.dry_run, "url": url,
            "files": [{"path": name, "bytes": count} for name, count in sizes.items()],
            "left_out": [{"path": name, "reason": reason} for name, reason in parcel.left_out],
        }  # fmt: skip
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif url is None:
        console.print(f"nothing was sent: {size(sum(sizes.values()))} would go to {given.repo}", soft_wrap=True)
    else:
        console.print(f"sent {size(sum(sizes.values()))}: {url}", soft_wrap=True)
