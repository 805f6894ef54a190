"""What is supported, setting by setting: the table that tests prove and docs/support.md shows.

A cell is what a test asserts. The bounds below are read by these tests, and the
page is rendered from the same tables, so that neither can say what the other
does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.fairseq_plugin.task_runs import TASKS, Broken, Needs, Trains

METHODS = ("none", "sam", "delta_sam", "per_instance")

# Mode of precision.py: largest difference from a run in fp32 that
# starts at the same (rounded) weights, of the gradient that the inner optimizer
# gets, ‖g/‖g‖ − g₃₂/‖g₃₂‖‖, and of its norm, relatively; in the order of METHODS.
# None: Eq. 5's weights come from half-precision passes, and are others.
PRECISION_BOUNDS: dict[str, tuple[float | None, ...]] = {
    "fp16": (0.01, 0.01, 0.02, 0.01),
    "fp16, flat": (0.01, 0.01, 0.02, 0.01),
    "bf16": (0.02, 0.05, 0.05, 0.05),
    "amp": (0.02, 0.02, 0.03, 0.02),
    "memory-efficient fp16": (0.01, 0.01, None, 0.01),
    "memory-efficient bf16": (0.02, 0.05, None, 0.05),
}

# Two workers against one process with two micro-batches, in float64: largest
# relative difference of a weight after three updates.
WORKER_BOUNDS: dict[str, float] = {
    "legacy_ddp": 1e-6,
    "legacy_ddp, update-freq 2": 1e-6,
    "legacy_ddp, uneven": 1e-6,
    "legacy_ddp, zero-sharding os": 1e-6,
    "pytorch_ddp": 1e-6,
    "pytorch_ddp, update-freq 2": 1e-6,
    "pytorch_ddp, uneven": 1e-6,
    "pytorch_ddp, find-unused-parameters": 1e-6,
    "pytorch_ddp, ddp-comm-hook fp16": 2e-3,
}

# Setting: flags, and a part of the message.
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "`--tpu`": (("--tpu",), "--tpu is not supported: the step reads losses on the host"),
    "`--use-bmuf`": (("--use-bmuf",), "--use-bmuf is not supported: workers have different"),
    "`--ddp-backend fully_sharded`": (
        ("--ddp-backend", "fully_sharded"),
        "--ddp-backend fully_sharded or slowmo is not supported: a worker holds a part",
    ),
    "`--ddp-backend slowmo`": (
        ("--ddp-backend", "slowmo"),
        "--ddp-backend fully_sharded or slowmo is not supported: a worker holds a part",
    ),
    "`--pipeline-model-parallel`": (
        ("--pipeline-model-parallel",),
        "--pipeline-model-parallel is not supported: a worker holds a part of the weights",
    ),
    "`--model-parallel-size` above 1": (
        ("--model-parallel-size", "2"),
        "--model-parallel-size above 1 is not supported: a worker holds a part",
    ),
    "`--base-layers`": (
        ("--base-layers", "1"),
        "--base-layers is not supported: workers have experts of their own",
    ),
}


@dataclass(frozen=True)
class Row:
    """One setting of the page.

    Args:
        setting: fairseq's setting, as the page shows it.
        cells: One for each method.
        test: ``file::function`` in tests/fairseq_plugin that proves the cells.
        meaning: What the cells compare.
    """

    setting: str
    cells: tuple[str, ...]
    test: str
    meaning: str = ""


def _all(text: str) -> tuple[str, ...]:
    return (text,) * len(METHODS)


def _bound(value: float | None) -> str:
    if value is None:
        return "other weights g, with a warning"
    return "equal" if value <= 1e-6 else f"≤ {100 * value:g} %"


_PRECISION_NAMES = {
    "fp16": "`--fp16 --fp16-no-flatten-grads`",
    "fp16, flat": "`--fp16`",
    "bf16": "`--bf16`",
    "amp": "`--amp`",
    "memory-efficient fp16": "`--memory-efficient-fp16`",
    "memory-efficient bf16": "`--memory-efficient-bf16`",
}

_WORKER_NAMES = {
    "legacy_ddp": "`--ddp-backend legacy_ddp`, `no_c10d`",
    "legacy_ddp, update-freq 2": "the same, `--update-freq 2`",
    "legacy_ddp, uneven": "the same, a worker without data in the last update",
    "legacy_ddp, zero-sharding os": "the same, `--zero-sharding os` (fairscale)",
    "pytorch_ddp": "`--ddp-backend pytorch_ddp`, `c10d`",
    "pytorch_ddp, update-freq 2": "the same, `--update-freq 2`",
    "pytorch_ddp, uneven": "the same, a worker without data in the last update",
    "pytorch_ddp, find-unused-parameters": "the same, `--find-unused-parameters`",
    "pytorch_ddp, ddp-comm-hook fp16": "the same, `--ddp-comm-hook fp16`",
}

SINGLE = [
    Row(
        "fp32, one process",
        ("equal",) * 4,
        "test_step.py::test_equals_the_slow_twin_in_float64",
        "with the slow twin of the method, in float64",
    ),
    Row(
        "`--update-freq`",
        ("–", "equal", "equal", "–"),
        "test_step.py::test_an_update_does_not_depend_on_how_it_is_split",
        "with the same sentences in one batch, in float64",
    ),
    Row(
        "`--sam-method none`, `--sam-rho 0`",
        ("equal", "equal", "equal", "equal"),
        "test_step.py::test_no_perturbation_is_the_inner_optimizer_bit_for_bit",
        "with `--optimizer adam`, bit for bit",
    ),
]

PRECISION = [
    Row(
        _PRECISION_NAMES[mode],
        tuple(_bound(b) for b in bounds),
        "test_precision_bounds.py::test_the_gradient_is_that_of_single_precision",
    )
    for mode, bounds in PRECISION_BOUNDS.items()
]

WORKERS = [
    Row(
        _WORKER_NAMES[name],
        _all(_bound(bound)),
        "test_parallel.py::test_two_workers_equal_one_process",
    )
    for name, bound in WORKER_BOUNDS.items()
]

_INTERPLAY = "test_interplay.py::"
INTERPLAY = [
    Row(
        "`--store-ema`",
        _all("equal"),
        _INTERPLAY + "test_moving_averages_follow_the_weights_between_updates",
        "with averages by hand of the weights between updates",
    ),
    Row(
        "`--clip-norm`",
        _all("equal"),
        _INTERPLAY + "test_clipping_acts_on_the_descent_alone",
        "the direction of the update, and what is logged of the ascent, without clipping",
    ),
    Row(
        "`--sentence-avg`",
        _all("equal"),
        _INTERPLAY + "test_a_mean_over_sentences_differs_by_a_factor",
        "with a mean over tokens times their number per sentence",
    ),
    Row(
        "`--checkpoint-activations`, `--offload-activations`",
        _all("equal"),
        _INTERPLAY + "test_recomputed_and_offloaded_activations",
        "with the run without, in float64",
    ),
    Row(
        "`--encoder-layerdrop`, `--decoder-layerdrop`",
        _all("equal"),
        _INTERPLAY + "test_layer_drop_chooses_the_same_layers_in_every_pass",
        "the layers that each pass of an update uses",
    ),
    Row(
        "`--quant-noise-scalar`",
        ("–", "equal", "equal", "equal"),
        _INTERPLAY + "test_scalar_quantization_noise_is_the_same_in_every_pass",
        "with plain training at a radius of nothing, bit for bit",
    ),
    Row(
        "`--validate-interval-updates`",
        _all("equal"),
        _INTERPLAY + "test_validation_between_updates_changes_nothing",
        "with the run without, bit for bit",
    ),
    Row(
        "`--patience`",
        _all("equal"),
        _INTERPLAY + "test_patience_counts_validations",
        "the number of validations before the stop",
    ),
    Row(
        "`--sam-inner` adafactor, nag, sgd, adagrad, adadelta, adamax",
        ("–", "equal", "equal", "equal"),
        _INTERPLAY + "test_inner_optimizers_get_the_gradient_at_the_perturbed_weights",
        "with that optimizer fed with the gradient at w + ε",
    ),
    Row(
        "`--sam-inner` composite, and lamb without apex",
        _all("refused"),
        _INTERPLAY + "test_inner_optimizers_that_cannot_be_say_so",
    ),
    Row(
        "`--sam-start-update`",
        ("–", "equal", "equal", "equal"),
        _INTERPLAY + "test_a_plain_beginning",
        "its first updates with plain ones, bit for bit",
    ),
    Row(
        "`--sam-interval`",
        ("–", "equal", "equal", "equal"),
        _INTERPLAY + "test_plain_updates_in_between",
        "‖ε‖ with ρ in every k-th update and 0 in the others",
    ),
    Row(
        "`--sam-rule`",
        ("–", "equal", "equal", "equal"),
        _INTERPLAY + "test_rules_say_which_parameters_move",
        "‖ε‖ with ρ over the parameters that the rule names, 0 elsewhere",
    ),
    Row(
        "`--sam-rule`, `--sam-adaptive`",
        ("–", "equal", "equal", "equal"),
        _INTERPLAY + "test_rules_and_adaptive_weights_equal_the_slow_twin",
        "with the slow twin, in float64",
    ),
]

_FREELB = "test_freelb.py::"
INTERPLAY += [
    Row(
        "`--freelb-steps`",
        ("equal", "equal", "equal", "–"),
        _FREELB + "test_equals_the_slow_twin_in_float64",
        "with the slow twin of K passes in one graph, in float64, with dropout",
    ),
    Row(
        "`--freelb-steps`, sentence by sentence",
        ("–", "–", "–", "equal"),
        _FREELB + "test_every_sentence_has_its_own_perturbation_of_its_k_losses",
        "with SAM around FreeLB of each sentence by itself",
    ),
    Row(
        "`--freelb-steps`, `--sam-per-instance-engine batched`",
        ("–", "–", "–", "refused"),
        _FREELB + "test_what_would_be_wrong_is_refused_at_start_up",
        "the engine knows the gradients of one pass, ε comes from those of all",
    ),
    Row(
        "`--freelb-steps`, two workers, both backends, `--update-freq 2`, uneven",
        ("equal", "equal", "equal", "–"),
        "test_parallel.py::test_two_workers_equal_one_process",
    ),
]

_RIVALS, _MIRROR, _GROUPED = "test_regularizers.py::", "test_mirror.py::", "test_grouped.py::"
INTERPLAY += [
    Row(
        "`--regularizer rdrop`, `r3f`",
        _all("equal"),
        _RIVALS + "test_methods_around_it_equal_the_reference",
        "with the slow twin in float64, with noise and dropout",
    ),
    Row(
        "`--regularizer smart`",
        ("equal", "equal", "equal", "trains"),
        _RIVALS + "test_smart_goes_sentence_by_sentence_with_per_instance_and_says_so",
        "with the slow twin in float64; per_instance goes sentence by sentence",
    ),
    Row(
        "`--rdrop-kl-reduction sum`",
        ("equal", "equal", "equal", "refused"),
        _RIVALS + "test_rdrops_sum_is_the_batchs_size_times_its_mean",
        "with the mean times the batch's size, which a sentence by itself does not know",
    ),
    Row(
        "`--regularizer`, two workers, both backends",
        ("–", "equal", "–", "–"),
        _RIVALS + "test_workers_add_up_what_each_finds",
        "with the sum of what each share gives",
    ),
    Row(
        "`--criterion deltasam_infonce`",
        ("equal", "equal", "equal", "refused"),
        _MIRROR + "test_the_second_view_alone_is_perturbed",
        "with the slow twin of two passes in float64; sentences depend on each other",
    ),
    Row(
        "`--criterion deltasam_infonce`, two workers, both backends",
        ("equal", "equal", "equal", "–"),
        _MIRROR + "test_two_workers_equal_one_process",
    ),
    Row(
        "`--sam-groups`",
        ("–", "equal", "equal", "refused"),
        _GROUPED + "test_each_group_has_its_own_perturbation",
        "with the slow twin in float64, sam's at once and one by one",
    ),
    Row(
        "`--sam-groups`, `--update-freq`",
        ("–", "equal", "equal", "refused"),
        _GROUPED + "test_how_an_update_is_split_is_no_matter",
        "with the slow twin in float64; N groups equal per_instance",
    ),
    Row(
        "`--sam-groups`, two workers",
        ("–", "equal", "–", "refused"),
        _GROUPED + "test_each_worker_has_groups_of_its_own",
        "with the sum of what each share gives",
    ),
    Row(
        "`--sam-ascent-fraction`",
        ("–", "equal", "trains", "refused"),
        _GROUPED + "test_a_share_of_the_sentences_gives_the_perturbation",
        "with the slow twin in float64",
    ),
    Row(
        "`--sam-tail`",
        ("–", "equal", "equal", "equal"),
        _GROUPED + "test_the_tail_alone_is_perturbed_also_after_a_restart",
        "the updates that are perturbed, after a restart too",
    ),
    Row(
        "`--sam-estimator gibbs`, `inverse_norm`",
        ("–", "–", "equal", "–"),
        "test_by_norms.py::test_the_engine_gives_what_passes_of_each_sentence_give",
        "with a backward pass of each sentence",
    ),
    Row(
        "`--sam-norms layer_norms`, `all`",
        ("equal", "equal", "equal", "–"),
        "test_sentence_norms.py::test_it_is_the_loop_over_sentences",
        "with a backward pass of each sentence, in float64; per_instance has those of all layers",
    ),
]

FAULTS = [
    Row(
        "out of memory in any pass, one process",
        _all("equal"),
        "test_out_of_memory.py::test_one_worker_skips_the_update",
        "with the run without that batch, bit for bit",
    ),
    Row(
        "out of memory in any pass of one of two workers, `legacy_ddp`",
        ("–", "equal", "equal", "equal"),
        "test_out_of_memory.py::test_two_workers_go_on_together",
        "the two workers, bit for bit",
    ),
    Row(
        "overflow in either pass, `--fp16` and `--memory-efficient-fp16`",
        ("–", "equal", "–", "–"),
        "test_precision.py::test_an_overflow_in_either_pass_lowers_the_scale_and_skips_the_update",
        "weights, masters and optimizer with those before, bit for bit; half the scale",
    ),
    Row(
        "overflow in either pass, `--amp`",
        ("–", "equal", "–", "–"),
        "test_precision.py::test_amp_tries_an_overflowing_batch_again",
        "with the run without an overflow; half the scale",
    ),
]

REFUSALS = [
    Row(
        setting,
        ("as without the plugin", *("refused",) * 3),
        "test_support.py::test_settings_that_would_be_wrong_are_refused",
        message,
    )
    for setting, (_, message) in REFUSED.items()
]
REFUSALS.append(
    Row(
        "`--quant-noise-pq`",
        ("as without the plugin", *("refused",) * 3),
        "test_support.py::test_quantization_noise_on_blocks_is_refused",
        "--quant-noise-pq is not supported: it overwrites its weights in each forward pass",
    )
)


def _task_row(name: str, run: Trains | Broken | Needs) -> Row:
    test = "test_tasks.py::test_every_task_trains_or_is_refused"
    if isinstance(run, Needs):
        return Row(f"`{name}`", _all("not run"), test, f"needs {run.package}")
    if isinstance(run, Broken):
        return Row(f"`{name}`", _all("fails in fairseq"), test, run.error)
    cells = ["refused" if method in run.refused else "trains" for method in METHODS[1:]]
    meaning = "; ".join(dict.fromkeys(run.refused.values()))
    return Row(f"`{name}`", ("as without the plugin", *cells), test, meaning)


TASK_ROWS = [_task_row(name, run) for name, run in TASKS.items()]
