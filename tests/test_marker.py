"""`@notify` and `notify_user`: what is refused when a module is imported, and what is filled in at a call."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_notify.exceptions import ConfigurationError, PublicError
from celery_notify.marker import ATTRIBUTE, FAILED, UNSET, Call, Marker, check_users, context_user, notify, notify_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SECRET = "s3cret"  # noqa: S105 - what must not be shown


class Order:
    id = 7


def bill(user_id: str, order: Any, *, copy: bool = False) -> tuple[str, Any, bool]:
    """Stand for a task's function."""
    return user_id, order, copy


def call(*args: Any, function: Callable[..., Any] = bill, **kwargs: Any) -> Call:
    return Call(function, args, kwargs)


def marker_of(function: Callable[..., Any]) -> Marker:
    marker: Marker = getattr(function, ATTRIBUTE)
    return marker


# At decoration


def test_the_function_itself_comes_back_marked() -> None:
    def function(user_id: str) -> str:
        return user_id

    marked = notify(user="user_id", title="Bill {user_id}")(function)

    assert marked is function
    assert marked("ada") == "ada"
    assert marker_of(marked) == Marker(user="user_id", title="Bill {user_id}")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"user": "users_id"}, "users_id"),
        ({"title": "Order {number}"}, "number"),
        ({"title": "Order {order.id} of {usr}"}, "usr"),
        ({"title": "Order {orders[0]}"}, "orders"),
        ({"title": "Order {}"}, "''"),
        ({"title": "Order {0}"}, "'0'"),
        ({"url": "/orders/{number}.pdf"}, "number"),
        ({"url": "/orders/{order}/{number!s:>5}"}, "number"),
        ({"title": "Order {order:{width}}"}, "width"),
    ],
)
def test_a_name_that_is_no_argument_is_an_error_at_import(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        notify(**options)(bill)
    text = str(refused.value)
    assert f"notify({next(iter(options))}=...)" in text
    assert named in text
    assert "bill (user_id, order, copy)" in text


@pytest.mark.parametrize("template", ["{", "}", "{order", "Order {order!}", "{order!x!y}"])
@pytest.mark.parametrize("option", ["title", "url"])
def test_what_is_no_template_is_an_error_at_import(option: str, template: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"notify\({option}=\.\.\.\): expected"):
        notify(**{option: template})(bill)


@pytest.mark.parametrize(
    "options",
    [
        {"user": 7},
        {"user": ["ada"]},
        {"title": 7},
        {"title": b"t"},
        {"url": lambda: "/"},
        {"result": "pages"},
        {"error": "Sorry"},
        {"cancellable": 1},
        {"cancellable": "yes"},
        {"cancellable": None},
    ],
)
def test_an_option_of_the_wrong_kind_is_an_error_at_import(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ConfigurationError) as refused:
        notify(**options)
    assert str(refused.value).startswith(f"notify({name}=...): expected ")
    assert repr(options[name]) in str(refused.value)


def test_what_is_no_function_cannot_be_marked() -> None:
    """Above Celery's decorator it would mark the task object, which nobody looks at."""
    with pytest.raises(ConfigurationError, match="below the task's decorator"):
        notify(user="user")(Order)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "user_id", "title": "{order.id} {order[0]} {copy!r:>5}", "url": "/{user_id}"},
        {"title": "{{literal}}", "url": "/{{literal}}"},
        {"title": ""},
        {"user": lambda *_, **__: "ada"},
        {"result": len, "error": str, "cancellable": True},
        {"cancellable": "progress"},
    ],
)
def test_what_fits_is_accepted(options: dict[str, Any]) -> None:
    assert notify(**options)(bill) is bill
    delattr(bill, ATTRIBUTE)


def test_a_function_that_takes_any_argument_may_be_given_any_name() -> None:
    def flexible(**kwargs: Any) -> None:
        """Take anything."""

    assert notify(user="whoever", title="{anything}")(flexible) is flexible
    assert marker_of(flexible).users(call(function=flexible, whoever="ada")) == ["ada"]
    assert marker_of(flexible).filled_title(call(function=flexible, anything=3)) == "3"


def test_a_variable_number_of_arguments_has_no_name_to_use() -> None:
    def several(*users: str) -> None:
        """Take several."""

    with pytest.raises(ConfigurationError):
        notify(user="users")(several)


def test_the_option_of_celerys_decorator_means_the_same() -> None:
    assert Marker.from_option({"user": "user_id", "cancellable": True}) == Marker(user="user_id", cancellable=True)
    assert Marker.from_option({}) == Marker()


