"""What hatchling runs when it makes a wheel: manual pages and shell completion, which come from the commands."""

import os
import shutil
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Share(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.folder = tempfile.mkdtemp()
        if version == "editable":  # which runs from the checkout, and installs no files
            return
        sys.dont_write_bytecode = True  # or what is built would leave its traces in the source
        sys.path.insert(0, os.path.join(self.root, "pipes"))
        from modelpipes.commands.cli import share

        share.write(self.folder)
        build_data["shared_data"][self.folder] = "share"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.folder)
