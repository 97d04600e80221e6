"""Which instruments a request means, as a gateway knows them at its time.

Here: expired contracts, fronts of continuous futures, ambiguity. Not here: the comparing of
fields (``instruments``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ktrdr_pipelines.simulator.futures import with_front
from ktrdr_pipelines.simulator.instruments import Instrument, SecType, fitting
from ktrdr_pipelines.simulator.messages import ContractFields
from ktrdr_pipelines.simulator.refusals import EXPIRED, UNKNOWN_CONTRACT, RefusedError, invalid


@dataclass(frozen=True, slots=True)
class Found:
    """An instrument of the market, and as which contract it is told just now."""

    instrument: Instrument
    shown: Instrument


def find(instruments: Sequence[Instrument], asked: ContractFields, now_s: int) -> list[Found]:
    """Return every instrument that fits a request and is known now."""
    if asked.sec_type == SecType.CONTINUOUS:
        chains = (each for each in instruments if each.sec_type is SecType.CONTINUOUS)
        found = [Found(each, with_front(each, instruments, now_s)) for each in chains]
        return [each for each in found if fitting([each.shown], asked)]
    return [
        Found(each, each)
        for each in fitting(instruments, asked)
        if each.is_known(now_s, include_expired=asked.include_expired)
    ]


def find_all(instruments: Sequence[Instrument], asked: ContractFields, now_s: int) -> list[Found]:
    """Return what details are asked of.

    Raises:
        RefusedError: nothing fits.
    """
    found = find(instruments, asked, now_s)
    if not found:
        raise RefusedError(200, UNKNOWN_CONTRACT)
    return found


def find_one(instruments: Sequence[Instrument], asked: ContractFields, now_s: int) -> Found:
    """Return the only instrument that fits a request for data.

    Raises:
        RefusedError: none or several fit, or the only one expired too long ago.
    """
    if not asked.exchange:
        raise invalid("Please enter exchange")
    found = find(instruments, asked, now_s)
    if not found:
        raise _missing(instruments, asked)
    if len(found) > 1:
        name = asked.symbol or asked.local_symbol
        raise RefusedError(200, f"The contract description specified for {name} is ambiguous.")
    return found[0]


def _missing(instruments: Sequence[Instrument], asked: ContractFields) -> RefusedError:
    """Tell a contract that is too long expired from one that never was."""
    once = [each for each in fitting(instruments, asked) if each.expiry is not None]
    if asked.include_expired and len(once) == 1:
        return RefusedError(166, EXPIRED)
    return RefusedError(200, UNKNOWN_CONTRACT)
