"""The default call gives the loop's answer, on tasks of whatever length, whatever is in its way."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.conftest import IS_LONG, examples
from tests.properties.uneven import check, draw_call

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(300 if not IS_LONG else 7200)]


@examples(40)
@given(st.integers(0, 10**9))
def test_a_random_call_gives_what_a_plain_loop_does(seed: int) -> None:
    check(draw_call(random.Random(seed)))


@pytest.mark.soak
@examples(300)
@given(st.integers(0, 10**9))
def test_so_do_many(seed: int) -> None:
    check(draw_call(random.Random(seed)))
