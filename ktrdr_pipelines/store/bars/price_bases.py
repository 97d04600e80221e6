"""The price bases of a store's symbols: their adjustments, and bars put onto today's basis.

Not here: the files of adjustments (``store.bars.adjustment_history``), how bars are multiplied
(``domain.adjustments``), recording an adjustment (``store.rebasing``).
"""

from collections.abc import Collection

import pyarrow as pa

from ktrdr_pipelines.domain.adjustments import on_todays_basis
from ktrdr_pipelines.domain.bars import UNCONFIRMED, basis_of
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.adjustment_history import HINT, AdjustmentHistory, Adjustments
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger


class PriceBases:
    """The price bases of all symbols of a store.

    The files of adjustments are the truth. Where one lacks an adjustment that the ledger or a bar
    states, it was lost, and no bar of the symbol can be put onto today's basis.

    Args:
        layout: the store.
        ledger: its index of adjustments and files.
    """

    def __init__(self, layout: StoreLayout, ledger: Ledger) -> None:
        self._layout, self._ledger = layout, ledger
        self.history = AdjustmentHistory(layout)

    def of(self, symbol: str) -> Adjustments:
        """Return the adjustments of a symbol, in the order of their numbers.

        Raises:
            CorruptFileError: their file cannot be read.
            StoreError: the file lacks some that the ledger has.
        """
        # Read first, as it is written last.
        return self._at_least(symbol, self._ledger.adjustments.count(symbol))

    def of_each(self, symbols: Collection[str]) -> dict[str, Adjustments]:
        """Return the adjustments of several symbols, as ``of`` each, by one query."""
        if len(symbols) == 1:
            return {symbol: self.of(symbol) for symbol in symbols}
        recorded = self._ledger.adjustments.counts()
        return {symbol: self._at_least(symbol, recorded.get(symbol, 0)) for symbol in symbols}

    def all_of(self, symbol: str) -> Adjustments:
        """Return the adjustments of a symbol to which more are added, or on which bars are saved.

        Raises: as ``of``; StoreError also where the file lacks some that any bars of the symbol
            include.
        """
        known = self.of(symbol)
        if (highest := self._ledger.files.highest_basis(symbol)) > len(known):
            raise self._lost(symbol, known, f"its bars include number {highest}")
        return known

    def all(self) -> tuple[dict[str, Adjustments], dict[str, str]]:
        """Return the adjustments of every symbol that has any, and why those of others are lost."""
        recorded = self._ledger.adjustments.counts()  # read first, as they are written last
        known, lost = self.history.all()
        # Records of retired symbols are kept; they have no bars here.
        for symbol in recorded.keys() & set(self._layout.symbols() if recorded else ()):
            ones = known.get(symbol, ())
            if symbol not in lost and recorded[symbol] > len(ones):
                known.pop(symbol, None)
                lost[symbol] = str(self._lost(symbol, ones, f"the ledger has {recorded[symbol]}"))
        return known, lost

    def on_todays(
        self,
        symbol: str,
        bars: pa.Table,
        adjustments: Adjustments | None = None,
        *,
        may_overwrite: bool = False,
    ) -> pa.Table:
        """Return stored bars on today's basis, in their columns but ``basis``.

        Bars whose basis is unconfirmed are left out.

        Args:
            symbol: the symbol.
            bars: bars in the columns of ``STORED_SCHEMA``, or in some of them: ``basis`` always,
                and ``session_date`` if its factors depend on dates (``domain.adjustments``).
            adjustments: those of the symbol; None reads them, which must be after the bars.
            may_overwrite: whether nothing else uses the memory of the bars, see there.

        Raises: as ``of``; StoreError also where the bars include an adjustment that is not known.
        """
        known = self.of(symbol) if adjustments is None else adjustments
        basis = basis_of(bars)
        if basis.min(initial=0) == UNCONFIRMED:
            bars = bars.filter(pa.array(basis != UNCONFIRMED))
            basis = basis_of(bars)
        self.require(symbol, int(basis.max(initial=0)), known)
        return on_todays_basis(
            bars.drop_columns("basis"), basis, known, may_overwrite=may_overwrite
        )

    def require(self, symbol: str, highest: int, adjustments: Adjustments) -> None:
        """Refuse bars that include an adjustment which is not known; ``highest`` is their basis.

        Raises:
            StoreError: they do.
        """
        if highest > len(adjustments):
            raise self._lost(symbol, adjustments, f"these bars include number {highest}")

    def _at_least(self, symbol: str, recorded: int) -> Adjustments:
        known = self.history.of(symbol)
        if recorded > len(known):
            raise self._lost(symbol, known, f"the ledger has {recorded}")
        return known

    def _lost(self, symbol: str, known: Adjustments, reason: str) -> StoreError:
        path = self._layout.adjustments_file(symbol)
        return StoreError(
            f"cannot put the bars of {symbol} on one price basis",
            reason=f"{path} has {len(known)} adjustments, {reason}",
            hint=HINT,
        )
