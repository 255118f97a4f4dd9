"""A pair folder while it is being written: hidden beside its final place, moved there when whole.

A killed or failed run leaves nothing under the folder's name; of several folders written together all
appear, or none.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from karma.errors import InputError, KarmaError
from karma.files.writing import make_workspace, remove_leftovers, save_json
from karma.pairs.accounting import Accounting
from karma.pairs.card import CardFacts, build_card
from karma.pairs.curriculum import order_file
from karma.pairs.join import Joined
from karma.pairs.lengths import LengthBias
from karma.pairs.pairs import _SLICE_ROWS, CONFIDENCE, PAIR_SCHEMA, PairSet
from karma.pairs.publish import OVERLAPS, check_targets, publish_all

_PLAIN_COLUMNS = [
    n
    for n in PAIR_SCHEMA.names
    if n
    in ("source", "chosen_model", "rejected_model", "chosen_score", "rejected_score", "kinship", "strategy", CONFIDENCE)
]
_DICTIONARY = [*_PLAIN_COLUMNS, *(f"{c}.list.element.role" for c in ("prompt", "chosen", "rejected"))]


@dataclass
class PairFile:
    """Pairs while they are written to a parquet file, with what is counted of them on the way.

    Attributes:
        path: of the file.
        facts, lengths: for the card and the books.
    """

    path: Path
    schema: pa.Schema = field(default_factory=lambda: PAIR_SCHEMA)
    facts: CardFacts = field(default_factory=CardFacts)
    lengths: LengthBias = field(default_factory=LengthBias)

    def __post_init__(self) -> None:
        self._writer = pq.ParquetWriter(self.path, self.schema, use_dictionary=_DICTIONARY)

    def write(self, table: pa.Table) -> None:
        """Append pairs, as a row group of their own."""
        if table.num_rows:
            self._writer.write_table(table)
            self.facts.add(table)
            self.lengths.add(table)

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


@dataclass(frozen=True)
class PairPart:
    """A finished file of some pairs, wherever it was written, with what was counted of them."""

    path: Path
    facts: CardFacts
    lengths: LengthBias


@dataclass
class PairFolder:
    """A pair folder while it is being written: hidden beside its final place until `finish`."""

    folder: str | Path
    schema: pa.Schema = field(default_factory=lambda: PAIR_SCHEMA)

    def __enter__(self) -> "PairFolder":
        self.folder = Path(self.folder)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"{self.folder} is a file: give a folder to write to")
            check_targets(self.folder)
            remove_leftovers(self.folder.parent, self.folder.name)
            self.hidden = make_workspace(self.folder)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from error
        self._pairs = self.hidden / "pairs.parquet"
        self._file: PairFile | None = None
        self._joined: Joined | None = None
        self._facts, self._lengths = CardFacts(), LengthBias()
        self._overlaps: pcsv.CSVWriter | None = None
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._close()
        finally:
            shutil.rmtree(self.hidden, ignore_errors=True)

    def write(self, table: pa.Table) -> None:
        """Append pairs."""
        self._file = self._file or PairFile(self._pairs, self.schema, self._facts, self._lengths)
        self._file.write(table)

    def list_overlaps(self, overlaps: pa.Table | None) -> None:
        """Append what decontamination or near-duplicates left out to overlaps.csv; None: they were not asked for."""
        if overlaps is not None:
            self._overlaps = self._overlaps or pcsv.CSVWriter(
                self.hidden / OVERLAPS, overlaps.schema, write_options=pcsv.WriteOptions(quoting_style="needed")
            )
            self._overlaps.write_table(overlaps)

    def take(self, part: PairPart) -> None:
        """Append the pairs of a file and remove it: another way than `write`, to the same bytes."""
        self._joined = self._joined or Joined(self._pairs)
        self._joined.add(part.path)
        self._facts.merge(part.facts)
        self._lengths.merge(part.lengths)
        part.path.unlink()

    def finish(self, accounting: Accounting, command: str) -> None:
        """Write the books and the card, and move all into place."""
        self.prepare(accounting, command)
        self.publish()

    def prepare(self, accounting: Accounting, command: str, n_stages: int | None = None) -> None:
        """Write the books and the card beside the pairs, and put these in curriculum order if asked."""
        accounting.check()
        if not self._joined:
            self.write(self.schema.empty_table())
        else:
            self._joined.finish()
        self._close()
        if n_stages is not None:
            order_file(self._pairs, n_stages, _DICTIONARY)
        lengths = self._lengths.as_dict()
        save_json(accounting.as_dict() | {"length_bias": lengths}, self.hidden / "accounting.json")
        (self.hidden / "README.md").write_text(build_card(accounting, self._facts, lengths, command), "utf-8")

    def publish(self) -> None:
        """Move the finished files into place, all or none; an earlier set's exports go, other files stay."""
        publish_all([self.place])

    @property
    def place(self) -> tuple[Path, Path]:
        """The hidden folder and the one that its files are for."""
        return self.hidden, Path(self.folder)

    def _close(self) -> None:
        for stream in (self._file, self._joined, self._overlaps):
            if stream:
                stream.close()


@contextmanager
def open_all(folders: dict[str, Path]) -> Iterator[dict[str, PairFolder]]:
    """Open one pair folder a strategy; leaving the block removes what is hidden, finished or not."""
    with ExitStack() as stack:
        try:
            yield {strategy: stack.enter_context(PairFolder(folder)) for strategy, folder in folders.items()}
        except OSError as error:  # the disk is full, or gone
            where = ", ".join(map(str, folders.values()))
            raise KarmaError(f"{where} cannot be written ({error.strerror or error}): nothing was kept") from error


def save_pairs(pairs: PairSet, folder: str | Path, command: str = "") -> Path:
    """Write a pair folder: pairs.parquet, accounting.json, README.md.

    Args:
        pairs: a set, or one part of a split.
        folder: made if absent; other files in it stay.
        command: what made the set, for the card.

    Example:
        >>> from tempfile import mkdtemp
        >>> from karma.pairs.pairs import load_pairs
        >>> none = PairSet(PAIR_SCHEMA.empty_table(), Accounting("k_sim"))
        >>> len(load_pairs(save_pairs(none, Path(mkdtemp()) / "pairs")))
        0
    """
    if len(pairs) != pairs.accounting.pairs_out:
        raise InputError(f"{len(pairs)} pairs, but the accounting counts {pairs.accounting.pairs_out}")
    with PairFolder(folder, pairs.table.schema) as target:
        for start in range(0, len(pairs), _SLICE_ROWS):
            target.write(pairs.table.slice(start, _SLICE_ROWS))
        target.list_overlaps(pairs.overlaps)
        target.finish(pairs.accounting, command)
    return Path(folder)
