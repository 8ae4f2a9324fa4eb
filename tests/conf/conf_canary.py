"""Something that nobody may call: it leaves a trace."""

import os
from pathlib import Path

SONGS = []


def sing(*arguments, **keywords):
    SONGS.append((arguments, keywords))
    if "CANARY" in os.environ:
        Path(os.environ["CANARY"]).touch()
