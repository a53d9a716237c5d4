"""Code that is not ours runs on the native layers: same outputs, gradients and training."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402

from .torch_cases import close, results_and_gradients  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's packages


class Tagger(torch.nn.Module):  # type: ignore[misc, name-defined]
    """x [T, B, 3] and a state → [T, B, 2] and the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.nn.LSTM(3, 16, num_layers=2)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, x: Any, state: Any = None) -> Any:
        out, state = self.memory(x, state)
        return self.head(out), state


def twins() -> tuple[Any, Any]:
    """A model as it is, and a copy of it on native kernels."""
    torch.manual_seed(0)
    theirs = Tagger()
    mine = copy.deepcopy(theirs)
    assert ours.accelerate(mine).swapped == {"memory": "LSTM"}
    return theirs, mine


def batches() -> list[Any]:
    """Whole sequences [T, B, ...], cut by the trainers."""
    torch.manual_seed(1)
    return [(torch.randn(24, 4, 3), torch.randn(24, 4, 2)) for _ in range(3)]


def test_recurrent_ppo_of_sb3_contrib() -> None:
    package = pytest.importorskip("sb3_contrib")

    def agent(native: bool) -> Any:
        agent = package.RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=64,
            batch_size=32,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 16, "net_arch": [16]},
        )
        if native:
            report = ours.accelerate(agent.policy)
            assert set(report.swapped) == {"lstm_actor", "lstm_critic"}
            assert not report.left
        return agent.learn(192)

    theirs, mine = agent(native=False), agent(native=True)
    assert mine.num_timesteps == theirs.num_timesteps == 192
    close(list(mine.policy.parameters()), list(theirs.policy.parameters()), 1e-4)
    observation = mine.observation_space.sample()
    actions = [a.predict(observation, deterministic=True) for a in (mine, theirs)]
    assert actions[0][0] == actions[1][0]
    close(
        [torch.as_tensor(s) for s in actions[0][1]],
        [torch.as_tensor(s) for s in actions[1][1]],
        1e-4,
    )


def test_tbptt_trainer_of_ignite() -> None:
    engines = pytest.importorskip("ignite.contrib.engines")
    found = []
    for model in twins():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = engines.create_supervised_tbptt_trainer(
            model, optimizer, torch.nn.functional.mse_loss, tbtt_step=5
        )
        losses: list[float] = []
        trainer.add_event_handler(
            engines.Tbptt_Events.TIME_ITERATION_COMPLETED,
            lambda engine, losses=losses: losses.append(float(engine.state.output)),
        )
        trainer.run(batches(), max_epochs=2)
        found.append((losses, list(model.parameters())))
    (expected, their_parameters), (losses, my_parameters) = found
    assert len(losses) == 2 * 3 * 5
    assert losses == pytest.approx(expected, rel=1e-5)
    close(my_parameters, their_parameters)


def test_manual_optimization_of_lightning() -> None:
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.automatic_optimization = model, False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer, state = self.optimizers(), None
            for x, y in zip(*(part.split(6) for part in batch), strict=True):
                optimizer.zero_grad()
                out, state = self.model(x, state)
                self.manual_backward(torch.nn.functional.mse_loss(out, y))
                optimizer.step()
                state = ours.detach_state(state)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    theirs, mine = twins()
    for model in (theirs, mine):
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Task(model), torch.utils.data.DataLoader(batches(), batch_size=None))
    close(list(mine.parameters()), list(theirs.parameters()))
    x, _ = batches()[0]
    close(
        results_and_gradients(mine, lambda: mine(x)),
        results_and_gradients(theirs, lambda: theirs(x)),
    )
