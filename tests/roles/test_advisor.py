import math
from dataclasses import replace

import pytest

from accerl.advisor import Readings, advise, readings_from, readings_over
from accerl.bounds import stage_bounds

RUN = Readings(
    decisions_per_s=98.0,
    rollout_busy=0.49,
    inference_busy=0.98,
    learner_busy=0.58,
    cores_busy=0.4,
    num_workers=4,
    num_slots=32,
    num_services=1,
    env_s_per_decision=0.02,
    forward_s_per_decision=0.01,
    forward_base_s=0.04,
    forward_slope_s=0.005,
    batch_size=8,
    batch_size_mean=8.0,
    train_s_per_decision=1 / 170,
    data_wait_share=0.4,
    admission_wait_share=0.0,
    max_policy_lag=4,
)
"""Bounds: 4 / 0.02 = 200, below 32 / (0.02 + 0.08) = 320; 8 / (0.04 + 8 x 0.005) = 100; 170 decisions/s."""


def test_the_bounds_are_those_of_the_formula():
    assert stage_bounds(RUN) == pytest.approx({"environment": 200.0, "inference": 100.0, "learner": 170.0})
    few_slots = replace(RUN, num_slots=4)  # 4 / (0.02 + 0.08); and a forward cannot take more than 4: 4 / (0.04 + 0.02)
    assert stage_bounds(few_slots) == pytest.approx({"environment": 40.0, "inference": 4 / 0.06, "learner": 170.0})
    threads = replace(RUN, threads_per_worker=8)
    assert stage_bounds(threads)["environment"] == pytest.approx(320.0)
    used_twice = replace(RUN, uses_per_decision=2.0, num_learners=3)
    assert stage_bounds(used_twice)["learner"] == pytest.approx(3 * 170 / 2)


def test_inference_bound_the_prediction_ends_at_the_next_bound():
    advice = advise(RUN)
    assert advice.bottleneck == "inference"
    assert advice.predicted == pytest.approx(1.7)  # 200 with two services, but the learner does 170
    assert advice.sentence == ("inference busy 98 %: add an inference service; predicted 1.7x (next limit: learner)")


def test_a_second_service_that_halves_the_batches_brings_less_than_twice():
    # 12 / (0.04 + 0.06) = 120; with two 2 x 6 / (0.04 + 0.03) = 171.4; environment 12 / (0.001 + 0.06) = 196.7
    run = replace(RUN, num_slots=12, batch_size=12, batch_size_mean=4.0, env_s_per_decision=0.001)
    advice = advise(replace(run, train_s_per_decision=1 / 1000, decisions_per_s=118.0))
    assert advice.bottleneck == "inference"
    assert advice.predicted == pytest.approx((12 / 0.07) / 120)


def test_environment_bound_many_workers_bring_little_each_and_enough_of_them_reach_the_next_bound():
    # 64 / 0.64 = 100 decisions/s; inference 150: one more brings 65/64, 32 more 1.5.
    run = replace(RUN, num_workers=64, num_slots=256, env_s_per_decision=0.64, rollout_busy=0.97, inference_busy=0.65)
    run = replace(run, forward_base_s=None, forward_s_per_decision=1 / 150, decisions_per_s=97.0)
    advice = advise(run)
    assert advice.bottleneck == "environment"
    assert advice.predicted == pytest.approx(65 / 64)
    assert advice.sentence == "rollout busy 97 %: add a rollout worker; predicted 1.02x, and up to 1.5x with 32 more"


def test_environment_bound_by_slots_that_wait_for_their_forwards():
    # 4 slots / (0.02 + 0.08) = 40 below 4 workers / 0.02 = 200; inference 4 / 0.06 = 66.7
    advice = advise(replace(RUN, num_slots=4, decisions_per_s=39.0, rollout_busy=0.2, inference_busy=0.6))
    assert advice.bottleneck == "environment"
    assert advice.predicted == pytest.approx(5 / 4)
    assert "rollout.slots_per_worker" in advice.sentence


def test_learner_bound_also_where_workers_wait_for_it():
    # The learner does 50, inference 100, environments 200; the credits that workers wait for come from its updates.
    run = replace(RUN, train_s_per_decision=0.02, learner_busy=0.99, decisions_per_s=49.0, inference_busy=0.5)
    for waiting in (0.0, 0.5):
        advice = advise(replace(run, admission_wait_share=waiting))
        assert advice.bottleneck == "learner"
        assert advice.predicted == pytest.approx(2.0)
        assert advice.sentence.startswith("learner busy 99 %: train on one more device")


def test_a_learner_that_uses_decisions_again_for_want_of_new_ones_holds_nobody_up():
    run = replace(RUN, train_s_per_decision=0.02, learner_busy=1.0, uses_per_decision=3.0)
    assert advise(replace(run, max_policy_lag=None)).bottleneck == "inference"
    assert advise(run).bottleneck == "learner"


