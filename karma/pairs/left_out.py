"""What decontamination and near-duplicates leave out of a pool, listed as it is met.

Batches come in the pool's order: near-duplicates were found among all of its prompts before
(`karma.pool.duplicates`), and each batch takes its own from the head of what is left of them.

Paper: none; ours.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from karma.pairs.pairs import OVERLAP_SCHEMA
from karma.pairs.rules import Rules
from karma.pool.duplicates import Duplicates
from karma.pool.responses import ResponseBatch, to_hex


@dataclass
class LeftOut:
    """Finds what is to be left out, batch by batch, and lists it.

    Attributes:
        rules: whose `decontaminate` and `near_duplicates` are asked.
        duplicates: which of the rows to come nearly repeat another, where those are to be dropped.
    """

    rules: Rules
    duplicates: Duplicates | None = None
    _tables: list[pa.Table] = field(init=False, default_factory=list)

    def take(self) -> pa.Table | None:
        """Return what was listed since this was last asked, in OVERLAP_SCHEMA; None where nothing is asked for."""
        found, self._tables = self._tables, []
        asked = self.rules.decontaminate is not None or self.rules.near_duplicates is not None
        return pa.concat_tables([OVERLAP_SCHEMA.empty_table(), *found]) if asked else None

    def find_shared(self, batch: ResponseBatch, reason: str, asked: np.ndarray) -> np.ndarray:
        """Tell which texts share a run of words with a benchmark's item.

        Args:
            batch: of responses. reason: benchmark_prompt or benchmark_response. asked: places of the prompts or
                responses to look at.

        Returns:
            A mask over the batch's prompts or responses.
        """
        items = self.rules.decontaminate
        texts = batch.instruction if reason == "benchmark_prompt" else batch.response
        mask = np.zeros(len(texts), bool)
        if items is None:
            return mask
        found = items.find(texts.take(pa.array(asked)))
        hit = asked[found.text]
        rows, responses = (hit, None) if reason == "benchmark_prompt" else (batch.row[hit], hit)
        where = {name: pa.array([names[i] for i in found.item], pa.string())
                 for name, names in (("benchmark", items.benchmarks), ("item", items.names))}  # fmt: skip
        self._list(batch, reason, rows, responses, found.overlap, **where)
        mask[hit] = True
        return mask

    def find_duplicates(self, batch: ResponseBatch, taken: np.ndarray) -> np.ndarray:
        """Tell which of a batch's rows nearly repeat another; those that are not `taken` for another reason are listed.

        Args:
            batch: the next one of the pool. taken: a mask over its rows.
        """
        if self.duplicates is None:
            return np.zeros(batch.n_rows, bool)
        own, rest = self.duplicates.cut(0, batch.n_rows), len(self.duplicates.overlap)
        self.duplicates = self.duplicates.cut(batch.n_rows, rest)
        mask: np.ndarray = np.isfinite(own.overlap)
        rows = np.flatnonzero(mask & ~taken)
        self._list(batch, "near_duplicate", rows, None, own.overlap[rows], duplicate_of=to_hex(own.of[rows]))
        return mask

    def _list(
        self, batch: ResponseBatch, reason: str, rows: np.ndarray, responses: np.ndarray | None, overlap: np.ndarray,
        **where: pa.Array,
    ) -> None:  # fmt: skip
        columns = {
            "reason": pa.repeat(pa.scalar(reason), len(rows)), "row_id": to_hex(batch.row_digest[rows]),
            "overlap": pa.array(overlap, pa.float64()), **where,
        }  # fmt: skip
        if responses is not None:
            columns["response_id"] = to_hex(batch.response_digest[responses])
        nothing = pa.nulls(len(rows), pa.string())
        self._tables.append(pa.table([columns.get(name, nothing) for name in OVERLAP_SCHEMA.names], OVERLAP_SCHEMA))
