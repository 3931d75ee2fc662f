"""Settings that are a paper's own idea, on top of the methods that take them; ``seekr methods`` lists them."""

from dataclasses import dataclass, fields

from seekr_cl.methods.base import Method, Paper
from seekr_cl.methods.icarl import ICaRL
from seekr_cl.methods.inscl import InsCL

_FOREVER = Paper(
    "FOREVER: Forgetting Curve-Inspired Memory Replay for Language Model Continual Learning",
    "Feng et al., ACL 2026",
    "https://arxiv.org/abs/2601.03938",
)
_SURE = Paper(
    "SuRe: Surprise-Driven Prioritised Replay for Continual LLM Learning",
    "Hazard et al., 2025",
    "https://arxiv.org/abs/2511.22367",
)
_BFP = Paper(
    "Preserving Linear Separability in Continual Learning by Backward Feature Projection",
    "Gu et al., CVPR 2023",
    "https://arxiv.org/abs/2303.14595",
)


@dataclass(frozen=True, slots=True)
class Option:
    """One value of a setting.

    Attributes:
        setting: its name in a configuration, with a dot if it is of a group; others are for all methods.
        value: the value.
        about: what it does.
        paper: where it comes from.
        on: another setting that it needs, ``block.key=value``.
    """

    setting: str
    value: str
    about: str
    paper: Paper
    on: str | None = None

    def suits(self, method: type[Method]) -> bool:
        """Whether the method has this setting."""
        block, _, key = self.setting.partition(".")
        if not key:
            return True
        if block == "replay":
            return method.replays
        return key in {field.name for field in fields(method.Settings)}


OPTIONS = (
    Option(
        "replay.cadence",
        "forgetting_curve",
        "replays the memory on the days of the forgetting curve",
        _FOREVER,
    ),
    Option(
        "replay.clock",
        "updates",
        "measures these days by how far the weights have moved",
        _FOREVER,
        "replay.cadence=forgetting_curve",
    ),
    Option(
        "replay.sample_weights",
        "surprise",
        "replays more of what the model before the task finds unlikely",
        _SURE,
    ),
    Option("replay.sample_weights", "information", "replays more of prompts with rare words", InsCL.paper),
    Option("replay.task_weights", "similarity", "replays more of old tasks unlike the new one", InsCL.paper),
    Option(
        "replay.choice",
        "herding",
        "keeps the examples whose mean feature is nearest to the task's",
        ICaRL.paper,
    ),
    Option(
        "replay.choice",
        "loss",
        "keeps the examples with the highest loss",
        Paper(
            "Information-theoretic Online Memory Selection for Continual Learning",
            "Sun et al., ICLR 2022",
            "https://arxiv.org/abs/2204.04763",
        ),
    ),
    Option(
        "method.target",
        "values",
        "holds the chosen heads' value relations",
        Paper(
            "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
            "Wang et al., Findings of ACL 2021",
            "https://arxiv.org/abs/2012.15828",
        ),
    ),
    Option(
        "method.target",
        "hidden",
        "holds the chosen heads' outputs",
        Paper(
            "Class-Incremental Learning by Knowledge Distillation with Adaptive Feature Consolidation",
            "Kang et al., CVPR 2022",
            "https://arxiv.org/abs/2204.00895",
        ),
    ),
    Option(
        "method.target",
        "relations",
        "holds the distances between the chosen heads' outputs",
        Paper("Relational Knowledge Distillation", "Park et al., CVPR 2019", "https://arxiv.org/abs/1904.05068"),
    ),
    Option(
        "method.projection",
        "random",
        "holds outputs up to a matrix that is learnt meanwhile; identity begins where nothing changes",
        _BFP,
        "method.target=hidden",
    ),
    Option(
        "average",
        "sfa",
        "averages the weights with those before the task, again and again",
        Paper("Soup to go (SFA)", "2025", "https://arxiv.org/abs/2501.05559"),
    ),
    Option(
        "average",
        "wise_ft",
        "ends a task between the weights before and after it",
        Paper(
            "Robust fine-tuning of zero-shot models",
            "Wortsman et al., CVPR 2022",
            "https://arxiv.org/abs/2109.01903",
        ),
    ),
    Option("average", "ema", "ends a task with the moving average of its weights", _SURE),
    Option(
        "optim",
        "muon",
        "steps matrices of hidden layers by their orthogonal part, the rest by AdamW",
        Paper("Muon is Scalable for LLM Training", "Liu et al., 2025", "https://arxiv.org/abs/2502.16982"),
    ),
    Option(
        "task_loss",
        "dft",
        "weighs each new token by its probability",
        Paper(
            "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
            "Wu et al., 2025",
            "https://arxiv.org/abs/2508.05629",
        ),
    ),
    Option(
        "task_loss",
        "eaft",
        "weighs each new token by the entropy of what the model expected",
        Paper(
            "Entropy-Adaptive Fine-Tuning: Resolving Confident Conflicts to Mitigate Forgetting",
            "Diao et al., 2026",
            "https://arxiv.org/abs/2601.02151",
        ),
    ),
    Option(
        "task_loss",
        "talr",
        "weighs new tokens less the less likely they are",
        Paper(
            "SFT Doesn't Always Hurt General Capabilities: Revisiting Domain-Specific Fine-Tuning in LLMs",
            "Lin et al., ICLR 2026",
            "https://arxiv.org/abs/2509.20758",
        ),
    ),
    Option(
        "task_loss",
        "stm",
        "leaves out new tokens that the model before the task finds unlikely",
        Paper(
            "Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning",
            "Wu et al., NeurIPS 2025",
            "https://arxiv.org/abs/2501.14315",
        ),
    ),
    Option(
        "task_loss",
        "flow",
        "weighs examples less the less likely they were before the task",
        Paper(
            "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
            "Sanyal et al., ICML 2025",
            "https://arxiv.org/abs/2502.02797",
        ),
    ),
)