def test_waiting_for_credits_while_the_learner_has_time_is_the_staleness_bound():
    advice = advise(
        replace(
            RUN, admission_wait_share=0.4, learner_busy=0.3, decisions_per_s=50.0, inference_busy=0.5, max_policy_lag=1
        )
    )
    assert advice.bottleneck == "staleness"
    assert advice.predicted == pytest.approx(2.0)  # 100, the bound of inference, over 50
    assert "wait 40 % of their time for the staleness bound K = 1, learner busy 30 %" in advice.sentence
    assert "predicted up to 2.0x" in advice.sentence


def test_waiting_for_credits_at_the_limit_of_inference_is_not_the_staleness_bound():
    assert advise(replace(RUN, admission_wait_share=0.2)).bottleneck == "inference"


def test_full_cores_forbid_more_of_what_needs_one():
    full = replace(RUN, cores_busy=0.99)
    advice = advise(full)
    assert (advice.bottleneck, advice.predicted) == ("cores", 1.0)
    assert "cores busy 99 %" in advice.sentence
    assert advise(replace(full, inference_on_cpu=False)).bottleneck == "inference"
    assert advise(replace(full, learner_on_cpu=False)).bottleneck == "cores"
    held = replace(full, inference_on_cpu=False, admission_wait_share=0.4, learner_busy=0.3, decisions_per_s=50.0)
    assert advise(held).bottleneck == "cores"


def test_stages_with_nearly_the_same_bound_are_balanced():
    advice = advise(replace(RUN, train_s_per_decision=1 / 105, learner_busy=0.93))
    assert advice.bottleneck == "balanced"
    assert advice.predicted == pytest.approx(1.05)
    assert "inference busy 98 % and learner busy 93 %" in advice.sentence
    assert "1.05x" in advice.sentence


def test_a_run_far_below_all_bounds_waits_for_itself():
    idle = replace(RUN, decisions_per_s=40.0, rollout_busy=0.2, inference_busy=0.4, learner_busy=0.24)
    advice = advise(idle)
    assert advice.bottleneck == "waiting"
    assert advice.predicted == pytest.approx(2.5)
    assert "reaches 40 % of its bound" in advice.sentence


def test_busy_shares_stand_in_for_times_that_are_missing():
    # 60 decisions/s at 96 %, 50 % and 40 % busy: 62.5, 120 and 150 at full work.
    line = {"decisions_per_s": 60.0, "rollout_busy": 0.5, "inference_busy": 0.96, "data_wait_share": 0.6}
    advice = advise(readings_from({**line, "num_services": 2}))
    assert advice.bounds == pytest.approx({"environment": 120.0, "inference": 62.5, "learner": 150.0})
    assert advice.predicted == pytest.approx(1.5)
    assert advise(readings_from(line)).predicted is None
    assert advise(readings_from(line)).bottleneck == "inference"


def test_what_cannot_be_told_is_said_with_what_is_missing():
    advice = advise(Readings())
    assert (advice.bottleneck, advice.predicted) == ("unknown", None)
    assert "env_s_per_decision" in advice.sentence
    assert "train_s_per_decision" in advice.sentence
    partly = Readings(decisions_per_s=10.0, env_s_per_decision=0.01, num_workers=1, num_slots=4, rollout_busy=0.1)
    advice = advise(partly)
    assert advice.bottleneck == "unknown"
    assert "forward_s_per_decision" in advice.sentence
    assert "env_s_per_decision" not in advice.sentence


def test_a_run_without_decisions_yet_gives_advice_nevertheless():
    assert advise(replace(RUN, decisions_per_s=0.0)).bottleneck == "inference"
    assert advise(Readings(decisions_per_s=0.0, env_s_per_decision=0.0)).bottleneck == "unknown"


def test_readings_come_from_the_names_of_a_line():
    readings = readings_from(
        {"inference_busy": 0.9, "cores_busy": [0.5, 1.0], "num_slots": 16, "learner_busy": None, "policy_loss": 3.0}
    )
    assert readings == Readings(inference_busy=0.9, cores_busy=0.75, num_slots=16)


def test_uses_of_a_decision_come_from_the_counters():
    assert readings_from({"decisions": 200, "trained_decisions": 500}).uses_per_decision == 2.5
    assert readings_from({"decisions": 200, "trained_decisions": 500, "uses_per_decision": 1}).uses_per_decision == 1
    assert readings_from({"decisions": 0, "trained_decisions": 0}).uses_per_decision == 1


def test_lines_are_averaged_but_for_counts():
    lines = [
        {"inference_busy": 0.5, "num_workers": 2, "decisions": 100, "trained_decisions": 100},
        {"inference_busy": 0.9, "num_workers": 4, "decisions": 200, "trained_decisions": 400, "learner_busy": 0.3},
    ]
    readings = readings_over(lines)
    assert readings.inference_busy == pytest.approx(0.7)
    assert readings.learner_busy == pytest.approx(0.3)
    assert (readings.num_workers, readings.uses_per_decision) == (4, 2.0)
    with pytest.raises(ValueError, match="lines"):
        readings_over([])


def test_every_prediction_is_a_finite_speed_up():
    for name in ("num_workers", "num_slots", "num_services", "forward_base_s", "batch_size", "batch_size_mean"):
        advice = advise(replace(RUN, **{name: None}))
        assert advice.predicted is None or (math.isfinite(advice.predicted) and advice.predicted >= 1.0), name
