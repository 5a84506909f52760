"""How many streams a user and a process may have open."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_notify.admission import Admissions
from celery_notify.exceptions import TooManyStreamsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_notify.admission import Admission


@pytest.mark.defends("S12")
def test_a_user_has_a_limit_of_its_own() -> None:
    admissions = Admissions(per_user=2, in_all=10)
    held = [admissions.admit("ada"), admissions.admit("ada")]

    with pytest.raises(TooManyStreamsError) as refused:
        admissions.admit("ada")

    assert refused.value.of_user
    held.append(admissions.admit("grace"))


@pytest.mark.defends("S12")
def test_the_process_has_a_limit_that_is_not_the_users_fault() -> None:
    admissions = Admissions(per_user=2, in_all=3)
    held = [admissions.admit(user) for user in ("ada", "ada", "grace")]

    for user in ("ada", "alan"):
        with pytest.raises(TooManyStreamsError) as refused:
            admissions.admit(user)
        assert not refused.value.of_user
    assert len(held) == 3


def test_a_place_is_free_again_when_it_is_released_once() -> None:
    admissions = Admissions(per_user=2, in_all=2)
    first, second = admissions.admit("ada"), admissions.admit("ada")

    first.release()
    first.release()

    third = admissions.admit("ada")
    with pytest.raises(TooManyStreamsError):
        admissions.admit("ada")
    assert {second.user, third.user} == {"ada"}


def test_a_place_that_was_forgotten_is_free_again() -> None:
    """A request that ends in an error of the application's never comes to its stream."""
    admissions = Admissions(per_user=1, in_all=1)
    admission = admissions.admit("ada")
    cycle: list[object] = [admission]
    cycle.append(cycle)

    del admission, cycle
    gc.collect()

    assert admissions.admit("ada").user == "ada"


def test_a_refusal_takes_no_place() -> None:
    admissions = Admissions(per_user=1, in_all=2)
    held = admissions.admit("ada")
    for _ in range(5):
        with pytest.raises(TooManyStreamsError):
            admissions.admit("ada")

    assert admissions.admit("grace").user == "grace"
    assert held.user == "ada"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c"]))))
def test_no_more_are_open_than_the_limits_say_and_all_places_come_back(steps: list[tuple[bool, str]]) -> None:
    admissions = Admissions(per_user=2, in_all=4)
    held: list[Admission] = []
    for coming, user in steps:
        mine = [admission for admission in held if admission.user == user]
        if coming:
            try:
                held.append(admissions.admit(user))
            except TooManyStreamsError as refused:
                full = len(mine) == 2 if refused.of_user else len(held) == 4
                assert full
            else:
                assert len(mine) < 2
                assert len(held) <= 4
        elif mine:
            held.remove(mine[0])
            mine[0].release()
    for admission in held:
        admission.release()

    again = [admissions.admit(user) for user in ("a", "a", "b", "b")]
    assert len(again) == 4


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.defends("S12")
def test_threads_do_not_get_more_than_there_is(frequent_switches: None) -> None:
    admissions = Admissions(per_user=1000, in_all=1000)
    start = threading.Barrier(8)
    got: list[Admission] = []
    refused: list[str] = []

    def ask() -> None:
        start.wait()
        for _ in range(500):
            try:
                got.append(admissions.admit("ada"))
            except TooManyStreamsError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(got), len(refused)) == (1000, 3000)
