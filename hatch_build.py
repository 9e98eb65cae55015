"""The long description for a package index: the README, with links that lead somewhere from there.

A link to a file of the repository becomes absolute where ``project.urls.Repository`` says where that is; where it does
not, the text stays and the link goes, pictures included. The build backend calls this.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: A link or picture to a file of the repository: "!", text, path.
_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def for_an_index(readme: str, repository: str | None, version: str) -> str:
    """The README with absolute links to the tag of ``version``, or without them where ``repository`` is None."""

    def link(found: re.Match[str]) -> str:
        picture, text, path = found.groups()
        if repository is None:
            return "" if picture else text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({repository.rstrip('/')}/{kind}/v{version}/{path})"

    return _RELATIVE.sub(link, readme)


class LongDescription(MetadataHookInterface):
    """Fills in ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = metadata.get("urls", {}).get("Repository")
        text = (Path(self.root) / "README.md").read_text()
        said = for_an_index(text, repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": said}
