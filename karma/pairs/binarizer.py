"""From batches of a pool to tables of pairs: usable responses, the strategies, filters, and the books.

One pass over the pool serves any number of strategies: ids, draws and usable responses are worked out once
a batch, and only the texts of the chosen and rejected responses are copied, by Arrow, without becoming
Python strings. Memory is that of one batch, and of near-duplicates what is kept of each prompt. Filters that compare
rows with each other (TruthfulQA's own questions, near-duplicates) take a pass over the pool before.

Paper: section 2.3 and 2.4; the filters are ours, off unless asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from karma.errors import InputError
from karma.pairs.accounting import Accounting
from karma.pairs.left_out import LeftOut
from karma.pairs.masks import bar_rows, drop_pairs, keep_shared, part_masks
from karma.pairs.pairs import PAIR_SCHEMA
from karma.pairs.rules import Rules, build_origins
from karma.pool.affinity import Traits, measure_complexity
from karma.pool.draws import compute_draws, compute_keys
from karma.pool.duplicates import find_duplicates, sign_prompts
from karma.pool.parts import QUESTIONS
from karma.pool.pool import ResponsePool
from karma.pool.responses import BYTES_PER_TOKEN, ResponseBatch, count_bytes, count_characters, get_questions, to_hex
from karma.pool.words import list_words, share_words
from karma.scores.names import canonical_model_name
from karma.scores.table import ScoreTable
from karma.strategies import (
    BY_TEXT,
    RATED,
    SURE_ONLY,
    Candidates,
    Choice,
    choose_by_annotation,
    choose_by_kinship,
    list_pairs,
    orient,
)
from karma.vocabulary import STRATEGIES


@dataclass
class Binarizer:
    """Turns batches into pairs for several strategies, and keeps the books of each.

    Attributes:
        strategies: in the order of the tables yielded.
        books: strategy -> its accounting so far.
        truthfulqa: TruthfulQA's questions in the pool, where its rows are to be dropped.
        left_out: finds and lists what decontamination and near-duplicates leave out.
    """

    scores: ScoreTable | None
    strategies: Sequence[str]
    rules: Rules
    match_rows: bool = False
    books: dict[str, Accounting] = field(init=False)
    truthfulqa: set[str] = field(init=False, default_factory=set)
    left_out: LeftOut = field(init=False)

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            if strategy not in STRATEGIES:
                raise InputError(f"strategy '{strategy}' is unknown: choose from {', '.join(STRATEGIES)}")
            if self.scores is None and strategy not in RATED:
                raise InputError(f"strategy {strategy} needs a score table; only {' and '.join(RATED)} do without")
        if "density_ratio" in self.strategies and self.rules.densities is None:
            raise InputError("density_ratio needs a strong and a weak model's log-probabilities: score the pool with "
                             "`karma density_ratio`, and give the table with --densities")  # fmt: skip
        self.books = {s: Accounting(s) for s in self.strategies}
        self.origins = build_origins(self.scores, self.rules.seed)
        self._check_confidence()
        self._excluded = {canonical_model_name(m) for m in self.rules.excluded_origin_models}
        self._contaminated = {_normalize(text) for text in self.rules.contaminated}
        self.left_out = LeftOut(self.rules)

    def _check_confidence(self) -> None:
        """Raise where a strategy or a rule needs the sampling error of scores whose number of items is unknown."""
        rules, labelled = self.rules, [s for s in self.strategies if s not in RATED]
        if self.origins.confidence is not None or not labelled:
            return
        if rules.calibration and "p_flip" in rules.calibration.facts:
            raise InputError(f"the calibration reads p_flip: label confidence is {self.origins.confidence_source}")
        asking = [s for s in labelled if s in SURE_ONLY or (rules.min_confidence is not None and not rules.calibration)]
        if asking:
            raise InputError(f"{asking[0]}: label confidence is {self.origins.confidence_source}")

    def run(self, pool: ResponsePool) -> Iterator[dict[str, pa.Table]]:
        """Yield, for each batch of the pool, the pairs of each strategy."""
        if self.rules.drop_truthfulqa:
            self.truthfulqa = find_truthfulqa(pool.read(QUESTIONS), pool.name)
        if self.rules.near_duplicates is not None:
            self.left_out.duplicates = find_duplicates(map(sign_prompts, pool.batches()), self.rules.near_duplicates)
        for batch in pool.batches(self.annotation):
            yield self.binarize(batch)

    @property
    def annotation(self) -> str | None:
        """Return which recorded annotation is read, None for none."""
        asked = "rlaif" in self.strategies or (self._reads_texts and self.rules.quality == "annotation")
        return self.rules.annotation_field if asked and self.rules.annotations is None else None

    @property
    def _reads_texts(self) -> bool:
        return not BY_TEXT.isdisjoint(self.strategies)

    def take_books(self) -> dict[str, Accounting]:
        """Return the books so far, and begin new ones."""
        books, self.books = self.books, {s: Accounting(s) for s in self.strategies}
        return books

    def binarize(self, batch: ResponseBatch) -> dict[str, pa.Table]:
        """Decide one batch, and enter it in the books; batches come in the pool's order."""
        unused, models = self._sort_out(batch)
        usable = np.flatnonzero(~np.logical_or.reduce(list(unused.values())))
        candidates = self._list_candidates(batch, usable, models[usable])
        barred = part_masks(self._bar_rows(batch))
        own = {s: self._rate(s, batch, usable, candidates) for s in self.strategies}
        choices = {s: self._filter(batch, usable, self._choose(s, own[s])) for s in self.strategies}
        choices = {s: bar_rows(choice, barred, batch.n_rows) for s, choice in choices.items()}
        if self.match_rows:
            choices = keep_shared(choices, batch.n_rows)
        for strategy, choice in choices.items():
            self._enter(strategy, batch, unused, own[strategy], choice)
        return {s: self._build_table(s, batch, usable, own[s], choice) for s, choice in choices.items()}

    def pair_all(self, batch: ResponseBatch, rows: np.ndarray) -> pa.Table:
        """Return every pair of usable responses by two origin models, whatever their kinship, higher S_pref first.

        Args:
            batch: of the pool.
            rows: boolean mask of the rows asked for; those without a prompt, or barred by a rule, are left out.
        """
        unused, models = self._sort_out(batch)
        taken = rows & ~np.logical_or.reduce(list(self._bar_rows(batch).values()))
        usable = np.flatnonzero(~np.logical_or.reduce(list(unused.values())) & taken[batch.row])
        candidates = self._list_candidates(batch, usable, models[usable])
        first, second = list_pairs(candidates.row, batch.n_rows)
        two = candidates.model[first] != candidates.model[second]
        high, low = orient(candidates, self.origins.s_pref, first[two], second[two])
        return self._build_table("all", batch, usable, candidates, Choice(candidates.row[high], high, low, {}))

    def _list_candidates(self, batch: ResponseBatch, usable: np.ndarray, models: np.ndarray) -> Candidates:
        row_keys = compute_keys(batch.row_digest)
        annotation = self._annotate(batch, usable)
        return Candidates(
            n_rows=batch.n_rows,
            row=batch.row[usable],
            model=models,
            draw=compute_draws(self.rules.seed, "response", row_keys[batch.row[usable]],
                               compute_keys(batch.response_digest[usable])),
            annotation=annotation,
            length=None if self.rules.max_length_ratio is None and self.rules.calibration is None
            else count_characters(batch.response.take(pa.array(usable))),
            traits=self._measure_traits(batch, usable, models, annotation) if self._reads_texts else None,
        )  # fmt: skip

    def _measure_traits(
        self, batch: ResponseBatch, usable: np.ndarray, models: np.ndarray, annotation: np.ndarray
    ) -> Traits:
        """Return what affinity compares, of the usable responses."""
        rules = self.rules
        if isinstance(rules.quality, str):
            quality = self.origins.s_pref[models] if rules.quality == "s_pref" else annotation
        else:
            quality = rules.quality.look_up(batch.row_digest[batch.row[usable]], batch.response_digest[usable])
        return Traits(measure_complexity(batch.response.take(pa.array(usable))), quality, rules.quality_weight)

    def _sort_out(self, batch: ResponseBatch) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return why responses are unused (disjoint masks), and each response's row in the score table."""
        excluded = np.array([n in self._excluded for n in batch.model_names] + [False])[batch.model]
        empty = _is_blank(batch.response)
        masks = {"no_model": batch.model < 0, "excluded_origin_model": excluded, "empty_response": empty}
        if self.rules.max_response_tokens is not None:
            masks["over_length"] = count_bytes(batch.response) > BYTES_PER_TOKEN * self.rules.max_response_tokens
        taken = np.logical_or.reduce(list(masks.values()))
        if self.rules.decontaminate is not None:
            asked = np.flatnonzero(~taken)
            masks["benchmark_response"] = self.left_out.find_shared(batch, "benchmark_response", asked)
            taken |= masks["benchmark_response"]
        masks = part_masks(masks)
        models = np.array([self.origins.position.get(n, -1) for n in batch.model_names] + [-1])[batch.model]
        unknown = np.flatnonzero(~taken & (models < 0))
        if self.origins.known and len(unknown):
            name = batch.model_names[batch.model[unknown[0]]]
            raise InputError(
                f"origin model '{name}' has no scores in the score table: add a row, "
                "or list it under excluded_origin_models"
            )
        return masks, models

    def _annotate(self, batch: ResponseBatch, usable: np.ndarray) -> np.ndarray:
        if self.rules.annotations is None:
            return np.asarray(batch.annotation[usable])
        return self.rules.annotations.look_up(batch.row_digest[batch.row[usable]], batch.response_digest[usable])

    def _rate(self, strategy: str, batch: ResponseBatch, usable: np.ndarray, candidates: Candidates) -> Candidates:
        """Return the candidates with what rates them for a strategy: annotations, but for density_ratio."""
        if strategy != "density_ratio" or self.rules.densities is None:
            return candidates
        found = self.rules.densities.look_up(batch.row_digest[batch.row[usable]], batch.response_digest[usable])
        return replace(candidates, annotation=found)

    def _bar_rows(self, batch: ResponseBatch) -> dict[str, np.ndarray]:
        barred = {"no_prompt": _is_blank(batch.instruction)}
        for reason, known in (("truthfulqa", self.truthfulqa), ("contaminated", self._contaminated)):
            if known:
                texts = (_normalize(t or "") for t in batch.instruction.to_pylist())
                barred[reason] = np.fromiter((t in known for t in texts), bool, batch.n_rows)
        if self.rules.decontaminate is not None:
            asked = np.flatnonzero(~np.logical_or.reduce(list(barred.values())))
            barred["benchmark_prompt"] = self.left_out.find_shared(batch, "benchmark_prompt", asked)
        if self.rules.near_duplicates is not None:
            taken = np.logical_or.reduce(list(barred.values()))
            barred["near_duplicate"] = self.left_out.find_duplicates(batch, taken)
        return barred

    def _choose(self, strategy: str, candidates: Candidates) -> Choice:
        rules, origins = self.rules, self.origins
        if strategy in RATED:
            return choose_by_annotation(candidates, rules.rejected, rules.max_length_ratio)
        scores = origins.s_pref, origins.kinship, rules.tau, rules.max_length_ratio, origins.confidence
        choice = choose_by_kinship(strategy, candidates, *scores)
        if rules.min_confidence is None:
            return choice
        sure = self._compute_confidence(candidates, choice)
        assert sure is not None, "checked before a row was read"
        return drop_pairs(choice, {"unsure_label": sure < rules.min_confidence}, candidates.n_rows)

    def _compute_confidence(self, candidates: Candidates, choice: Choice) -> np.ndarray | None:
        lengths = candidates.length
        own = None if lengths is None else (lengths[choice.chosen], lengths[choice.rejected])
        models = candidates.model[choice.chosen], candidates.model[choice.rejected]
        return self.origins.compute_confidence(*models, self.rules.calibration, own)

    def _filter(self, batch: ResponseBatch, usable: np.ndarray, choice: Choice) -> Choice:
        """Drop pairs whose two texts make no preference."""
        chosen, rejected = pa.array(usable[choice.chosen]), pa.array(usable[choice.rejected])
        texts = batch.response.take(chosen), batch.response.take(rejected)
        masks = {"identical_responses": pc.equal(*texts).to_numpy(zero_copy_only=False)}
        if self.rules.near_identical is not None:
            overlap = np.array(
                [
                    share_words(list_words(a), list_words(b))
                    for a, b in zip(*(t.to_pylist() for t in texts), strict=True)
                ]
            )
            masks["near_identical_responses"] = overlap >= self.rules.near_identical
        if self.rules.same_system_prompt:
            prompts = batch.system_prompt.fill_null("")
            masks["differing_system_prompt"] = pc.not_equal(prompts.take(chosen), prompts.take(rejected)).to_numpy(
                False
            )
        return drop_pairs(choice, masks, batch.n_rows)

    def _enter(
        self,
        strategy: str,
        batch: ResponseBatch,
        unused: dict[str, np.ndarray],
        candidates: Candidates,
        choice: Choice,
    ) -> None:
        part = Accounting(strategy, batch.n_rows, len(choice.row), responses_in=len(batch.model))
        part.dropped.update({k: int(mask.sum()) for k, mask in choice.dropped.items()})
        part.responses_unused.update({k: int(mask.sum()) for k, mask in unused.items()})
        part.responses_usable = len(candidates.row)
        if strategy in RATED:
            part.responses_usable = int(np.isfinite(candidates.annotation).sum())
            part.responses_unused["not_annotated"] = len(candidates.row) - part.responses_usable
        part.check()
        self.books[strategy].add(part)

    def _build_table(
        self, strategy: str, batch: ResponseBatch, usable: np.ndarray, candidates: Candidates, choice: Choice
    ) -> pa.Table:
        chosen, rejected = usable[choice.chosen], usable[choice.rejected]
        models = candidates.model[choice.chosen], candidates.model[choice.rejected]
        if strategy in RATED:
            scores = candidates.annotation[choice.chosen], candidates.annotation[choice.rejected]
        else:
            scores = self.origins.s_pref[models[0]], self.origins.s_pref[models[1]]
        kinship = self.origins.kinship[models] if self.origins.known else pa.nulls(len(choice.row), pa.float64())
        sure = None if strategy in RATED else self._compute_confidence(candidates, choice)
        confidence = pa.nulls(len(choice.row), pa.float64()) if sure is None else pa.array(sure, pa.float64())
        names, rows = pa.array(batch.model_names, pa.string()), pa.array(choice.row)
        columns = [
            to_hex(batch.row_digest[choice.row]),
            batch.source.take(rows),
            _as_messages("user", batch.instruction.take(rows)),
            *(_as_messages("assistant", batch.response.take(pa.array(i))) for i in (chosen, rejected)),
            *(names.take(pa.array(batch.model[i])) for i in (chosen, rejected)),
            *(pa.array(s, pa.float64()) for s in scores),
            pa.array(kinship, pa.float64()),
            pa.repeat(pa.scalar(strategy), len(choice.row)),
            *(to_hex(batch.response_digest[i]) for i in (chosen, rejected)),
            confidence,
        ]
        return pa.Table.from_arrays(columns, schema=PAIR_SCHEMA)


def find_truthfulqa(batches: Iterable[pa.RecordBatch], where: str) -> set[str]:
    """Return TruthfulQA's questions in some rows, so that other sources' copies of them are found too.

    Args:
        batches: with columns source and instruction. where: named in errors.
    """
    found: set[str] = set()
    for source, instruction in (get_questions(rows, where) for rows in batches):
        ours = pc.fill_null(pc.match_substring(source, "truthful"), False)
        found.update(_normalize(t or "") for t in instruction.filter(ours).to_pylist())
    return found


def _as_messages(role: str, texts: pa.Array) -> pa.Array:
    roles = pa.repeat(pa.scalar(role), len(texts))
    messages = pa.StructArray.from_arrays([roles, texts], names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1, dtype=np.int32)), messages)


def _is_blank(texts: pa.Array) -> np.ndarray:
    blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
    return np.asarray(blank.fill_null(True).to_numpy(zero_copy_only=False))


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split())
