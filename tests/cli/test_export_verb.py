"""`medfocal export`: what it prints, where it writes, and what it refuses."""

import pytest
from command_models import make_model
from commands import assert_refused, run


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model", seed=0, channels=[4, 6, 8], window=[16, 12, 8], precision="auto")


@pytest.mark.parametrize(("kind", "name"), [("torch_export", "deep/m.pt2"), ("monai_bundle", "deep/bundle")])
def test_it_says_how_near_the_file_comes_and_where_it_is(tmp_path, model, kind, name):
    ended = run("export", f"model={model}", f"format={kind}", f"output={name}", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first.startswith("a window of 16x12x8 voxels of noise: probabilities within ")
    assert first.endswith(" of the model's, in float32")
    assert float(first.split("within ")[1].split()[0]) < 1e-4
    assert second == f"the {kind} is '{name}'"
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["format=onx", "output=m.onnx"], 2, "there is no format 'onx' (did you mean 'onnx'?)"),
        (["format=onnx", "output=m.pt2"], 2, "output must end in .onnx, which is what format=onnx writes"),
        (["format=monai_bundle", "output=' '"], 2, "output must name a folder"),
        (["format=torch_export"], 2, "output must be given"),
        (["format=monai_bundle", "output=model"], 2, "'model' exists and a bundle replaces nothing"),
        (["format=torch_export", "output=model/model.json/m.pt2"], 5, "model.json"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, model, words, code, told):
    before = sorted(tmp_path.rglob("*"))
    assert_refused(run("export", f"model={model}", *words, folder=tmp_path), code, told)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_model_is_4(tmp_path):
    words = ("model=nowhere", "format=torch_export", "output=m.pt2")
    assert_refused(run("export", *words, folder=tmp_path), 4, "'nowhere' is not a model folder")
