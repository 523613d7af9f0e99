"""Joining several processes: what is said where it is not known who they are, and one process as the case of one."""

from __future__ import annotations

import jax
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.files import distributed


def test_a_single_process_is_the_first_and_waits_for_nobody():
    assert distributed.is_first()
    assert distributed.from_first(lambda: {"a": 1}) == {"a": 1} and distributed.everyone([1]) == [[1]]
    distributed.barrier()
    with pytest.raises(ZeroDivisionError):
        distributed.from_first(lambda: 1 / 0)


@pytest.mark.parametrize("text", ["two", "-1", "1.5", ""])
def test_a_setting_that_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv("JAX_NUM_PROCESSES", text)
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES must be a whole number"):
        distributed.initialize()


def test_where_the_others_cannot_be_found_the_message_says_how_to_name_them(monkeypatch):
    def unknown(**given):
        assert given == {"num_processes": 3, "process_id": None}
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", unknown)
    with pytest.raises(UserError, match=r"set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
        distributed.initialize()
