"""One training step, a pure function of state and batch.

    state.key --fold_in(step)--> key --+
    batch -----------------------------+--> loss_fn --grad--> mean over parts, devices --> tx --> params --> ema
    step, ema, index, total, gather ---+                                |
                                                    finite? the new state : the old one, one step on

Several objectives are updated one after the other, each from the parameters after the previous one (`simultaneous`: all
from those at the start of the step); the averages follow at the end, and one loss that is not finite skips the whole
step. Update j of objective i draws from fold_in(fold_in(fold_in(state.key, step), i), j), a single objective of one
update a step from fold_in(state.key, step).

A loss is a mean over the samples it is given, and draws the noise of a sample from its global index. So the same
function runs whole under `jax.jit`, where the compiler shards it, and by pieces under `jax.pmap`, where `axis_name`
names the axis that gradients are averaged over: the noise is bitwise the same, the gradients equal to rounding.

A batch is split into k parts, for consecutive updates or for accumulation, such that part j is the samples j, j + k,
j + 2k, ...: where the batch is split over devices each of them uses its own samples, and nothing is communicated.

Two tools of optax do something else. `optax.apply_if_finite` guards one optimiser, where one NaN must skip the whole
step, and lets it pass after so many in a row. `optax.MultiSteps` accumulates gradients over calls, each with a batch
and a key of its own, and holds their sum in the state; here the parts are of one batch, whose noise does not depend on
their number, and nothing needs saving.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from diffjax._arrays import as_accumulators, path_of
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Params
from diffjax.training._ema import Average
from diffjax.training._objective import (
    Context,
    Objective,
    as_objectives,
    check_average_names,
    checked_output,
    split_frozen,
    trained_mask,
)
from diffjax.training._state import TrainState

Metrics = dict[str, Array]
Update = Callable[[], tuple[Params, PyTree]]
"""Makes (all trained parameters, the optimiser's state) after the update of an objective."""

Step = Callable[..., tuple[TrainState, Metrics]]
"""`(state, batch) -> (state, metrics)`; of `make_train_step` also `(state, batch, gather_params)`."""


@checked_numbers
def make_train_step(
    objectives: Objective | Sequence[Objective],
    *,
    ema: Average | Mapping[str, Average],
    axis_name: str | None = None,
    accumulate: int = 1,
    simultaneous: bool = False,
    levels: int = 0,
) -> Step:
    """Makes `step(state, batch) -> (state, metrics)`; not jitted, so that a layout can be chosen for it.

        params, opt_state <- tx(mean gradient of loss_fn over the batch),    ema <- average(step, params, ema)

    Where a loss or the norm of its gradient is not finite, params, ema and opt_state are unchanged, bitwise, and
    `state.step` increases, so that the next batch is another.

    Args:
      objectives: an `Objective(loss_fn, tx)`, or several, updated in this order.
      ema: `(step, params, ema) -> ema` of the trained parameters, as from `make_ema`; or several, name -> average,
        which losses read as `context.ema[name]`.
      axis_name: the axis of `jax.pmap` that the batch is split over; None where the step sees the whole batch.
      accumulate: number of parts that the batch of an update is split into, to save memory; the gradient is the same
        to rounding.
      simultaneous: True if each objective uses the parameters at the start of the step, but for its own updates; no
        two may then train the same parameter.
      levels: number of equal parts of the times in [0, 1] for which the first objective's loss is reported separately;
        its aux must have `t [b]` and `per_sample [b]`, as that of `denoising_loss`. 0: none.

    Returns:
      A function of the state; of a batch, a pytree of leaves [b, ...], normally `(x0, cond)`; and of `gather_params`,
      `params -> params`, by which a layout that shards parameters gathers them for the loss. Its metrics are scalars:
      `loss`, the first objective's, and `skipped`, 1 where nothing was updated; of a single objective `grad_norm` and
      each scalar in aux, of several NAME/loss, NAME/grad_norm and NAME/... of each, means over its updates. Where an
      objective has `every` above 1, NAME/due (and `due`, the first's) is 1 at its steps, and its other metrics are 0 at
      the rest. With levels, `loss_by_level [levels]` (means, 0 where there was no sample) and `count_by_level
      [levels]`.

    Raises:
      ValueError: a number is out of range, an objective has no name of its own, there is no average, or an objective
        that needs the whole batch is to be accumulated; when called, the number of parts does not divide the batch (of
        one device, under pmap), aux lacks what `levels` needs, the state is of other objectives or averages, an `of`
        fits nothing, or two overlap where they are simultaneous.
      TypeError: `objectives` are something else.

    Example:
      >>> from diffjax.training import state_from_params
      >>> loss_fn = lambda params, batch, context: (jnp.mean((params - batch) ** 2), {})
      >>> step = make_train_step(Objective(loss_fn, optax.sgd(0.25)), ema=lambda step, params, ema: params)
      >>> state = state_from_params(jax.random.key(0), jnp.zeros(()), optax.sgd(0.25))
      >>> state, metrics = jax.jit(step)(state, jnp.ones(4))
      >>> float(state.params), float(metrics["loss"])
      (0.5, 1.0)
    """
    named = as_objectives(objectives)
    for name, value, least in (("accumulate", accumulate, 1), ("levels", levels, 0)):
        if value < least:
            raise ValueError(f"{name}: at least {least}, got {value}")
    rules = ema if isinstance(ema, Mapping) else {"ema": ema}
    check_average_names(rules)
    if not rules or not all(map(callable, rules.values())):
        raise ValueError(f"ema: at least one average is needed, as of make_ema, or name -> one, got {ema or 'none'}")
    for name, objective in named.items():
        if objective.whole_batch and accumulate > 1:
            raise ValueError(f"accumulate: objective {name} needs the whole batch at once, got {accumulate} parts")
    single, first = len(named) == 1, next(iter(named))
    any_periodic = any(objective.every > 1 for objective in named.values())

    def step(
        state: TrainState, batch: PyTree, gather_params: Callable[[Params], Params] = lambda params: params, /
    ) -> tuple[TrainState, Metrics]:
        masks = {name: trained_mask(objective, state.params) for name, objective in named.items()}
        if simultaneous:
            _check_disjoint(masks)
        start, frozen = split_frozen([*masks.values()], state.params)
        averages = _Averages(ema, state.ema, lambda average: gather_params(eqx.combine(average, frozen)))
        step_key = jax.random.fold_in(state.key, state.step)

        def gradient(name: str, params: Params, key: Key, batch: PyTree) -> tuple[Params, Metrics, Metrics]:
            """(gradient of what the objective trains, its metrics, its sums by level)."""
            objective = named[name]
            own, rest = eqx.partition(params, masks[name])
            index, total = _global_index(batch_size_of(batch), axis_name)

            def of_part(batch: PyTree, index: Int[Array, " b"]) -> tuple[PyTree, Metrics]:
                """(what is averaged over parts and devices, what is summed)."""
                context = Context(key, state.step, averages, index, total, _gather(name, objective, axis_name))

                def loss_of(own: Params) -> tuple[Array, Mapping[str, PyTree]]:
                    params = gather_params(eqx.combine(own, rest, frozen))
                    return checked_output(name, objective.loss_fn(params, batch, context))

                (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(own)
                scalars = {metric: jnp.asarray(value) for metric, value in aux.items() if jnp.ndim(value) == 0}
                sums = _by_level(aux, levels) if name == first else {}
                return as_accumulators((grads, scalars | {"loss": loss})), sums

            means, sums = of_part(batch, index) if accumulate == 1 else _accumulate(of_part, accumulate, batch, index)
            if axis_name is not None:
                means, sums = jax.lax.pmean(means, axis_name), jax.lax.psum(sums, axis_name)
            grads, metrics = means
            return grads, metrics | {"grad_norm": optax.tree.norm(grads)}, sums

        def descend(name: str, params: Params, grads: Params, opt_state: PyTree) -> tuple[Params, PyTree]:
            """(all trained parameters after an update of the objective, its optimiser's new state)."""
            own = eqx.filter(params, masks[name])
            updates, new = named[name].tx.update(grads, opt_state, as_accumulators(own))
            return eqx.combine(_cast_like(optax.apply_updates(own, updates), own), params), _cast_like(new, opt_state)

        def evaluate(number: int, name: str, params: Params, opt_state: PyTree) -> tuple[Update, Metrics, Metrics]:
            """(the update, metrics, sums by level) of an objective."""
            objective, key = named[name], step_key
            if objective.times == 1:
                if not single:
                    key = jax.random.fold_in(jax.random.fold_in(step_key, number), 0)
                grads, metrics, sums = gradient(name, params, key, batch)
                return lambda: descend(name, params, grads, opt_state), metrics, sums

            def update_once(carry: tuple[Params, PyTree], piece: PyTree) -> tuple[tuple[Params, PyTree], PyTree]:
                j, rows = piece
                own_key = jax.random.fold_in(jax.random.fold_in(step_key, number), j)
                grads, metrics, sums = gradient(name, carry[0], own_key, rows)
                return descend(name, carry[0], grads, carry[1]), (metrics, sums)

            pieces = jnp.arange(objective.times), _split("times", objective.times, batch)
            after, (metrics, sums) = jax.lax.scan(update_once, (params, opt_state), pieces)
            mean, total = (lambda leaf: jnp.mean(leaf, axis=0)), (lambda leaf: jnp.sum(leaf, axis=0))
            return lambda: after, jax.tree.map(mean, metrics), jax.tree.map(total, sums)

        def evaluate_if_due(
            number: int, name: str, params: Params, opt_state: PyTree
        ) -> tuple[Update, Metrics, Metrics, Array]:
            """The same and 1 at the steps that `every` divides; no update, zeros and 0 at the others."""
            if named[name].every == 1:
                return *evaluate(number, name, params, opt_state), jnp.ones(())

            def now() -> tuple[PyTree, Metrics, Metrics]:
                update, metrics, sums = evaluate(number, name, params, opt_state)
                return update(), metrics, sums

            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: now()[1:]))
            due = state.step % named[name].every == 0
            after, metrics, sums = jax.lax.cond(due, now, lambda: ((params, opt_state), *zeros))
            return lambda: after, metrics, sums, due.astype(jnp.float32)

        opt_states, params, pending, metrics = _opt_states(named, state), start, {}, {}
        level_sums, finite = {}, jnp.asarray(True)

        def apply_pending(params: Params, opt_states: dict[str, PyTree]) -> tuple[Params, dict[str, PyTree]]:
            """The parameters and optimisers' states after the updates that are pending."""
            for name, update in pending.items():
                after, opt_state = update()
                params = eqx.combine(eqx.filter(after, masks[name]), params)
                opt_states = opt_states | {name: opt_state}
            return params, opt_states

        for number, name in enumerate(named):
            if not simultaneous:
                params, opt_states = apply_pending(params, opt_states)
                pending = {}
            pending[name], own_metrics, sums, due = evaluate_if_due(number, name, params, opt_states[name])
            finite &= jnp.isfinite(own_metrics["loss"]) & jnp.isfinite(own_metrics["grad_norm"])
            own_metrics |= {"due": due} if any_periodic else {}
            metrics |= own_metrics if single else {f"{name}/{metric}": value for metric, value in own_metrics.items()}
            if name == first:
                metrics |= {metric: value for metric, value in own_metrics.items() if metric in ("loss", "due")}
                level_sums = sums

        def updated() -> tuple[Params, PyTree, dict[str, PyTree]]:
            new, opts = apply_pending(params, opt_states)
            return _cast_like((new, averages.update(state.step, new), opts), old)

        old = start, state.ema, _opt_states(named, state)
        trained, average, opt_states = _select(finite, updated, old)
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
        if levels:
            metrics["loss_by_level"] = level_sums["loss"] / jnp.maximum(level_sums["count"], 1)
            metrics["count_by_level"] = level_sums["count"]
        opt_state = opt_states[first] if single else opt_states
        return TrainState(state.step + 1, eqx.combine(trained, frozen), average, opt_state, state.key), metrics

    return step


