"""Training by rewards from probes that read a frozen copy of the start model, through TRL's GRPOTrainer."""

from fairlead.training.rewards.claims import Question, Splitter, Verifier, questions_of, split_sentences
from fairlead.training.rewards.config import RewardConfig, RewardTable, StopRule
from fairlead.training.rewards.fit import RewardFit, RewardStep, fit_rewards
from fairlead.training.rewards.fresh import FreshProbe, FreshScore, fresh_probe
from fairlead.training.rewards.monitors import Look, Monitor
from fairlead.training.rewards.reading import Text, read_claims
from fairlead.training.rewards.table import MixController, judge_intervention, judge_plain
from fairlead.training.rewards.trained import RewardRun, load_reward_run

__all__ = [
    "FreshProbe",
    "FreshScore",
    "Look",
    "MixController",
    "Monitor",
    "Question",
    "RewardConfig",
    "RewardFit",
    "RewardRun",
    "RewardStep",
    "RewardTable",
    "Splitter",
    "StopRule",
    "Text",
    "Verifier",
    "fit_rewards",
    "fresh_probe",
    "judge_intervention",
    "judge_plain",
    "load_reward_run",
    "questions_of",
    "read_claims",
    "split_sentences",
]