def test_an_unknown_name_in_that_option_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"user, title, url, result, error, cancellable.*titel"):
        Marker.from_option({"titel": "x"})


# Whose it is


@pytest.mark.parametrize(
    "made", [call("ada", 7), call(user_id="ada", order=7), call("ada", order=7), call("ada", 7, copy=True)]
)
def test_the_user_is_an_argument_however_it_is_passed(made: Call) -> None:
    assert Marker(user="user_id").users(made) == ["ada"]


def test_the_user_may_be_an_arguments_default() -> None:
    def function(user_id: str = "ada") -> None:
        """Stand for a task's function."""

    assert Marker(user="user_id").users(call(function=function)) == ["ada"]


def test_the_user_may_be_computed_from_all_arguments() -> None:
    def owner(user_id: str, order: int, *, copy: bool) -> str:
        return f"{user_id}-{order}-{copy}"

    assert Marker(user=owner).users(call("ada", 7, copy=True)) == ["ada-7-True"]


@pytest.mark.parametrize(
    ("given_user", "users"),
    [
        ("ada", ["ada"]),
        (42, ["42"]),
        (["ada", "grace"], ["ada", "grace"]),
        (("ada", 7, "ada", "7"), ["ada", "7"]),
        ({"ada"}, ["ada"]),
        (frozenset(["ada"]), ["ada"]),
        ([], []),
        (None, None),
    ],
)
def test_there_may_be_one_user_or_several(given_user: object, users: list[str] | None) -> None:
    assert Marker(user="user_id").users(call(given_user, 7)) == users


@pytest.mark.parametrize("given_user", ["", True, 1.5, b"ada", ["ada", None], [["ada"]], object(), "\ud800"])
def test_what_is_no_users_id_is_refused(given_user: object) -> None:
    with pytest.raises(ValueError, match="expected a user's id"):
        Marker(user="user_id").users(call(given_user, 7))


def test_a_call_that_does_not_fit_the_function_tells_what_it_can() -> None:
    assert Marker(user="user_id").users(call("too", "many", "arguments", user_id="ada")) == ["ada"]
    assert Marker(user="user_id").users(call("too", "many", "arguments")) is None


@given(
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(), max_size=4),
)
def test_arguments_have_the_names_that_python_gives_them(args: list[int], kwargs: dict[str, int]) -> None:
    def plain(a: int, b: int, c: int = 3) -> None: ...
    def lavish(a: int, b: int = 2, *rest: int, d: int = 4, **more: int) -> None: ...

    for function in (plain, lavish):
        try:
            bound = inspect.signature(function).bind_partial(*args, **kwargs)
        except TypeError:
            expected = kwargs
        else:
            bound.apply_defaults()
            expected = {**bound.arguments, **bound.arguments.get("more", {})}
            expected.pop("more", None)
        assert Call(function, tuple(args), kwargs).arguments() == expected


def test_nothing_is_said_without_the_option() -> None:
    assert Marker().users(call("ada", 7)) is None


# Templates


def test_templates_are_filled_from_the_arguments() -> None:
    marker = Marker(title="Order {order.id} of {user_id}{copy!r:>6}", url="/orders/{order.id}.pdf")
    made = call("ada", Order())

    assert marker.filled_title(made) == "Order 7 of ada False"
    assert marker.filled_url(made) == "/orders/7.pdf"


def test_without_a_template_there_is_no_text() -> None:
    assert (Marker().filled_title(call("ada", 7)), Marker().filled_url(call("ada", 7))) == (None, None)


def test_a_title_is_cut_to_1_kib_and_cleaned() -> None:
    assert Marker(title="{order}").filled_title(call("ada", "é" * 5000)) == "é" * 510 + "…"
    assert Marker(title="{order}").filled_title(call("ada", "\ud800")) == "?"


@pytest.mark.parametrize(
    ("argument", "url"),
    [
        ("a b", "/o/a%20b.pdf?u=ada"),
        ("../../etc", "/o/..%2F..%2Fetc.pdf?u=ada"),
        ("x?y=1#z", "/o/x%3Fy%3D1%23z.pdf?u=ada"),
        ("é", "/o/%C3%A9.pdf?u=ada"),
        ("%31", "/o/%2531.pdf?u=ada"),
        ("a\r\nb", "/o/a%0D%0Ab.pdf?u=ada"),
        (7, "/o/7.pdf?u=ada"),
        ('"><script>', "/o/%22%3E%3Cscript%3E.pdf?u=ada"),
    ],
)
def test_an_argument_in_a_url_is_percent_encoded(argument: object, url: str) -> None:
    assert Marker(url="/o/{order}.pdf?u={user_id}").filled_url(call("ada", argument)) == url


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_an_argument_adds_nothing_to_the_form_of_a_url(argument: str) -> None:
    url = Marker(url="/o/{order}/end").filled_url(call("ada", argument))

    assert url is not None
    assert url.count("/") == 3
    assert not set("?#:\\ \r\n") & set(url)


