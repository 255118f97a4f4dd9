"""One experiment's values, all of them, and what must fit together."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from karma.study.benchmark_settings import Benchmarks, name_benchmark
from karma.study.fields import Method, Name, Seed, Strategy, Strict, check_unique, is_anew
from karma.study.sections import (
    Affinity,
    Annotation,
    Compute,
    DensityRatio,
    Kinship,
    Labels,
    ModelSpec,
    Pairs,
    Pool,
    Potential,
    Scores,
    SelfPlay,
    WinRates,
)
from karma.study.training_settings import Online, Refilter, Training
from karma.vocabulary import BENCHMARKS, METHODS, START, find_method, makes_policy, split_step


class Settings(Strict):
    """One experiment's values, all of them."""

    name: Name
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(check_unique)]
    strategies: Annotated[list[Strategy], AfterValidator(check_unique)]
    methods: Annotated[list[str], Field(min_length=1), AfterValidator(check_unique)]
    recipes: dict[str, list[Method]]
    trained_on: dict[str, Annotated[list[Strategy], AfterValidator(check_unique)] | None]
    models: dict[Name, ModelSpec]
    origin_models: Annotated[list[Name], AfterValidator(check_unique)]
    policies: Annotated[list[Name], AfterValidator(check_unique)]
    compute: Compute
    benchmarks: Benchmarks
    scores: Scores
    kinship: Kinship
    pool: Pool
    annotation: Annotation
    density_ratio: DensityRatio
    affinity: Affinity
    pairs: Pairs
    training: Training
    potential: Potential
    self_play: SelfPlay
    labels: Labels
    win_rates: WinRates

    @property
    def has_annotations(self) -> bool:
        """Tell whether single responses may have annotations: the pool's own, or a judge's, made for rlaif."""
        return self.annotation.source == "recorded" or self.reads_annotations

    @property
    def reads_annotations(self) -> bool:
        """Tell whether pairs are made by annotations of single responses."""
        by_affinity = "affinity" in self.strategies and self.affinity.quality == "annotation" and self.affinity.weight
        return "rlaif" in self.strategies or bool(by_affinity)

    def list_trained(self, method: str) -> list[str]:
        """Return the strategies whose pairs a method or a recipe trains on: all, or those that `trained_on` names."""
        step = split_step(method)
        named = self.trained_on.get(step[0] if step else method)
        return [strategy for strategy in self.strategies if named is None or strategy in named]

    def _check_trained_on(self) -> None:
        for method, names in self.trained_on.items():
            if names is None:  # takes back what an experiment that this one extends says
                continue
            if method not in METHODS and method not in self.recipes:
                raise ValueError(f"trained_on.{method}: there is no such method or recipe")
            if method not in self.methods:
                raise ValueError(f"trained_on: '{method}' is not among the methods of this experiment")
            if unknown := [name for name in names if name not in self.strategies]:
                raise ValueError(f"trained_on.{method}: '{unknown[0]}' is not among the strategies of this experiment")

    def _check_smoothing(self) -> None:
        """Raise a ValueError where labels are to be smoothed by a confidence that they will not have."""
        every = self.training.smooth_by_confidence
        by, smoothed = ("training.smooth_by_confidence", self.list_steps()) if every else ("method cdpo", ["cdpo"])
        own = [method for method in self.trained_methods if find_method(method) in smoothed]
        trained = {name for method in own for name in self.list_trained(method)}
        for name in ("rlaif", "density_ratio"):
            if name in trained:
                raise ValueError(
                    f"{by}: {name}'s labels are of unknown confidence: leave {name} out of strategies, or of trained_on"
                )
        if self.self_play.rounds and (every or self.self_play.method == "cdpo"):
            raise ValueError(f"{by}: self-play's pairs have no label confidence: train them by dpo, unsmoothed")

    def _check_loss(self) -> None:
        """Raise a ValueError where DPO's loss cannot be computed as set, which a training would find after hours."""
        methods = {*self.list_steps(), *([self.self_play.method] if self.self_play.rounds else [])}
        training = self.training
        if not methods & {"dpo", "cdpo"}:
            return
        if training.loss_type == "exo_pair" and not training.label_smoothing:
            raise ValueError("training.loss_type exo_pair needs training.label_smoothing above 0 (its paper: 1.0e-3)")
        if training.loss_type != "sigmoid" and (training.smooth_by_confidence or "cdpo" in methods):
            raise ValueError("training.loss_type: labels are smoothed by confidence (method cdpo) with sigmoid only")

    def _check_refilter(self) -> None:
        """Raise a ValueError where pairs cannot be ranked anew between epochs, which a training would find late."""
        methods = [*self.list_steps(), *([self.self_play.method] if self.self_play.rounds else [])]
        staged, training = self.pairs.curriculum_stages is not None, self.training
        if fault := training.find_refilter_fault(methods, staged):
            raise ValueError(fault)
        for metric in filter(is_anew, self.potential.metrics):
            how = Refilter(metric="random", ratio=1.0, every="epoch")  # that there is one is what matters here
            anew = training.model_copy(update={"refilter": how})
            if fault := anew.find_refilter_fault(self.potential.methods, staged):
                raise ValueError(f"potential.metrics: {metric}: {fault}")

    def _check_sources(self) -> None:
        """Raise a ValueError where an explicit margin has a source that this experiment cannot have."""
        sources = self.potential.sources
        if "annotation" in sources and not self.has_annotations:
            raise ValueError("potential.explicit: a judge's annotations are made only where rlaif is a strategy")
        if "truth" in sources and not self.pool.instructions:
            raise ValueError("potential.explicit: truth needs the pool's verifiable prompts: name pool.instructions")
        asked = [name.partition(":")[2] for name in sources if name.startswith("kinship:")]
        if self.scores.table == "measured":
            known = {
                BENCHMARKS[name]["capability"]
                for name in map(name_benchmark, self.benchmarks.origin)
                if name in BENCHMARKS
            }
            known |= {task.capability for task in self.benchmarks.tasks.values()}
            if unknown := [name for name in asked if name not in known]:
                raise ValueError(
                    f"potential.explicit: no benchmark of this experiment has the capability '{unknown[0]}': "
                    f"choose from {', '.join(sorted(known))}"
                )

    def _check_reward_models(self) -> None:
        """Raise a ValueError where a reward model is to answer, or nothing else is trained."""
        asked = {"potential.methods": self.potential.methods if self.potential.metrics else []}
        asked["self_play.method"] = [self.self_play.method] if self.self_play.rounds else []
        for key, methods in asked.items():
            for name in methods:
                if not makes_policy(name):
                    raise ValueError(f"{key}: {name} makes no policy, which this stage asks: choose another method")
        made = [name for name in self.trained_methods if not makes_policy(name)]
        if made and len(made) == len(self.trained_methods):
            raise ValueError(f"methods: {made[0]} alone makes no policy to evaluate: name another method too, or train "
                             "one by `karma train`")  # fmt: skip
        if made and self.training.label_smoothing:
            raise ValueError(f"training.label_smoothing means nothing to {made[0]}: set it to 0.0, or leave {made[0]} "
                             "out of methods")  # fmt: skip

    def _check_rewards(self) -> None:
        """Raise a ValueError where a method that samples answers has nothing to be rewarded by."""
        for method in self.list_steps():
            online = getattr(self.training, method, None)
            if not isinstance(online, Online):
                continue
            where = f"training.{method}.reward"
            if not online.reward:
                raise ValueError(f"{where}: {method} needs one: {{instructions: 1.0}} or {{reward_model: 1.0}}")
            if "instructions" in online.reward and not self.pool.instructions:
                raise ValueError(f"{where}: instructions are the pool's verifiable prompts': name pool.instructions")
        selected = self.potential.methods if self.potential.metrics else []
        played = [self.self_play.method] if self.self_play.rounds else []
        for key, methods in (("potential.methods", selected), ("self_play.method", played)):
            if online := [name for name in methods if METHODS[name].learns_from == "prompts"]:
                raise ValueError(f"{key}: {online[0]} learns from prompts, not from pairs: choose a method that does")

    @property
    def rewards_instructions(self) -> bool:
        """Tell whether answers are rewarded for the instructions that they follow."""
        sections = [getattr(self.training, method, None) for method in self.list_steps()]
        return any(isinstance(one, Online) and "instructions" in one.reward for one in sections)

    def find_reward_model(self, method: str) -> str | None:
        """Return the name of the model that rewards a method's answers, if one does."""
        online = getattr(self.training, method, None)
        return online.reward_model if isinstance(online, Online) and online.reward else None

    @property
    def trained_methods(self) -> list[str]:
        """The methods, with each recipe as its steps, e.g. distil-1-sft, distil-2-dpo."""
        return [name for method in self.methods for name in self._list_names(method)]

    def _list_names(self, method: str) -> list[str]:
        steps = self.recipes.get(method)
        return [f"{method}-{k}-{step}" for k, step in enumerate(steps, 1)] if steps is not None else [method]

    def list_steps(self) -> list[str]:
        """Return the methods that something is trained by, those of recipes' steps among them."""
        return list(dict.fromkeys(map(find_method, self.trained_methods)))

    def _check_recipes(self) -> None:
        """Raise a ValueError where a recipe cannot be followed, or a method is none."""
        for name, steps in self.recipes.items():
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(f"recipes: '{name}': name a recipe in small letters, digits and _, a letter first")
            if name in METHODS or name == START:
                raise ValueError(f"recipes: '{name}' is the name of a method: give the recipe another one")
            if len(steps) < 2:
                raise ValueError(f"recipes.{name}: a recipe has two steps or more; write one method under methods")
            if raters := [step for step in steps if not makes_policy(step)]:
                raise ValueError(f"recipes.{name}: {raters[0]} makes no policy that a step could start from: train it "
                                 "apart, and name its folder in training.grpo.reward_model")  # fmt: skip
        if unknown := [name for name in self.methods if name not in METHODS and name not in self.recipes]:
            known = ", ".join([*METHODS, *self.recipes])
            raise ValueError(f"methods: '{unknown[0]}' is no method and none of recipes: choose from {known}")

    def _check_backend(self, named: dict[str, list[str]]) -> None:
        """Raise a ValueError where vLLM would be asked for a model that is made in memory, after hours of work."""
        if self.compute.backend != "vllm":
            return
        for key in ("policies", "origin_models"):
            for name in named.get(key, []):
                if self.models[name].perturbed or self.models[name].random:
                    raise ValueError(f"compute.backend: vllm cannot load '{name}', which is made in memory ({key})")
        if self.policies and self.training.lora and not self.training.merge_adapter:
            raise ValueError("compute.backend: vllm loads whole weights only: set training.merge_adapter to true")

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if not self.strategies and not self.self_play.rounds:
            raise ValueError("strategies: name at least one, or set self_play.rounds for a study of self-play alone")
        self._check_recipes()
        self._check_trained_on()
        self._check_smoothing()
        self._check_loss()
        self._check_refilter()
        self._check_reward_models()
        self._check_rewards()
        known = ", ".join(self.models) or "none"
        named = {"policies": self.policies, "self_play.scorer_model": []}
        if self.self_play.rounds and self.self_play.scorer_model:
            named["self_play.scorer_model"] = [self.self_play.scorer_model]
        for method in self.list_steps():
            rater = self.find_reward_model(method)
            named[f"training.{method}.reward_model"] = [rater] if rater else []
        if "density_ratio" in self.strategies:
            both = self.density_ratio
            if not both.strong or not both.weak or both.strong == both.weak:
                raise ValueError("density_ratio: name two models, density_ratio.strong and density_ratio.weak")
            named |= {"density_ratio.strong": [both.strong], "density_ratio.weak": [both.weak]}
        named["annotation.judge"] = [self.annotation.judge or "none"] if self.annotation.source == "judge" else []
        named["win_rates.judge"] = [self.win_rates.judge] if self.win_rates.judge else []
        if self.strategies and (self.scores.table == "measured" or self.pool.source == "generate"):
            named["origin_models"] = self.origin_models
        for name, spec in self.models.items():
            named[f"models.{name}.perturbed"] = [spec.perturbed] if spec.perturbed else []
            if spec.perturbed == name or (spec.perturbed in self.models and self.models[spec.perturbed].perturbed):
                raise ValueError(f"models.{name}: perturb a model that is not itself perturbed")
        for key, names in named.items():
            for name in names:
                if name not in self.models:
                    raise ValueError(f"{key}: '{name}' is not a model of this experiment (models: {known})")
        asked = {"potential.strategies": self.potential.strategies, "pairs.match_rows": self.pairs.match_rows,
                 "pairs.equal_numbers": self.pairs.equal_numbers}  # fmt: skip
        for key, names in asked.items():
            if self.strategies and (unknown := [s for s in names if s not in self.strategies]):
                raise ValueError(f"{key}: '{unknown[0]}' is not among the strategies of this experiment")
        if self.potential.metrics:
            self._check_sources()
        if "m_ap_annotated" in self.potential.metrics and not self.has_annotations:
            raise ValueError("potential.metrics: m_ap_annotated reads annotations; a judge's are made only for rlaif")
        loaded = {key: named[key] for key in ("policies", "self_play.scorer_model")}
        local = ("models.", "density_ratio.", "training.")
        loaded |= {key: names for key, names in named.items() if key.startswith(local)}
        for key, names in loaded.items():
            for name in names:
                if self.models[name].api:
                    raise ValueError(
                        f"{key}: '{name}' is behind an API: it can write and be evaluated, not be loaded here"
                    )
        self._check_backend(named)
        if self.pool.source == "generate":
            if not self.pool.instructions:
                raise ValueError("pool.instructions: a generated pool needs a file of instructions")
            if self.pool.models_per_prompt > len(self.origin_models):
                raise ValueError(
                    f"pool.models_per_prompt: {self.pool.models_per_prompt} is more than the "
                    f"{len(self.origin_models)} origin models"
                )
        if "affinity" in self.strategies and self.affinity.quality == "truth" and not self.pool.instructions:
            raise ValueError("affinity.quality: truth needs the pool's verifiable prompts: name pool.instructions")
        if self.win_rates.judge and not self.pairs.held_out:
            raise ValueError("win_rates.judge: no prompt is held out: set pairs.held_out above 0")
        if self.labels.audit and not self.pool.instructions:
            raise ValueError("labels.audit: name the file of the pool's verifiable prompts in pool.instructions")
        if self.strategies and self.scores.table == "measured" and len(self.origin_models) < 2:
            raise ValueError("origin_models: kinship needs at least two origin models to measure")
        return self
