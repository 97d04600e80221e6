"""Frames and fields as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.simulator.protocol import framing

FIELDS = st.lists(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12), min_size=1
)


def test_a_frame_is_its_length_and_nul_terminated_fields() -> None:
    """A message is a 4-byte big-endian length and fields that each end with NUL."""
    assert framing.message((49, 1, "x", True, 0.5)) == b"\0\0\0\x0d49\x001\0x\x001\x000.5\0"


@given(st.lists(FIELDS, min_size=1, max_size=5), st.integers(1, 7))
def test_frames_survive_any_splitting(messages: list[list[str]], piece: int) -> None:
    """Frames in pieces of any size are returned complete and in order."""
    stream = b"".join(framing.message(fields) for fields in messages)
    reader = framing.FrameReader()
    payloads = [
        payload
        for at in range(0, len(stream), piece)
        for payload in reader.feed(stream[at : at + piece])
    ]
    assert [framing.split_fields(payload) for payload in payloads] == messages


@pytest.mark.parametrize("header", [b"\0\0\0\0", b"\x01\0\0\0", b"GET "])
def test_impossible_lengths_are_frame_errors(header: bytes) -> None:
    """A length of zero or above 16 MB is no frame."""
    with pytest.raises(framing.FrameError):
        list(framing.FrameReader().feed(header))


def test_frames_before_a_bad_length_are_returned() -> None:
    """Frames that were complete before the damage are returned."""
    payloads = framing.FrameReader().feed(framing.message(("49", "1")) + b"\xff\xff\xff\xff")
    assert next(payloads) == b"49\x001\0"
    with pytest.raises(framing.FrameError):
        next(payloads)


@pytest.mark.parametrize("payload", [b"49\x001", b"\xff\xfe\0"])
def test_payloads_that_are_no_fields_are_frame_errors(payload: bytes) -> None:
    """A last field without its NUL and text that is not UTF-8 are refused."""
    with pytest.raises(framing.FrameError):
        framing.split_fields(payload)


@pytest.mark.parametrize(
    ("offer", "versions"),
    [
        (b"v157..178", (157, 178)),
        (b"v100..226", (100, 226)),
        (b"v157..178 +PACEAPI", (157, 178)),
        (b"v176", (176, 176)),
    ],
)
def test_version_offers_are_read(offer: bytes, versions: tuple[int, int]) -> None:
    """A client offers a range of versions, with or without options after it."""
    assert framing.parse_versions(offer) == versions


@pytest.mark.parametrize("offer", [b"63", b"v", b"v1..", b"vx..y", b"\xff"])
def test_other_offers_are_frame_errors(offer: bytes) -> None:
    """Any other offer ends the handshake."""
    with pytest.raises(framing.FrameError):
        framing.parse_versions(offer)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_equal(value: float) -> None:
    """A float is written as a text that reads back as the same float64."""
    assert float(framing.field_text(value)) == value
