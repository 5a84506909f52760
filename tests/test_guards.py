"""What stands before the views, around a view that says for whom it was called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask import Flask

from celery_notify import guards
from celery_notify.exceptions import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from celery_notify.guards import View


def ask(view: View, path: str = "/", *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Any:
    """Return the answer of a view with its guards."""
    app = Flask("tests")
    app.add_url_rule("/", view_func=view, methods=["GET", "POST"])
    return app.test_client().open(path, method=method, headers=headers)


def whose(user: str = "nobody") -> str:
    return user


def tag_of(user: str, secret: str | bytes | None = None) -> str:
    app = Flask("tests")
    app.secret_key = secret
    with app.app_context():
        return guards.user_tag(user)


def test_an_error_is_json_that_no_cache_keeps() -> None:
    answer = ask(guards.only(["POST"], whose))

    assert (answer.status_code, answer.json) == (405, {"error": "expected POST, got GET"})
    assert (answer.headers["Allow"], answer.headers["Cache-Control"]) == ("POST", "no-store, private")
    assert answer.headers["Vary"] == "Cookie"


@pytest.mark.parametrize(("loaded", "user"), [("ada", "ada"), (7, "7"), (0, "0")])
def test_the_view_is_called_with_the_user_as_text(loaded: object, user: str) -> None:
    assert ask(guards.for_user(lambda: loaded, whose)).text == user


@pytest.mark.parametrize("nobody", [None, False, ""])
def test_nobody_is_401(nobody: object) -> None:
    answer = ask(guards.for_user(lambda: nobody, whose))

    assert (answer.status_code, answer.json) == (401, {"error": "not logged in"})


@pytest.mark.parametrize("wrong", [True, 1.5, b"ada", ["ada"], "x" * 257, "\ud800"])
def test_what_is_no_users_id_is_an_error(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected a user's id"):
        guards.who(lambda: wrong)


def test_while_redis_does_not_answer_one_may_come_again() -> None:
    def view(user: str) -> str:
        raise TransportError(f"no answer for {user}")

    answer = ask(guards.for_user(lambda: "ada", view))

    assert (answer.status_code, answer.json) == (503, {"error": "notifications are not available now"})
    assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize("secret", [None, "secret", b"secret", "s" * 500, "ключ"])
def test_a_tag_is_the_same_for_a_user_and_another_for_another_one(secret: str | bytes | None) -> None:
    tags = [tag_of(user, secret) for user in ("ada", "ada", "grace", "ada ", "é")]

    assert tags[0] == tags[1]
    assert len(set(tags)) == 4
    assert all(len(tag) == 24 and tag.isascii() and tag.isalnum() for tag in tags)


def test_a_tag_cannot_be_made_by_who_does_not_know_the_secret() -> None:
    assert len({tag_of("ada", secret) for secret in (None, "a", "b", "s" * 64 + "a", "s" * 64 + "b")}) == 5
    assert tag_of("ada", "a") == tag_of("ada", b"a")


def test_who_asks_for_another_user_is_refused() -> None:
    view = guards.for_user(lambda: "ada", guards.same_user(whose))

    assert ask(view).text == "ada"
    assert ask(view, f"/?user_tag={tag_of('ada')}").text == "ada"
    for tag in (tag_of("grace"), tag_of("ada", "secret"), tag_of("ada").upper(), "", "ada"):
        answer = ask(view, f"/?user_tag={tag}")
        assert (answer.status_code, answer.json) == (403, {"error": "another user is logged in"}), tag


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Sec-Fetch-Site": "cross-site"}, 403)],
)
def test_who_comes_from_another_site_is_refused(headers: dict[str, str], status: int) -> None:
    """All that a browser may send is tried in test_flask.py."""
    assert ask(guards.same_site(whose), method="POST", headers=headers).status_code == status
