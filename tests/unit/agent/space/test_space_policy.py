"""What goes when space is short: the order, never what is in use, and no more than is needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.space.policy import Leftover, PackState, What, plan

NOW = 1_000_000.0


def pack(name: str, size: int = 100, *, frames: int = 0, age_s: float = 1000, users: tuple[str, ...] = ()) -> PackState:
    return PackState(name, size, frames, NOW - age_s, users)


def test_leftovers_then_frames_then_unused_packs_the_longest_unused_first() -> None:
    packs = [
        pack("new", frames=10, age_s=500),
        pack("old", frames=10, age_s=900),
        pack("used", frames=10, users=("x",)),
    ]
    decided = plan(packs, [Leftover(".part-x", 5)], 140, min_age_s=300, now=NOW)
    assert [(victim.what, victim.name) for victim in decided.victims] == [
        (What.LEFTOVER, ".part-x"),
        (What.FRAMES, "used"),
        (What.FRAMES, "old"),
        (What.FRAMES, "new"),
        (What.PACK, "old"),
        (What.PACK, "new"),
    ]
    assert [(kept.pack_id, kept.why) for kept in decided.kept] == [("used", "used by x")]


def test_no_more_goes_than_is_needed_and_it_is_said_why_the_rest_stays() -> None:
    packs = [pack("a", age_s=900), pack("b", age_s=800), pack("young", age_s=20), pack("c", age_s=700)]
    decided = plan(packs, [], 150, min_age_s=60, now=NOW)
    assert [victim.name for victim in decided.victims] == ["a", "b"]
    assert {kept.pack_id: kept.why for kept in decided.kept} == {
        "young": "used 20 s ago, kept for 60 s",
        "c": "no space is needed",
    }


def test_what_is_in_use_stays_however_much_is_wanted() -> None:
    decided = plan([pack("a"), pack("b", users=("a snapshot", "an upload"))], [], 500, min_age_s=0, now=NOW)
    assert [victim.name for victim in decided.victims] == ["a"]
    assert decided.kept[0].why == "used by a snapshot, an upload"


def test_without_frames_those_of_used_packs_stay() -> None:
    decided = plan(
        [pack("a", frames=7), pack("b", frames=7, users=("x",))], [], 1 << 60, min_age_s=0, now=NOW, frames=False
    )
    assert [(victim.what, victim.name, victim.size_bytes) for victim in decided.victims] == [(What.PACK, "a", 107)]


STATES = st.lists(
    st.builds(
        PackState,
        st.uuids().map(str),
        st.integers(0, 1000),
        st.integers(0, 100),
        st.floats(0, NOW),
        st.sampled_from([(), ("a snapshot",)]),
    ),
    max_size=30,
    unique_by=lambda pack: pack.pack_id,
)


@given(STATES, st.integers(0, 20_000), st.floats(0, NOW), st.booleans())
def test_every_plan_is_sound(packs: list[PackState], wanted: int, min_age_s: float, frames: bool) -> None:
    decided = plan(packs, [], wanted, min_age_s=min_age_s, now=NOW, frames=frames)
    by_id = {pack.pack_id: pack for pack in packs}
    gone = [victim.name for victim in decided.victims if victim.what is What.PACK]
    assert all(not by_id[name].users and NOW - by_id[name].used_at >= min_age_s for name in gone)
    assert sorted([*gone, *(kept.pack_id for kept in decided.kept)]) == sorted(by_id)
    freed = sum(victim.size_bytes for victim in decided.victims)
    assert freed >= wanted or "no space is needed" not in {kept.why for kept in decided.kept}
    assert freed - (decided.victims[-1].size_bytes if decided.victims else 0) < max(wanted, 1), (
        "the last one was needed"
    )
    assert sum(p.size_bytes + p.frames_bytes for p in packs) == freed + sum(kept.size_bytes for kept in decided.kept)
