"""Keys set in other people's TOML, and taken out to the byte."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdist.errors import UnsupportedError
from imgdist.installation.tomltext import with_keys, without_keys

CRI = "io.containerd.grpc.v1.cri"
WANTED = {
    "proxy_plugins": {"imgdist": {"type": "snapshot", "address": "/run/s"}},
    "plugins": {CRI: {"containerd": {"snapshotter": "imgdist", "disable_snapshot_annotations": False}}},
}
DEBIAN = f'''version = 2

[plugins]
  [plugins."{CRI}"]
    [plugins."{CRI}".cni]
      bin_dir = "/usr/lib/cni" # ours
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
'''
FULL = f'''version = 2
imports = [
  "a.toml", # one
  "b.toml",
]
[plugins."{CRI}".containerd]
  # the default one
  snapshotter = "overlayfs"
  disable_snapshot_annotations = true
  [plugins."{CRI}".containerd.runtimes.runc]
    snapshotter = ""
'''


@pytest.mark.parametrize(
    "text",
    ["", "version = 2\n", DEBIAN, FULL, FULL.replace("\n", "\r\n")],
    ids=["empty", "short", "debian", "full", "line ends of Windows"],
)
def test_keys_are_set_and_taken_out_again(text: str) -> None:
    changed = with_keys(text, WANTED, "c.toml")
    document = tomllib.loads(changed)
    assert document["proxy_plugins"]["imgdist"]["address"] == "/run/s"
    assert document["plugins"][CRI]["containerd"]["snapshotter"] == "imgdist"
    assert document["plugins"][CRI]["containerd"]["disable_snapshot_annotations"] is False
    assert with_keys(changed, WANTED, "c.toml") == changed, "again: nothing new"
    assert without_keys(changed) == text


def test_a_value_over_several_lines_is_replaced_as_a_whole() -> None:
    changed = with_keys(FULL, {"imports": ["a.toml", "b.toml", "/c"]}, "c.toml")
    assert tomllib.loads(changed)["imports"] == ["a.toml", "b.toml", "/c"]
    assert without_keys(changed) == FULL


def test_ours_are_found_again_when_an_editor_has_changed_the_line_ends() -> None:
    assert without_keys(with_keys(FULL, WANTED, "c.toml").replace("\n", "\r\n")) == FULL.replace("\n", "\r\n")


def test_what_others_write_between_stays() -> None:
    changed = with_keys(DEBIAN, WANTED, "c.toml").replace('"/usr/lib/cni"', '"/opt/cni"') + '[new]\nkey = "x"\n'
    assert without_keys(changed) == DEBIAN.replace('"/usr/lib/cni"', '"/opt/cni"') + '[new]\nkey = "x"\n'


@pytest.mark.parametrize(
    "text",
    ["proxy_plugins = { other = { type = 'x' } }\n", f'[plugins]\n"{CRI}".containerd.snapshotter = "x"\n', "a = = 1\n"],
    ids=["inline table", "dotted key", "no TOML"],
)
def test_what_cannot_be_edited_safely_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"c\.toml"):
        with_keys(text, WANTED, "c.toml")


VALUES = st.one_of(st.booleans(), st.text("x='\" #[]\\", max_size=5))


@given(st.dictionaries(st.sampled_from("abcd"), VALUES, min_size=1))
def test_any_value_comes_back(keys: dict[str, bool | str]) -> None:
    before = 'a = "1"\n[t]\nb = 2\nc = """\n"""\n[t.u]\na = 1\n'
    changed = with_keys(before, {"t": keys}, "c.toml")
    assert tomllib.loads(changed)["t"] == {"b": 2, "c": "", "u": {"a": 1}, **keys}
    assert without_keys(changed) == before
