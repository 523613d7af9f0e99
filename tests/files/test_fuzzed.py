"""A few damaged files for every reader; `make fuzz` tries many."""

from __future__ import annotations

import fuzzing
import pytest

CHANGES = 15


@pytest.mark.slow
# threads of TensorStore still read what Orbax has given up
@pytest.mark.filterwarnings("ignore:(?s).*Event loop is closed")
@pytest.mark.parametrize("kind", fuzzing.TARGETS)
def test_a_damaged_file_is_refused_in_one_line_or_read_as_it_was_written(tmp_path, kind):
    told = fuzzing.run(fuzzing.TARGETS[kind](tmp_path), CHANGES)
    assert set(told) <= {"taken", "refused"}, told
