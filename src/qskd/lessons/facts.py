"""What is asked of a teacher beside its answers."""

from dataclasses import dataclass
from typing import Any, Self

from qskd.models.adapter import DetrAdapter, Need


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What terms, labels and reports have to know of a teacher that is not there; ``DetrFacts`` among it."""

    family: str
    provides: frozenset[Need]
    num_layers: int
    num_queries: int
    memory_channels: tuple[int, ...]  # D of each level
    strides: tuple[int, ...]  # pixels per cell of each level
    id2label: dict[int, str]

    @classmethod
    def of(cls, adapter: DetrAdapter) -> Self:
        """The facts of a model."""
        return cls(
            adapter.family,
            adapter.provides,
            adapter.num_layers,
            adapter.num_queries,
            tuple(adapter.memory_channels),
            tuple(adapter.strides),
            adapter.id2label,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "family": self.family,
            "provides": sorted(need.value for need in self.provides),
            "num_layers": self.num_layers,
            "num_queries": self.num_queries,
            "memory_channels": list(self.memory_channels),
            "strides": list(self.strides),
            "id2label": {str(index): name for index, name in self.id2label.items()},
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """What ``as_dict`` gave."""
        return cls(
            content["family"],
            frozenset(Need(value) for value in content["provides"]),
            content["num_layers"],
            content["num_queries"],
            tuple(content["memory_channels"]),
            tuple(content["strides"]),
            {int(index): name for index, name in content["id2label"].items()},
        )