class _Averages(Mapping[str, Params]):
    """name -> whole parameters, gathered when they are read; and the averages after an update."""

    def __init__(self, rules: Average | Mapping[str, Average], values: PyTree, gathered: Callable[[Params], Params]):
        self._rules, self._values, self._gathered = rules, values, gathered
        self._names = tuple(rules) if isinstance(rules, Mapping) else ()
        if self._names and (not isinstance(values, dict) or values.keys() != set(self._names)):
            given = ", ".join(values) if isinstance(values, dict) else "one without a name"
            raise ValueError(
                f"ema: the averages {', '.join(self._names)} are needed in the state, which has: {given}; make it by "
                f"state_from_params(..., averages={self._names})"
            )

    def __getitem__(self, name: str) -> Params:
        if name not in self._names:
            raise ValueError(
                f"ema: there is no average {name!r}, there are: {', '.join(self._names) or 'none with a name'}; "
                "make_train_step takes them as ema={name: average}"
            )
        return self._gathered(self._values[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def get(self, name: str, default: Any = None) -> Params | Any:
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def update(self, step: Array, params: Params) -> PyTree:
        if isinstance(self._rules, Mapping):
            return {name: update(step, params, self._values[name]) for name, update in self._rules.items()}
        return self._rules(step, params, self._values)


def _opt_states(named: dict[str, Objective], state: TrainState) -> dict[str, PyTree]:
    """Name -> the state of an objective's optimiser."""
    if len(named) == 1:
        return dict.fromkeys(named, state.opt_state)
    if not isinstance(state.opt_state, dict) or state.opt_state.keys() != named.keys():
        raise ValueError(
            f"opt_state: the state was made for other objectives than {', '.join(named)}; make it by "
            "state_from_params(key, params, objectives)"
        )
    return state.opt_state


def _check_disjoint(masks: dict[str, PyTree]) -> None:
    """Raises `ValueError` where two objectives train the same parameter."""
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(next(iter(masks.values())))]
    for path, *trained in zip(paths, *map(jax.tree.leaves, masks.values()), strict=True):
        both = [name for name, trains in zip(masks, trained, strict=True) if trains]
        if len(both) > 1:
            raise ValueError(f"simultaneous: {' and '.join(both)} both train {path}; each must have its own")


def _gather(name: str, objective: Objective, axis_name: str | None) -> Callable[[PyTree], PyTree]:
    """`context.gather` of an objective."""
    if not objective.whole_batch:

        def refuse(x: PyTree) -> PyTree:
            raise ValueError(f"gather: objective {name} must declare it: Objective(..., whole_batch=True)")

        return refuse
    if axis_name is None:
        return lambda x: x
    return lambda x: jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True), x)


