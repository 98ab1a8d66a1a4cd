import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpsl.app.result_folders import refuse_overlaps, refuse_results

FOLDERS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map(lambda parts: Path(*parts))


@given(result=FOLDERS, data=FOLDERS)
def test_results_and_data_do_not_contain_each_other(result: Path, data: Path) -> None:
    shorter = min(len(result.parts), len(data.parts))
    if result.parts[:shorter] != data.parts[:shorter]:
        refuse_overlaps({"--colors": result}, {"target.images": data})
        return
    with pytest.raises(ValueError, match=r"--colors .*target\.images"):
        refuse_overlaps({"--colors": result}, {"target.images": data})


def test_links_count_as_their_folders(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "link").symlink_to("labels")
    with pytest.raises(ValueError, match="link"):
        refuse_overlaps({"--colors": tmp_path / "link"}, {"target.labels": tmp_path / "labels"})


@given(first=FOLDERS, second=FOLDERS)
def test_two_kinds_of_results_have_two_folders(first: Path, second: Path) -> None:
    results = {"--colors": first, "--predictions": second, "--label-ids": None}
    if first != second:
        refuse_overlaps(results, {})
        return
    with pytest.raises(ValueError, match="--colors and --predictions"):
        refuse_overlaps(results, {})


@pytest.mark.parametrize("marker", ["run.json", "prediction.json"])
@pytest.mark.parametrize("inside", ["", "predictions", "labels/city", "new"])
def test_results_of_other_commands_are_kept(tmp_path: Path, marker: str, inside: str) -> None:
    (tmp_path / "own" / "stage").mkdir(parents=True)
    folder = tmp_path / "own" / "stage" / inside
    results = {"--colors": None, "--predictions": folder}
    refuse_results(results)
    (tmp_path / "own" / marker).write_text("{}")
    (tmp_path / "own" / "stage" / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=f"--predictions {re.escape(str(folder))} "):
        refuse_results(results)
    (tmp_path / "link").symlink_to(tmp_path / "own" / "stage")
    with pytest.raises(ValueError, match="--colors"):
        refuse_results({"--colors": tmp_path / "link" / inside})
    refuse_results({"--colors": tmp_path / "beside"})
    if marker == "run.json":  # beside its stages
        refuse_results({"--colors": tmp_path / "own" / "evaluation"})
