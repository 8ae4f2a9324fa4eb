"""Empty files: readers of formats look at names only."""

import pytest


@pytest.fixture
def touch(tmp_path):
    """Makes empty files of these paths below the test's folder, and gives that folder: `touch("a/b.nii", …)`."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make
