"""The fault list: 56 ways in which a run can go wrong, the tests that try each, and what the session says about them.

One row a fault. A test that is named must exist (test_faults.py), and a row counts as passed only if all its tests ran
in this session and passed. Each fault asks five things; where one makes no sense for it, the row says why.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_MANY = 30  # a session of a few files has not set out to try them all
ASKED = ("exit code", "one line", "nothing lost", "nothing leaked", "recovery")


@dataclass(frozen=True)
class Fault:
    """One row.

    Args:
        id: F1 to F56.
        what: What goes wrong.
        injected: How the tests bring it about.
        tests: Those that try it, as file::function.
        without: Of the five things asked, those that do not apply, and why.
        not_tried: Why no test tries it; empty if some do.
    """

    id: str
    what: str
    injected: str = ""
    tests: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    not_tried: str = ""


REFUSED = {"exit code": "raised to the caller", "nothing lost": "refused before anything ran"}
NO_ERROR = {"exit code": "the run goes on", "recovery": "the run goes on"}
RAISED = {"exit code": "raised to the caller; train.py prints it and exits with 2"}
VALUE = {**NO_ERROR, "nothing lost": "a value", "one line": "a value"}
KILLED = {"exit code": "the kernel's", "one line": "a killed process says nothing", "nothing leaked": "as little"}

FAULTS = (
    Fault(
        "F1",
        "SIGKILL in an epoch, resume",
        "SIGKILL of scripts/train.py, and of trainings at random moments",
        (
            "tests/scripts/test_train.py::test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been",
            "tests/scripts/test_kill_and_resume.py::test_killed_trainings_resume_to_the_bit",
            "tests/callbacks/test_step_randomness.py::test_a_resumed_run_equals_the_whole_one",
        ),
        KILLED,
    ),
    Fault(
        "F2",
        "SIGKILL between epochs, resume",
        "SIGKILL at random moments; resumed from the checkpoints at the end of epochs",
        (
            "tests/scripts/test_kill_and_resume.py::test_killed_trainings_resume_to_the_bit",
            "tests/callbacks/test_step_randomness.py::test_a_resumed_run_equals_the_whole_one",
        ),
        KILLED,
    ),
    Fault(
        "F3",
        "SIGKILL in a checkpoint write, same file system",
        "SIGKILL while saving, and an end between any two calls that change a file",
        (
            "tests/checkpoints/test_write.py::test_real_kills",
            "tests/checkpoints/test_write.py::test_a_kill_at_any_point_leaves_a_whole_checkpoint",
            "tests/scripts/test_kill_and_resume.py::test_killed_trainings_resume_to_the_bit",
        ),
        KILLED,
    ),
    Fault(
        "F4",
        "SIGKILL in a checkpoint write, across file systems",
        "SIGKILL while saving, the temporary folder elsewhere",
        (
            "tests/checkpoints/test_write.py::test_real_kills_across_file_systems",
            "tests/checkpoints/test_write.py::test_lightning_loses_one_across_file_systems",
            "tests/scripts/test_kill_and_resume.py::test_killed_trainings_resume_to_the_bit",
        ),
        KILLED,
    ),
    Fault(
        "F5",
        "disk full",
        "a limit of the size of files",
        (
            "tests/checkpoints/test_write.py::test_a_full_disk_is_told_with_the_bytes_needed_and_the_older_checkpoint_stays",
        ),
        RAISED,
    ),
    Fault(
        "F6",
        "truncated or empty checkpoint",
        "files cut at many places",
        (
            "tests/checkpoints/test_whole.py::test_the_message_is_a_line_with_the_file_what_is_wrong_and_the_cure",
            "tests/checkpoints/test_safe_checkpoint_io.py::test_a_corrupt_checkpoint_is_refused_with_the_name_of_the_next_best",
            "tests/checkpoints/test_newest.py::test_what_training_cannot_resume_from_is_passed_over_in_a_line",
            "tests/scripts/test_train.py::test_a_checkpoint_of_another_model_is_refused",
        ),
    ),
    Fault(
        "F7",
        "one bit of a checkpoint flipped",
        "2,000 random bits, one at a time",
        (
            "tests/checkpoints/test_whole.py::test_no_bit_flip_passes",
            "tests/checkpoints/test_whole.py::test_no_bit_flip_in_the_sum_passes",
        ),
        RAISED,
    ),
    Fault(
        "F8",
        "SIGTERM, one process",
        "SIGTERM of scripts/train.py, and at each batch of a training",
        (
            "tests/callbacks/test_graceful_stop.py::test_a_training_by_the_script_ends_with_143",
            "tests/callbacks/test_graceful_stop.py::test_codes_checkpoint_and_line",
            "tests/callbacks/test_graceful_stop.py::test_an_interrupted_fit_goes_on_bit_by_bit",
            "tests/callbacks/test_graceful_stop.py::test_signals_are_given_back_exactly",
        ),
    ),
    Fault(
        "F9",
        "SIGTERM, one rank of several",
        "SIGTERM of either rank",
        ("tests/callbacks/test_graceful_stop.py::test_all_processes_stop_together",),
    ),
    Fault(
        "F10",
        "SIGUSR1 of SLURM",
        "SIGUSR1 in the environment of a job, with a stand-in for scontrol",
        (
            "tests/callbacks/test_graceful_stop.py::test_slurm_requeues_once_and_the_job_goes_on",
            "tests/callbacks/test_graceful_stop.py::test_a_requeue_that_fails_is_one_line",
            "tests/scripts/test_slurm.py::test_the_job_runs_train_in_its_own_folder",
        ),
    ),
    Fault(
        "F11",
        "Ctrl-C in a fit",
        "SIGINT",
        (
            "tests/callbacks/test_graceful_stop.py::test_codes_checkpoint_and_line",
            "tests/callbacks/test_graceful_stop.py::test_an_interrupted_fit_goes_on_bit_by_bit",
            "tests/callbacks/test_graceful_stop.py::test_a_second_ctrl_c_ends_at_once",
        ),
    ),
    Fault(
        "F12",
        "Ctrl-C in a stochastic pass",
        "KeyboardInterrupt in a forward, and at any line of the package",
        (
            "tests/callbacks/test_leaks.py::test_nothing_is_left_after_an_error",
            "tests/callbacks/test_leaks.py::test_nothing_is_left_after_an_interrupt_anywhere",
            "tests/callbacks/test_leaks.py::test_a_second_trainer_goes_on_with_the_same_callbacks",
        ),
        {"exit code": "Lightning's", "one line": "Lightning's", "nothing lost": "an evaluation writes at its end"},
    ),
    Fault(
        "F13",
        "an error in a hook of an evaluation",
        "raised in each hook of the module and of callbacks around ours",
        (
            "tests/callbacks/test_leaks.py::test_nothing_is_left_after_an_error",
            "tests/callbacks/test_leaks.py::test_a_second_trainer_goes_on_with_the_same_callbacks",
        ),
        {"exit code": "the error is the user's", "one line": "the error is the user's", "nothing lost": "as F12"},
    ),
    Fault(
        "F14",
        "another callback's on_exception raises",
        "such callbacks before and after ours",
        (
            "tests/callbacks/test_leaks.py::test_nothing_is_left_after_an_error",
            "tests/callbacks/test_leaks.py::test_that_check_sees_planted_bugs",
            "tests/callbacks/test_borrower.py::test_borrowers_are_asked_before_anybody_else",
        ),
        {"exit code": "the error is the user's", "one line": "the error is the user's", "nothing lost": "as F12"},
    ),
    Fault(
        "F15",
        "W&B without a key and without a terminal",
        "an environment without either",
        ("tests/loggers/test_wandb.py::test_training_without_a_key_is_offline_at_once_without_network",),
        NO_ERROR,
    ),
    Fault(
        "F16",
        "W&B cannot be reached at the start",
        "an address where nobody listens",
        (
            "tests/loggers/test_wandb.py::test_unreachable_server_falls_back_to_offline_within_the_timeout",
            "tests/loggers/test_whole_runs.py::test_a_server_that_is_unreachable",
            "tests/loggers/test_wandb.py::test_the_printed_command_uploads_an_offline_run",
        ),
        {"exit code": "the run goes on"},
    ),
    Fault(
        "F17",
        "W&B goes away in the middle",
        "a server that dies or never answers (429 itself is left to wandb)",
        (
            "tests/loggers/test_wandb.py::test_server_that_dies_does_not_hold_the_end_up",
            "tests/loggers/test_whole_runs.py::test_a_server_that_dies",
            "tests/loggers/test_whole_runs.py::test_a_server_that_never_answers",
        ),
        {"exit code": "the run goes on"},
    ),
    Fault(
        "F18",
        "the background process of W&B is killed",
        "SIGKILL",
        ("tests/loggers/test_fail_safe.py::test_death_of_the_background_process_stops_neither_this_run_nor_the_next",),
        NO_ERROR,
    ),
    Fault(
        "F19",
        "a worker of a data loader is killed",
        "a worker that kills itself",
        ("tests/test_faults.py::test_a_killed_worker_leaves_nothing_and_the_next_run_works",),
        {"exit code": "raised to the caller", "one line": "torch's", "nothing lost": "an evaluation writes at its end"},
    ),
    Fault(
        "F20",
        "a corrupt image",
        "a text file of that name",
        (
            "tests/scripts/test_train.py::test_a_corrupt_image_is_named",
            "tests/data/test_image_files.py::test_broken_file_is_named",
        ),
        {"nothing leaked": "before a model is built", "recovery": "remove the file that is named"},
    ),
    Fault(
        "F21",
        "a data set that is not there",
        "a folder that does not exist",
        (
            "tests/scripts/test_train.py::test_a_wrong_word_costs_one_readable_line",
            "tests/data/test_images.py::test_root_missing",
        ),
        {"nothing lost": "before a model is built", "nothing leaked": "the same", "recovery": "the key that is named"},
    ),
    Fault(
        "F22",
        "a loss of NaN or infinity",
        "a batch whose loss is multiplied by it",
        (
            "tests/callbacks/test_finite_loss.py::test_the_run_ends_with_step_and_rates_and_finite_checkpoints",
            "tests/modules/test_supervised.py::test_a_diverged_batch_makes_the_loss_nan",
        ),
        RAISED,
    ),
    Fault(
        "F23",
        "NaN in the outputs of passes",
        "weights of NaN",
        (
            "tests/sampling/test_sample.py::test_a_model_that_has_diverged_says_nan",
            "tests/metrics/test_predictive.py::test_a_nan_is_seen",
        ),
        NO_ERROR,
    ),
    Fault(
        "F24",
        "an infinite activation is dropped",
        "infinities in the input of the layers",
        ("tests/nn/test_functional.py::test_dropped_infinities_are_zero_and_leave_the_gradient_finite",),
        VALUE,
    ),
    Fault(
        "F25",
        "a rank is killed",
        "SIGKILL of rank 0 of scripts/train.py",
        ("tests/distributed/test_jobs.py::test_a_rank_that_fails_ends_the_job",),
        {"one line": "SIGKILL says nothing", "nothing lost": "as F1"},
    ),
    Fault(
        "F26",
        "a rank raises",
        "an error in a step of rank 1 of scripts/train.py",
        ("tests/distributed/test_jobs.py::test_a_rank_that_fails_ends_the_job",),
        {"one line": "the error is the user's, and its traceback comes first", "nothing lost": "as F1"},
    ),
    Fault(
        "F27",
        "a rank stalls",
        "one that sleeps, beside a timeout of the config",
        ("tests/distributed/test_jobs.py::test_a_rank_that_stalls_ends_the_job_after_the_timeout",),
        {"one line": "gloo's own words", "nothing lost": "as F1"},
    ),
    Fault(
        "F28",
        "all ranks draw the same masks",
        "two processes with one seed",
        ("tests/callbacks/test_rank_randomness.py::test_two_processes",),
        VALUE,
    ),
    Fault(
        "F29",
        "a test set that the ranks cannot share out equally",
        "65, 13 and 7 samples on two ranks, 13 also with Lightning's own sampler",
        (
            "tests/distributed/test_ranks.py::test_two_processes",
            "tests/callbacks/test_repeated_rows.py::test_every_sample_counts_once",
        ),
        VALUE,
    ),
    Fault(
        "F30",
        "out of memory in folded passes",
        "an allocator that refuses",
        ("tests/sampling/test_sample.py::test_out_of_memory_names_the_chunk_size_to_try",),
        REFUSED,
    ),
    Fault("F31", "out of memory on one rank", not_tried="needs an accelerator for each rank; the job ends as in F26"),
    Fault(
        "F32",
        "no passes",
        "num_samples=0",
        ("tests/scripts/test_train.py::test_a_wrong_word_costs_one_readable_line",),
        {
            "nothing lost": "refused before anything ran",
            "nothing leaked": "the same",
            "recovery": "the key that is named",
        },
    ),
    Fault(
        "F33",
        "one pass",
        "num_samples=1",
        ("tests/callbacks/test_mc_dropout.py::test_one_pass_has_no_spread",),
        VALUE,
    ),
    Fault(
        "F34",
        "an empty test set",
        "a folder without images; a loader without rows",
        (
            "tests/scripts/test_train.py::test_an_empty_test_set_is_named",
            "tests/data/test_loaders.py::test_empty_set_is_an_error_at_any_stage",
            "tests/test_faults.py::test_an_empty_loader_is_told",
        ),
        {"nothing leaked": "nothing ran", "recovery": "the key that is named"},
    ),
    Fault(
        "F35",
        "a last batch that is smaller",
        "sizes that do not divide",
        ("tests/modules/test_classifier.py::test_the_test_is_over_samples_not_batches",),
        VALUE,
    ),
    Fault(
        "F36",
        "batches of one sample, with batch normalisation",
        "batches of one sample",
        ("tests/test_faults.py::test_one_sample_and_batch_normalisation",),
        VALUE,
    ),
    Fault(
        "F37",
        "a model that returns more than a tensor",
        "tuples, dictionaries, dataclasses, outputs of transformers",
        (
            "tests/sampling/test_outputs.py::test_every_structure_comes_back_as_it_was",
            "tests/sampling/test_outputs.py::test_what_differs_and_has_no_mean_is_refused_by_name",
        ),
        REFUSED,
    ),
    Fault(
        "F38",
        "a variance in half precision",
        "models of float16 and bfloat16",
        ("tests/sampling/test_sample.py::test_half_precision_models_give_single_precision_statistics",),
        VALUE,
    ),
    Fault(
        "F39",
        "a rate of 0",
        "",
        ("tests/nn/test_functional.py::test_rate_0_and_evaluation_return_the_input_and_draw_nothing",),
        VALUE,
    ),
    Fault(
        "F40", "a rate of 1", "", ("tests/nn/test_functional.py::test_rate_1_returns_zeros_with_zero_gradients",), VALUE
    ),
    Fault(
        "F41",
        "a schedule that leaves [0, 1]",
        "factors above 1",
        (
            "tests/callbacks/test_rate_scheduler.py::test_a_factor_that_leaves_the_range_is_refused_before_the_first_batch",
            "tests/callbacks/test_rate_group.py::test_a_value_out_of_range_reaches_no_layer",
        ),
        REFUSED,
    ),
    Fault(
        "F42",
        "a rate of 1.5, nan or abc in a config",
        "on the command line",
        ("tests/scripts/test_train.py::test_a_wrong_word_costs_one_readable_line",),
        {
            "nothing lost": "refused before anything ran",
            "nothing leaked": "the same",
            "recovery": "the key that is named",
        },
    ),
    Fault(
        "F43",
        "more steps than the schedule has",
        "a run that is longer than its `total`",
        ("tests/test_clock.py::test_more_steps_than_foreseen_stay_at_1",),
        VALUE,
    ),
    Fault(
        "F44",
        "two schedulers of one site",
        "",
        ("tests/callbacks/test_rate_scheduler.py::test_two_schedulers_on_one_site_are_refused",),
        REFUSED,
    ),
    Fault(
        "F45",
        "two callbacks of one class with a state",
        "",
        ("tests/callbacks/test_rate_scheduler.py::test_two_schedulers_share_a_trainer_under_names",),
        REFUSED,
    ),
    Fault(
        "F46",
        "a model that drops nothing",
        "",
        ("tests/sites/test_find.py::test_an_empty_match_names_what_comes_close",),
        REFUSED,
    ),
    Fault(
        "F47",
        "passes that are all alike",
        "layers that nobody calls",
        ("tests/sampling/test_sample.py::test_passes_that_never_differ_are_an_error_that_names_the_sites",),
        REFUSED,
    ),
    Fault(
        "F48",
        "one Dropout in many places",
        "",
        ("tests/sites/test_find.py::test_a_shared_module_is_one_site_named_where_it_is_met_first",),
        VALUE,
    ),
    Fault(
        "F49",
        "a model that is made in configure_model",
        "",
        ("tests/callbacks/test_rate_scheduler.py::test_a_model_built_in_configure_model",),
        VALUE,
    ),
    Fault(
        "F50",
        "callbacks that are copied or pickled",
        "",
        (
            "tests/callbacks/test_any_callback.py::test_every_callback_survives_copying_and_pickling",
            "tests/callbacks/test_borrower.py::test_callbacks_can_be_copied_in_the_middle_of_a_stage",
        ),
        VALUE,
    ),
    Fault(
        "F51",
        "a checkpoint that is read with weights_only=True",
        "",
        ("tests/callbacks/test_rate_scheduler.py::test_the_state_is_plain_and_names_version_and_places",),
        VALUE,
    ),
    Fault(
        "F52",
        "a run that is resumed with other settings",
        "another length, model, schedule, number of passes, processes or batch size",
        (
            "tests/callbacks/test_resume_check.py::test_other_passes_and_schedules_are_named_in_one_line",
            "tests/callbacks/test_resume_check.py::test_other_batches_and_processes_are_named",
            "tests/callbacks/test_trained_rates.py::test_a_run_of_another_length_is_told",
            "tests/callbacks/test_rate_scheduler.py::test_another_model_than_the_trained_one_is_refused",
        ),
        REFUSED,
    ),
    Fault(
        "F53",
        "a checkpoint of another version",
        "a state of a later version; there is no older release yet",
        (
            "tests/callbacks/test_resume_check.py::test_a_newer_version_is_refused_in_fit_and_read_in_a_test",
            "tests/callbacks/test_trained_rates.py::test_rates_are_kept_by_place_and_checked_when_read",
        ),
        REFUSED,
    ),
    Fault(
        "F54",
        "torch.compile while a rate changes",
        "compiled models in every way",
        (
            "tests/callbacks/test_rate_group.py::"
            "test_training_validation_ragged_batches_and_a_sampled_test_stay_compiled",
        ),
        VALUE,
    ),
    Fault(
        "F55",
        "one job of a multirun fails",
        "a wrong value, a bug",
        (
            "tests/configuration/test_entry.py::test_multirun_names_every_failed_job_after_the_others_finished",
            "tests/configuration/test_entry.py::test_multirun_with_a_bug_in_one_job",
        ),
        {"nothing leaked": "jobs share nothing", "recovery": "the overrides that are named"},
    ),
    Fault(
        "F56",
        "an output folder that cannot be written",
        "a file in its place, a folder that is gone when a checkpoint is saved",
        (
            "tests/scripts/test_train.py::test_an_output_folder_that_cannot_be_written_is_named",
            "tests/checkpoints/test_write.py::test_a_folder_that_cannot_be_written_to_is_named",
            "tests/checkpoints/test_write.py::test_a_vanished_folder_is_made_again",
        ),
        {"nothing lost": "before anything ran", "nothing leaked": "the same", "recovery": "the key that is named"},
    ),
)


def place_of(nodeid: str) -> str:
    """Return file::function of the id of a test, without class and parameters."""
    path, *_, name = nodeid.partition("[")[0].split("::")
    return f"{path}::{name}"


def summary(outcomes: Iterable[tuple[str, str]], faults: Iterable[Fault] = FAULTS) -> Iterator[str]:
    """Yield what a session says: from the ids and outcomes of its tests, ``passed``, ``failed`` or ``skipped``."""
    seen: dict[str, set[str]] = {}
    for nodeid, outcome in outcomes:
        seen.setdefault(place_of(nodeid), set()).add(outcome)
    states: dict[str, list[str]] = {"passed": [], "failed": [], "not run here": [], "not tried": []}
    for fault in faults:
        found = [seen.get(test, set()) for test in fault.tests]
        if fault.not_tried:
            states["not tried"].append(f"{fault.id} ({fault.not_tried})")
        elif any("failed" in each for each in found):
            states["failed"].append(f"{fault.id} ({fault.what})")
        elif all("passed" in each for each in found):
            states["passed"].append(fault.id)
        else:
            states["not run here"].append(fault.id)
    passed = states.pop("passed")
    yield f"faults: {len(passed)} of {len(passed) + sum(map(len, states.values()))} passed"
    for state, ids in states.items():
        if ids:
            yield f"  {state}: {', '.join(ids) if len(ids) < _MANY else f'{len(ids)} faults'}"