def _cast_like(new: PyTree, old: PyTree) -> PyTree:
    """A tree of arrays [*d] in the dtypes of another."""
    return jax.tree.map(lambda a, b: a if a.dtype == b.dtype else a.astype(b.dtype), new, old)


def batch_size_of(batch: PyTree) -> int:
    """The length b of the leading axis that all leaves [b, ...] of a batch share.

    Raises:
      ValueError: the batch is empty, or its leaves differ in that.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(f"batch: its arrays must share a leading batch axis, got shapes {shapes}")
    return sizes.pop()[0]


def _select(finite: Array, updated: Callable[[], PyTree], old: PyTree) -> PyTree:
    """`updated()` where finite, else `old`.

    On CPU by a branch: selecting number by number reads and copies the whole state once more, and doubles the time of
    an update. Accelerators select within the update's own passes, where a branch would have to wait for the host. Only
    one of both is traced, by the default backend, since tracing an optimiser twice slows the start of a run.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.cond(finite, updated, lambda: old)
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated(), old)


def _global_index(local: int, axis_name: str | None) -> tuple[Int[Array, " local"], int]:
    """The global index of each sample of this device's part, [local], and the size of the whole batch."""
    if axis_name is None:
        return jnp.arange(local), local
    first = jax.lax.axis_index(axis_name) * local
    return first + jnp.arange(local), jax.lax.axis_size(axis_name) * local


