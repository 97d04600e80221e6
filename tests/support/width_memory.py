"""A width memory of one process, for tests without a shared record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth


@dataclass
class Memory:
    """A width memory of this process, which passes everything through its text form."""

    texts: dict[str, str] = field(default_factory=dict)

    def known(self) -> Mapping[str, LearnedWidth]:
        read = {kind: LearnedWidth.from_text(text) for kind, text in self.texts.items()}
        return {kind: one for kind, one in read.items() if one is not None}

    def update(
        self, kind: str, change: Callable[[LearnedWidth | None], LearnedWidth]
    ) -> LearnedWidth:
        changed = change(self.known().get(kind))
        self.texts[kind] = changed.to_text()
        return changed

    def close(self) -> None:
        """Nothing is open."""

    @property
    def width(self) -> int:
        (one,) = self.known().values()
        return one.width
