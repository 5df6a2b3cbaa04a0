"""PPO from reward models, with a KL penalty to the SFT policy (2203.02155, section 3.5; 2307.09288, section 3.2.3).

One iteration:

    prompts ──rollout──▶ responses ──score──▶ rewards, advantages ──update──▶ policy, value model

Each arrow is one compiled program. Everything that an iteration draws depends on the seed and its number alone, so a run that was
stopped goes on from its checkpoint with the same bits.
"""

from dataclasses import asdict
from typing import Any

import jax
from flax import nnx

from rlhf.models.source import save_model
from rlhf.parallel.mesh import make_mesh
from rlhf.parallel.table import by_its_rules
from rlhf.rl.watchdogs import Watchdogs, advice
from rlhf.stages.folder import begin_writing, close_folder, fingerprint, open_folder
from rlhf.stages.ppo_config import Config
from rlhf.stages.ppo_setup import prepare
from rlhf.tracking.console import say
from rlhf.tracking.progress import ProgressBar
from rlhf.tracking.tracker import Tracker
from rlhf.training.checkpoint import Checkpointer
from rlhf.training.compilations import CompilationCounter
from rlhf.training.signals import Interrupted, SignalWatch


@by_its_rules
def run(config: Config) -> dict[str, Any]:
    """Trains the policy and writes its folder; returns the summary."""
    folder = open_folder(config)
    job = prepare(config)
    begin_writing(folder)
    with (
        jax.set_mesh(make_mesh(config.mesh)),
        CompilationCounter() as compilations,
        SignalWatch() as signals,
        Checkpointer(folder.checkpoints, fingerprint=fingerprint(config)) as checkpointer,
    ):
        state, start, watchdogs = job.state, 0, Watchdogs(config.watchdogs)
        restored = checkpointer.restore_latest(state)
        if restored is not None:
            state, start, seen = restored
            watchdogs = Watchdogs(config.watchdogs, seen)
            say(f"Continuing after iteration {start}")
        with (
            Tracker(config.tracking, folder.path, asdict(config), start) as tracker,
            ProgressBar("ppo", config.iterations, start=start) as progress,
        ):
            if start == 0 and job.held_out_check is not None:
                before = job.held_out_check(job.policy_states(state))
                watchdogs.begin(before)
                tracker.log(0, before)
            tokens, done, ended_by = 0, start, None
            prompts = job.prompt_batches(start)
            text = job.pretraining_batches(start)
            for number in range(start, config.iterations):
                state, report = job.iteration(state, next(prompts), number, next(text))
                done = number + 1
                metrics = report.metrics
                if job.held_out_check is not None and (done % config.evaluate_every == 0 or done == config.iterations):
                    metrics |= job.held_out_check(job.policy_states(state))
                barks, first_barks = watchdogs.look(metrics, config.ppo.rollout_batch_size)
                ended_by = watchdogs.stops(barks)
                tracker.log(done, metrics | barks)
                tracker.log_timings(done, report.timings)
                tracker.table("samples", done, report.rows)
                for kind in first_barks:
                    say(f"Iteration {done}: {advice(kind)}", style="yellow")
                tokens += report.response_tokens
                shown = {name: metrics[f"objective/{name}"] for name in ("rlhf_reward", "kl")}
                progress.update(done, figures=shown, tokens=tokens)
                stopped_by = signals.agreed(synchronize=True)
                last = done == config.iterations or ended_by is not None
                if done % config.checkpoint_every == 0 or last or stopped_by is not None:
                    checkpointer.save(done, state, watchdogs.state)
                if stopped_by is not None:
                    checkpointer.wait()
                    raise Interrupted(stopped_by, done)
                if ended_by is not None:
                    say(f"Stopped after iteration {done} by watchdogs.stop_on: {ended_by}", style="yellow")
                    break
    policy = nnx.merge(job.policy, *job.policy_states(state))
    save_model(policy, folder.model, job.tokenizer, config.model.init_from)
    summary = {"iterations": done} | ({} if ended_by is None else {"stopped_by": ended_by})
    return close_folder(folder, summary | compilations.summary())
