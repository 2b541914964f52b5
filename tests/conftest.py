"""Settings of the whole suite: four CPU devices, and no silent broadcasting between ranks."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets, or a skip that says what is missing."""
    folder = Path(
        os.environ.get("CALMOE_DATA_DIR", Path(__file__).parents[1] / ".." / "shared" / "data")
    ).resolve()
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set CALMOE_DATA_DIR)")
    return folder
