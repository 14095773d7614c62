"""The cases of containerd's own pkg/filters/filter_test.go, and the filter that its metadata store sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.snapshotter.filters import parse
from imgdist.errors import UsageError

CORPUS: list[dict[str, object]] = [
    {"name": "foo", "labels": {"foo": "true"}},
    {"name": "bar"},
    {"name": "foo", "labels": {"foo": "present", "more complex label": "present"}},
    {"name": "bar", "labels": {"bar": "true"}},
    {"name": "fooer", "labels": {'more complex label with \\ and "': "present"}},
    {"name": "fooer", "labels": {'more complex label with \\ and ".post': "present"}},
    {"name": "baz", "other": "too complex, yo"},
    {"name": "bazo", "other": "abc"},
    {"name": "compound", "labels": {"foo": "omg_asdf.asdf-qwer"}},
]


def matching(*filters: str) -> list[int]:
    parsed = parse(filters)

    def fields(entry: dict[str, object]):  # type: ignore[no-untyped-def]
        def value(path: tuple[str, ...]) -> str | None:
            if path[0] == "labels":
                return entry.get("labels", {}).get(".".join(path[1:]))  # type: ignore[attr-defined]
            return entry.get(path[0])  # type: ignore[return-value]

        return value

    return [number for number, entry in enumerate(CORPUS) if parsed.matches(fields(entry))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", list(range(9))),
        ("name", list(range(9))),
        ("labels.foo", [0, 2, 8]),
        ("labels.foo,name", [0, 2, 8]),
        ("labels.foo==true", [0]),
        ("labels.foo==omg_asdf.asdf-qwer", [8]),
        ("name==bar", [1, 3]),
        ("name!=bar", [0, 2, 4, 5, 6, 7, 8]),
        ("name==bar,labels.bar", [3]),
        (' name == bar , labels . "bar" ', [3]),
        ('other=="too complex, yo"', [6]),
        ("other~=[abc]+,name!=foo", [6, 7]),
        ("other~=/[abc]+/,name!=foo", [6, 7]),
        ("other~=|[abc]+|,name!=foo", [6, 7]),
        ("other~=/[abc]{1,2}/,name!=foo", [6, 7]),
        ('other~=/[abc]{0,1}"\\//,name!=foo', []),
        ("other~=/(/", []),
        ("name==bar,labels.bar==true", [3]),
        ("name==bar,labels.bar==wrong", []),
        ('name==foo,labels."more complex label"', [2]),
        ('labels."more complex label with \\\\ and \\""==present', [4]),
        ('labels."more complex label with \\\\ and \\"".post==present', [5]),
        ('name=="\\x66\\157\\u006f"', [0, 2]),
        ("absent!=x", list(range(9))),
        ("absent==", None),
        ("labels.|foo|==omg_asdf.asdf-qwer", None),
        ('labels.?"more complex label"==present', None),
        ("name==foo,", None),
        ("labels.", None),
        ("image~=,id?=?fbaq", None),
        ("labels.ns/key==value", None),
        ("labels.key==/value", None),
        ("name=foo", None),
        ("name===foo", None),
        ("name==foo bar", None),
        ('name=="foo', None),
        ('name=="\\q"', None),
        ('name=="\\u12"', None),
        ('name=="\\777"', None),
    ],
)
def test_as_containerd_matches(text: str, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="character"):
            parse([text])
    else:
        assert matching(text) == expected


def test_several_filters_are_alternatives_and_none_matches_all() -> None:
    assert matching("name==bar", "labels.foo==true") == [0, 1, 3]
    assert matching() == list(range(9))


def test_the_search_after_a_take_over() -> None:
    chain = "sha256:" + "a" * 64
    fields = {
        ("labels", "containerd.io/snapshot.ref"): chain,
        ("parent",): "k8s.io/9/sha256:bb",
    }
    text = f'labels."containerd.io/snapshot.ref"=={chain},parent=="k8s.io/9/sha256:bb"'
    assert parse([text]).matches(fields.get)
    assert not parse([text]).matches({**fields, ("parent",): ""}.get)
    assert parse([f'labels."containerd.io/snapshot.ref"=={chain},parent==""']).matches({**fields, ("parent",): ""}.get)


def test_what_every_match_must_have() -> None:
    assert parse(["name==a,parent==b"]).required(("parent",)) == "b"
    assert parse(['parent==""']).required(("parent",)) == ""
    for several in (["parent==a", "parent==b"], ["parent!=a"], ["parent"], ["name==a"], []):
        assert parse(several).required(("parent",)) is None


@given(st.text())
def test_nothing_but_a_usage_error_comes_out(text: str) -> None:
    try:
        parsed = parse([text])
    except UsageError:
        return
    assert parsed.matches(lambda _: None) in (True, False)