def test_a_url_may_begin_with_an_argument_that_is_one() -> None:
    marker = Marker(url="{order}/files/{user_id}")

    assert marker.filled_url(call("a/b", "https://files.example/x")) == "https://files.example/x/files/a%2Fb"


def test_a_template_that_begins_with_a_brace_begins_with_no_argument() -> None:
    assert Marker(url="{{x}}/{order}").filled_url(call("ada", "a/b")) == "{x}/a%2Fb"


def test_a_url_over_1_kib_is_left_out_since_a_part_of_it_leads_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    assert Marker(url="/{order}").filled_url(call("ada", "x" * 1024)) is None
    assert "1 KiB" in caplog.text
    assert Marker(url="/{order}").filled_url(call("ada", "x" * 1023)) == "/" + "x" * 1023


class Hostile:
    def __format__(self, spec: str) -> str:
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


TEMPLATES = ["{order} {user_id}", "{order.id[3]}", "{order!r}{user_id}"]
UNFIT = [call("ada"), call(), call("too", "many", "of", "them")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_title_that_cannot_be_filled_is_an_error(template: str) -> None:
    with pytest.raises(ValueError, match="cannot be filled"):
        Marker(title=template).filled_title(call("ada", Hostile()))


@pytest.mark.parametrize("made", UNFIT)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_call_that_does_not_fit_has_no_title_since_its_failure_is_told(made: Call, template: str) -> None:
    assert Marker(title=template).filled_title(made) is None


@pytest.mark.parametrize("made", [call("ada", Hostile()), *UNFIT])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_url_that_cannot_be_filled_is_logged_and_left_out(
    made: Call, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Marker(url="/" + template).filled_url(made) is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


# What is said of a failure


def test_a_failure_says_nothing_of_itself() -> None:
    assert Marker().public_error(ValueError(SECRET)) == FAILED == "The task failed."


def test_a_public_error_says_its_text() -> None:
    assert Marker().public_error(PublicError("No such order.")) == "No such order."


def test_the_option_says_what_is_said() -> None:
    marker = Marker(error=lambda error: f"Because of {type(error).__name__}")

    assert marker.public_error(ValueError(SECRET)) == "Because of ValueError"
    assert marker.public_error(PublicError("No such order.")) == "Because of PublicError"


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_option_that_says_nothing_says_that_it_failed(nothing: str | None) -> None:
    assert Marker(error=lambda _: nothing).public_error(ValueError(SECRET)) == FAILED


def test_an_option_that_fails_gives_nothing_away(caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: BaseException) -> str:
        raise RuntimeError(str(error))

    assert Marker(error=fail).public_error(ValueError(SECRET)) == FAILED
    assert "cannot be told" in caplog.text


# notify_user


def test_outside_of_all_blocks_nobody_is_named() -> None:
    assert context_user() is UNSET


def test_blocks_nest_and_the_innermost_counts() -> None:
    with notify_user("ada"):
        assert context_user() == ["ada"]
        with notify_user([1, "grace"]):
            assert context_user() == ["1", "grace"]
            with notify_user(None):
                assert context_user() is None
            assert context_user() == ["1", "grace"]
        assert context_user() == ["ada"]
    assert context_user() is UNSET


def raise_in_block(user: str) -> None:
    with notify_user(user):
        raise KeyError(user)


def test_a_block_that_raises_ends_all_the_same() -> None:
    with pytest.raises(KeyError):
        raise_in_block("ada")
    assert context_user() is UNSET


@pytest.mark.parametrize("user", ["", 1.5, True, b"ada", ["ada", None]])
def test_a_block_for_nobodys_id_is_refused_before_it_begins(user: object) -> None:
    with pytest.raises(ValueError, match="expected a user's id"), notify_user(user):
        pytest.fail("expected the block not to begin")
    assert context_user() is UNSET


def test_several_users_are_one_list_without_repetition() -> None:
    assert check_users(None) == []
    assert check_users("ada") == ["ada"]
    assert check_users(["ada", 1, "ada", "1"]) == ["ada", "1"]
