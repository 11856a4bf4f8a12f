from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold.model.errors import VaultKeyError
from safehold.vault.kit import Kit, looks_like_kit, parse_kit, render_kit
from safehold.vault.records import Generation

seeds = st.binary(min_size=32, max_size=32)
kits = st.builds(
    lambda vault, seeds: Kit(vault, tuple(Generation(n, seed) for n, seed in enumerate(seeds))),
    st.binary(min_size=16, max_size=16),
    st.lists(seeds, min_size=1, max_size=3),
)


@given(kits)
def test_what_is_printed_can_be_read(kit: Kit) -> None:
    page = render_kit("s3://bucket/prefix", kit, "2026-01-01")
    assert looks_like_kit(page)
    assert parse_kit(page) == kit
    assert parse_kit(page.lower()) == kit


@given(kits, st.data())
def test_a_typing_mistake_is_found(kit: Kit, data: st.DataObject) -> None:
    page = render_kit("x", kit, "now")
    start = page.index("SHK1-") + 5
    places = [n for n in range(start, start + 90) if page[n].isalnum()]
    at = data.draw(st.sampled_from(places))
    other = data.draw(st.sampled_from([c for c in "0123456789ABCDEFGHJKMNPQRSTVWXYZ" if c != page[at]]))
    with pytest.raises(VaultKeyError, match="mistyped"):
        parse_kit(page[:at] + other + page[at + 1 :])


def test_letters_that_look_alike_are_taken_for_what_they_mean() -> None:
    kit = Kit(bytes(16), (Generation(0, bytes(32)),))
    page = render_kit("x", kit, "now")
    start = page.index("SHK1-") + 5
    end = page.index("To restore")
    assert parse_kit(page[:start] + page[start:end].replace("0", "O").replace("1", "l") + page[end:]) == kit


@pytest.mark.parametrize("text", ["", "hello", "SHK1-", "SHK1-ABCDE", "SHK1-" + "-".join(["UUUUU"] * 18)])
def test_what_is_no_kit(text: str) -> None:
    with pytest.raises(VaultKeyError):
        parse_kit(text)


def test_kits_of_two_vaults_are_not_mixed() -> None:
    pages = [render_kit("x", Kit(bytes([n] * 16), (Generation(0, bytes(32)),)), "now") for n in (1, 2)]
    with pytest.raises(VaultKeyError, match="different vaults"):
        parse_kit("\n".join(pages))
