"""`medfocal evaluate` is for machines that hold masks and no deep-learning stack."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from medfocal.volume import Volume, write_volume


@pytest.mark.parametrize("more", [[], ["readers=[reference,prediction]"], ["readers=dataset.json"]], ids=str)
def test_the_evaluate_command_imports_neither_torch_nor_monai(more, tmp_path):
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[3:5, 3:5, 3] = 1
    for folder in ("reference", "prediction", "images"):
        write_volume(tmp_path / folder / "a.nii.gz", Volume(mask, np.diag([0.5, 1.0, 3.0, 1.0])))
    files = [f"{folder}/a.nii.gz" for folder in ("reference", "prediction")]
    entry = {"case": "a", "image": "images/a.nii.gz", "annotations": files}
    content = {"channel_names": {"0": "x"}, "labels": {"0": "background", "1": "lesion"}, "test": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    words = ["evaluate", "reference=reference", "prediction=prediction", "output=o", "images=reference", *more]
    program = textwrap.dedent(f"""
        import sys
        from medfocal import cli
        try:
            cli.main({words})
        except SystemExit as ended:
            print("ended with", ended.code, sorted({{"torch", "monai"}} & set(sys.modules)))
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout.splitlines()[-1:] == ["ended with 0 []"], ended.stderr
    assert (tmp_path / "o" / "report.html").is_file()


def test_results_are_not_written_among_the_files_they_judge(tmp_path):
    write_volume(tmp_path / "r" / "a.nii.gz", Volume(np.ones((4, 3, 2), np.uint8), np.eye(4)))
    words = ["evaluate", "reference=r", "prediction=r", "output=r"]
    command = [sys.executable, "-m", "medfocal.cli", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    assert "choose another" in ended.stderr
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["a.nii.gz"]
