"""A width memory of one process, for tests without a shared record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth
from ktrdr_pipelines.ib.pacing.learned_widths import text_of, width_in


@dataclass
class Memory:
    """A width memory of this process, which passes everything through its text form."""

    texts: dict[str, str] = field(default_factory=dict)

    def known(self) -> Mapping[str, LearnedWidth]:
        read = {kind: width_in(text) for kind, text in self.texts.items()}
        return {kind: one for kind, one in read.items() if one is not None}

    def update(
        self, kind: str, change: Callable[[LearnedWidth | None], LearnedWidth]
    ) -> LearnedWidth:
        changed = change(self.known().get(kind))
        self.texts[kind] = text_of(changed)
        return changed

    def close(self) -> None:
        """Nothing is open."""

    @property
    def width(self) -> int:
        (one,) = self.known().values()
        return one.width