def _accumulate(
    of_part: Callable[[PyTree, Array], tuple[PyTree, PyTree]], parts: int, batch: PyTree, index: Int[Array, " b"]
) -> tuple[PyTree, PyTree]:
    """The mean of the first and the sum of the second result of `of_part`, over the parts of a batch."""
    pieces = _split("accumulate", parts, (batch, index))
    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_part, *first))
    add = lambda total, piece: (jax.tree.map(jnp.add, total, of_part(*piece)), None)
    (means, sums), _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda total: total / parts, means), sums


def _split(argument: str, parts: int, batch: PyTree) -> PyTree:
    """A batch of leaves [b, ...] in equal parts, [parts, b/parts, ...]; `argument` is named in the error."""
    size = batch_size_of(batch)
    if size % parts:
        raise ValueError(f"{argument}: a batch of {size} samples cannot be taken in {parts} equal parts")
    cut = lambda leaf: jnp.moveaxis(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 1, 0)
    return jax.tree.map(cut, batch)


def _by_level(aux: Mapping[str, PyTree], levels: int) -> Metrics:
    """The sum of losses and the number of samples in each of `levels` equal parts of time, [levels]; nothing for 0."""
    if not levels:
        return {}
    missing = [name for name in ("t", "per_sample") if name not in aux]
    if missing:
        raise ValueError(f"levels: {levels}, but the loss has no {' and no '.join(missing)}; it has {sorted(aux)}")
    level = jnp.clip(jnp.floor(aux["t"] * levels), 0, levels - 1)
    inside = level[:, None] == jnp.arange(levels)
    losses = jnp.where(inside, aux["per_sample"][:, None], 0)
    return {"loss": jnp.sum(losses, axis=0), "count": jnp.sum(inside, axis=0, dtype=losses.dtype)}
