import fuzzing
import pytest
from randomized import clip, save_random


@pytest.mark.parametrize("kind", fuzzing.targets())
def test_a_damaged_file_is_refused_in_one_line_or_read(kind):
    told = fuzzing.run({kind: fuzzing.targets()[kind]}, 60)[kind]
    assert set(told) <= {"taken", "refused"} and told["refused"] > 10, told


def test_a_damaged_configuration_is_refused_in_one_line_or_read(tmp_path):
    target = fuzzing.configuration_target(save_random(clip(), tmp_path / "source"))
    told = fuzzing.run({"configuration": target}, 40)["configuration"]
    assert set(told) <= {"taken", "refused"} and told["refused"] > 5, told
